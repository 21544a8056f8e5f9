"""`bench.simulate`: one package to many more nodes than there are here, by a model that measured runs check.

First the model (`bench.simulation`) repeats runs of `bench.swarm`, those in `--measured` files or the last
`python -m bench swarm`, and says how far it is off.  Then it carries the same rules to sites and grids that nobody
can rent for a benchmark: bytes of the central server and of the wide area, announces, seconds to the median and the
last node.  All figures but those of the column `measured` are simulated; `tracker_answers_per_s` is measured with
the real tracker's rules on one core, at that number of peers.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.simulation import OVERHEAD, Case, simulate
from jobagent.central.packaging.torrents import piece_size_for
from jobagent.central.services.dealer import Mode
from jobagent.central.services.tracker import Announce, Sites, Tracked, Tracker

LAST_RUNS = ("build", "bench-swarm-*.json")
NODES_OF_SITE = 500
COMPARED = ("copies", "median_s", "last_s")
WIRE_OVERHEAD = 0.06  # of what an interface counts, over payload: headers and acknowledgements
GRID = Case(
    nodes=0,
    package_bytes=1_000_000_000,
    node_rate=100e6,  # a gigabit link, near what one node can hash and write
    server_rate=250e6,
    site_rate=1.25e9,
    arrivals_s=60.0,
    pieces=128,  # of 8 MB: coarser than the torrent, which has a thousand
)
SIZES = (1_000, 10_000, 100_000)


def main() -> int:
    """Check, simulate, report."""
    parser = argparse.ArgumentParser(prog="python -m bench.simulate", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument(
        "--full", action="store_true", help="also the largest grid with more ways to arrive and elect"
    )
    parser.add_argument("--measured", type=Path, nargs="*", metavar="FILE", help=f"default: {'/'.join(LAST_RUNS)}")
    parser.add_argument("--nodes", type=int, nargs="*", metavar="N", help=f"default: {' '.join(map(str, SIZES))}")
    parser.add_argument("--figure", type=Path, metavar="SVG", help="draw it here")
    options = parser.parse_args()
    files = options.measured if options.measured is not None else sorted(Path(LAST_RUNS[0]).glob(LAST_RUNS[1]))
    checks = [check(runs) for file in files for runs in rows_of(file)]
    print_checks(checks)
    results = []
    for case in cases(options.nodes or SIZES, is_full=options.full):
        results.append(report(case))
        print_row(results[-1], is_first=len(results) == 1)
    figures = {"checks": checks, "error": error_of(checks), "simulated": results}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    if options.figure:
        from bench.simulation_figure import draw

        draw(figures, options.figure)
        print(options.figure)
    return 0


# --- against measured runs


def rows_of(file: Path) -> list[list[dict[str, Any]]]:
    """The finished runs of our own seeder in a file of `bench.swarm` or `bench.swarm_programme`, repeats together."""
    document = json.loads(file.read_text())
    rows = [row["runs"] for row in document.get("rows", ())] or [document.get("runs", [document])]
    return [found for row in rows if (found := [run for run in row if _is_comparable(run)])]


def _is_comparable(run: dict[str, Any]) -> bool:
    is_ours = run.get("peer") == "agent" and not run["unfinished"] and "median_s" in run
    return is_ours and run["slots"] == 1 and not run.get("has_site_seeders") and not run["swarm"]


def case_of(run: dict[str, Any]) -> Case:
    """The case that a measured run was."""
    is_shaped = bool(run["is_shaped"])
    return Case(
        nodes=run["clients"],
        package_bytes=run["package_bytes"],
        node_rate=float(run["client_rate"]),
        server_rate=float(run["server_rate"]),
        sites=run.get("sites", 0),
        site_rate=float(run.get("site_rate", 0)),
        arrivals_s=run["arrivals_s"],
        mode=Mode(run["mode"]),
        overhead=OVERHEAD if is_shaped else 0.0,  # the programs' own limiters count payload
        is_download_bound=is_shaped,
    )


def check(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Simulate measured repeats five times over; return the medians of both, with the relative error of each."""
    first, case = runs[0], case_of(runs[0])
    measured = {name: statistics.median(float(run[name]) for run in runs) for name in COMPARED}
    found = [simulate(replace(case, seed=seed)).figures() for seed in range(1, 6)]
    simulated = {name: statistics.median(float(f[name]) for f in found) for name in COMPARED}
    if first["is_shaped"]:
        simulated["copies"] *= 1 + WIRE_OVERHEAD
    name = f"{first['clients']} {'hosts' if first['is_shaped'] else 'on loopback'}"
    name += f", {first['sites']} sites" if first.get("sites") else ""
    name += f", over {first['arrivals_s']:g} s" if first["arrivals_s"] else ""
    return {
        "run": name + (f", {first['mode']}" if first["mode"] != "default" else ""),
        "repeats": len(runs),
        "measured": measured,
        "simulated": {n: round(v, 3) for n, v in simulated.items()},
        "error": {n: round(v / measured[n] - 1.0, 3) for n, v in simulated.items()},
        "is_void": all(run.get("is_void", False) for run in runs),
    }


