"""The page of figures: puts tables and pictures of benchmark runs between the markers of docs/performance.md.

    python -m bench.report FILE...        files of `bench.swarm_programme`; several of one group are put together

What stands outside the markers is written by hand and stays.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobagent.central.services.plot import Sample, plot_traffic
from jobagent.errors import JobAgentError

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
COLORS = ("#c2571a", "#1a7f8c", "#6a4c93", "#7a7a7a", "#2a9d3a", "#b5179e")


def main() -> int:
    """Write the page from files."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="of `bench.swarm_programme --json`")
    groups: dict[str, dict[str, Any]] = {}
    for file in parser.parse_args().files:
        add(groups, json.loads(file.read_text()))
    write(groups.values())
    return 0


def add(groups: dict[str, dict[str, Any]], result: dict[str, Any]) -> None:
    """Put a result to those of its group: runs of one row are repeats."""
    group = groups.setdefault(result["group"], {**result, "rows": [], "commits": set()})
    group["commits"].add(result["commit"])
    group["is_full"] = group["is_full"] or result["is_full"]
    known = {row["label"]: row for row in group["rows"]}
    for row in result["rows"]:
        if row["label"] in known:
            known[row["label"]]["runs"] += row["runs"]
        else:
            group["rows"].append(row)


def write(groups: Iterable[Mapping[str, Any]], page: Path = PAGE) -> None:
    """Replace what is between the markers of each group, and draw its picture."""
    text = page.read_text(encoding="utf-8")
    for group in groups:
        name = group["group"]
        begin, end = f"<!-- made by bench: {name} -->\n", "<!-- end -->"
        before, found, after = text.partition(begin)
        if not found or end not in after:
            print(f"{page} has no place for {name}", file=sys.stderr)
            continue
        text = f"{before}{begin}{origin(group)}\n\n{table(group['rows'])}\n{after[after.index(end) :]}"
        try:
            draw(group, page.parent)
        except JobAgentError as error:
            print(f"no picture of {name}: {error}", file=sys.stderr)
    page.write_text(text, encoding="utf-8")
    print(page)


def put(name: str, content: str, page: Path = PAGE) -> None:
    """Replace what is between the markers of `name`."""
    begin, end = f"<!-- made by bench: {name} -->\n", "<!-- end -->"
    before, found, after = page.read_text(encoding="utf-8").partition(begin)
    if not found or end not in after:
        print(f"{page} has no place for {name}", file=sys.stderr)
        return
    page.write_text(f"{before}{begin}{content}\n{after[after.index(end) :]}", encoding="utf-8")


def origin(group: Mapping[str, Any]) -> str:
    """From which run the figures are."""
    runs = [len(row["runs"]) for row in group["rows"] if row["runs"]]
    count = "one run" if max(runs, default=0) <= 1 else f"{min(runs)} to {max(runs)} runs"
    commits = ", ".join(sorted(group.get("commits") or {group["commit"]}))
    return (
        f"*From the {'full' if group['is_full'] else 'quick'} run of {group['date']} at {commits}: {count} a row, "
        f"{group['cores']} cores, {group['system']}.*"
    )


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table in Markdown; median, and range where there were several runs."""
    has_sites = any(run["site_copies"] for row in rows for run in row["runs"])
    heads = ["", "copies", *(["copies a site"] if has_sites else []), "median ×", "last ×"]
    heads += ["bound s", "p99.9 s", "last s", "unfinished", "CPU %"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        runs = row["runs"]
        if not runs:
            lines.append(f"| {row['label']} | *{row.get('skipped', 'not run')}* |")
            continue
        cells = [row["label"], spread(r["copies"] for r in runs)]
        if has_sites:
            cells.append(spread((c for r in runs for c in r["site_copies"]), show=max) or "–")
        cells += [spread(r[key] for r in runs) for key in ("median_over_bound", "last_over_bound")]
        cells.append(f"{runs[0]['bound_s']:g}")
        cells += [spread((r[key] for r in runs), digits=1) for key in ("p999_s", "last_s")]
        cells.append(str(max(r["unfinished"] for r in runs)))
        busy = spread((r["cpu_percent"] for r in runs), digits=0)
        cells.append(busy + (" †" if statistics.median(r["cpu_percent"] for r in runs) > 80 else ""))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: Iterable[float | None], *, digits: int = 2, show: Any = statistics.median) -> str:
    """Median (or what `show` takes), and the range of several values; empty for none."""
    known = sorted(v for v in values if v is not None)
    if not known:
        return ""
    first = f"{show(known):.{digits}f}"
    low, high = f"{known[0]:.{digits}f}", f"{known[-1]:.{digits}f}"
    return first if low == high or len(known) == 1 else f"{first} ({low} – {high})"


def draw(group: Mapping[str, Any], directory: Path) -> None:
    """Draw copies against time of all rows, and the traffic of the first one."""
    rows = [row for row in group["rows"] if row["runs"] and all(r["last_over_bound"] for r in row["runs"])]
    if not rows:
        return
    samples = [Sample(**s) for s in rows[0]["runs"][0].get("samples", ())]
    if group["group"] == "hosts" and len(samples) > 1:
        plot_traffic(samples, directory / "performance-traffic.png", title="20 shaped hosts, jobagent")
    _scatter(rows, directory / f"performance-{group['group']}.svg")


def _scatter(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, row in enumerate(rows):
        points = [(r["copies"], r["last_over_bound"]) for r in row["runs"]]
        color, marker = COLORS[number % len(COLORS)], "os^"[number // len(COLORS) % 3]
        axes.scatter(*zip(*points, strict=True), color=color, marker=marker, label=row["label"])
    axes.axvline(1, color="#bbbbbb", lw=0.8)
    axes.axhline(1, color="#bbbbbb", lw=0.8)
    axes.set_xlabel("copies that the server sent")
    axes.set_ylabel("last completion / physical bound")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    with matplotlib.rc_context({"svg.hashsalt": "jobagent", "svg.fonttype": "none"}):
        figure.savefig(path, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    sys.exit(main())