def error_of(checks: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The largest error of each figure over all checks; empty where nothing was checked."""
    return {n: max(abs(c["error"][n]) for c in checks) for n in COMPARED} if checks else {}


def print_checks(checks: Sequence[dict[str, Any]]) -> None:
    """Print measured and simulated figures side by side."""
    if not checks:
        print("no measured runs to check against: run python -m bench.swarm --json FILE, then give --measured FILE")
        return
    print(f"{'measured / simulated (error)':<28}" + "".join(f"{n:>28}" for n in COMPARED))
    for one in checks:
        cells = (
            f"{one['measured'][n]:8.2f} /{one['simulated'][n]:8.2f} ({one['error'][n]:+.0%})".rjust(28)
            for n in COMPARED
        )
        print(f"{one['run']:<28}" + "".join(cells) + ("  machine was busy" if one["is_void"] else ""))
    print("largest error: " + ", ".join(f"{n} {v:.0%}" for n, v in error_of(checks).items()))


# --- larger than what can be measured


def cases(sizes: Sequence[int], *, is_full: bool) -> list[Case]:
    """Grids of sites of the same size."""
    grids = [replace(GRID, nodes=n, sites=max(1, n // NODES_OF_SITE)) for n in sizes]
    if is_full:
        largest = grids[-1]
        grids += [replace(largest, elected=4), replace(largest, arrivals_s=0.0), replace(grids[0], sites=0)]
    return grids


def report(case: Case) -> dict[str, Any]:
    """Simulate one grid; add what the tracker can answer and what else the central host sends."""
    start = time.monotonic()
    case = replace(case, tracker_rate=tracker_rate(case))
    figures = simulate(case).figures()
    torrent = 52 * -(-case.package_bytes // piece_size_for(case.package_bytes))  # SHA-1 and SHA-256 of each piece
    return figures | {
        "elected": case.elected,
        "torrents_gb": round(case.nodes * torrent / 1e9, 2),
        "one_server_s": round(case.nodes * case.package_bytes / case.server_rate),
        "tracker_answers_per_s": round(case.tracker_rate),
        "simulation_s": round(time.monotonic() - start, 1),
    }


def tracker_rate(case: Case, announces: int = 2000) -> float:
    """Measure how many announces the tracker's rules answer in a second when all nodes are in the swarm."""
    sites = Sites({f"site{n}": [ipaddress.ip_network((0x0A000000 + (n << 12), 20))] for n in range(case.sites)})
    tracked = {b"1" * 20: Tracked("A", frozenset({"alice"}))}
    now = [0.0]
    tracker = Tracker(lambda: tracked, clock=lambda: now[0], choice=random.Random(1), sites=sites, home=lambda key: 1)
    server = ipaddress.ip_address("192.0.2.1")

    def announce(number: int) -> None:
        place = ipaddress.ip_address(
            0x0A000000 + ((number % max(1, case.sites)) << 12) + number // max(1, case.sites)
        )
        tracker.announce(Announce(b"1" * 20, b"-JA0100-%012d" % number, place, 6881, 1, server=server))

    for number in range(case.nodes):
        announce(number)
    start = time.process_time()  # of this process: others may keep the machine busy
    for number in range(announces):
        announce(number * 37 % case.nodes)
    return announces / (time.process_time() - start)


COLUMNS = {
    "clients": "nodes",
    "sites": "sites",
    "elected": "elected",
    "arrivals_s": "over s",
    "copies": "copies",
    "central_gb": "central GB",
    "torrents_gb": "torrents GB",
    "intersite_gb": "wide area GB",
    "site_copies": "copies/site",
    "tracker_peak_per_s": "announces/s",
    "tracker_answers_per_s": "can answer",
    "median_s": "median s",
    "p999_s": "p99.9 s",
    "last_s": "last s",
    "one_server_s": "one server s",
}


def print_row(row: dict[str, Any], *, is_first: bool) -> None:
    """Print one grid, under a heading before the first."""
    if is_first:
        print(f"\nsimulated: {GRID.package_bytes / 1e9:g} GB, nodes {GRID.node_rate / 1e6:g} MB/s, ", end="")
        print(f"central server {GRID.server_rate / 1e6:g} MB/s, sites {GRID.site_rate / 1e9:g} GB/s")
        print(" ".join(f"{title:>12}" for title in COLUMNS.values()))
    print(" ".join(f"{'-' if row[n] is None else row[n]:>12}" for n in COLUMNS), flush=True)


def page(figures: dict[str, Any]) -> str:
    """The figures as tables in Markdown, for docs/performance.md."""
    parts = []
    if figures["checks"]:
        parts += ["| measured runs | copies | median s | last s |", "|---|---|---|---|"]
        for one in figures["checks"]:
            cells = (
                f"{one['measured'][n]:.2f} → {one['simulated'][n]:.2f} ({one['error'][n]:+.0%})" for n in COMPARED
            )
            parts.append(f"| {one['run']}{' †' if one['is_void'] else ''} | " + " | ".join(cells) + " |")
        largest = ", ".join(f"{name.removesuffix('_s')} {error:.0%}" for name, error in figures["error"].items())
        parts += ["", f"Measured → simulated (error); largest error: {largest}.", ""]
    parts += ["| simulated: " + " | ".join(COLUMNS.values()) + " |", "|" + "---|" * len(COLUMNS)]
    for row in figures["simulated"]:
        parts.append("| " + " | ".join("–" if row[n] is None else f"{row[n]:,}" for n in COLUMNS) + " |")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
