"""`jobagent swarm`: watch the swarms of a central server, and draw what a run did."""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobagent.central.services.plot import Sample, plot_traffic, read_samples, samples_of, write_samples
from jobagent.config import Config, load
from jobagent.errors import CatalogueUnreachable, UsageError

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

TIMEOUT_S = 10.0
MAX_STATUS_BYTES = 64 << 20
WINDOW_S = 30.0  # over which rates are taken: peers report at intervals


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    status = commands.add_parser("status", help="show packages, peers, rates and copies; live on a terminal")
    status.add_argument("url", nargs="?", metavar="URL", help="central services; default: the first [catalogue] URL")
    status.add_argument(
        "--once", action="store_true", help="show once and end, as it does where there is no terminal"
    )
    status.add_argument("--json", action="store_true", help="print the server's status as JSON and end")
    status.add_argument("--interval", type=float, default=2.0, metavar="S", help="seconds between looks (default: 2)")
    status.add_argument("--record", type=Path, metavar="FILE", help="write the traffic here, for jobagent swarm plot")
    plot = commands.add_parser("plot", help="draw server and swarm bytes over time")
    plot.add_argument("run", metavar="RUN", help="file of --record or of a benchmark, or URL of central services")
    plot.add_argument("-o", "--output", type=Path, metavar="PNG", help="default: RUN with .png, or swarm.png")


def run(args: argparse.Namespace) -> int:
    """Show or draw."""
    if args.action == "plot":
        is_url = args.run.startswith(("http://", "https://"))
        output = args.output or (Path("swarm.png") if is_url else Path(args.run).with_suffix(".png"))
        samples = samples_of(_fetch(args.run, "history.json")) if is_url else read_samples(Path(args.run))
        plot_traffic(samples, output)
        print(output)
        return 0
    url = args.url or _configured_url(load(args.config))
    if args.json:
        print(json.dumps(fetch_status(url)))
    elif args.once or not sys.stdout.isatty():
        _print(show(fetch_status(url), None))
    else:
        _watch(url, args.interval, args.record)
    return 0


def fetch_status(url: str) -> dict[str, Any]:
    """Return the status of the central services at `url`; raises CatalogueUnreachable."""
    document = _fetch(url, "status.json")
    if "server" not in document:
        raise CatalogueUnreachable(f"{url} is no status of central services")
    return document


def _fetch(url: str, name: str) -> dict[str, Any]:
    address = f"{url.rstrip('/')}/{name}"
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer:
            document = json.loads(answer.read(MAX_STATUS_BYTES))
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise CatalogueUnreachable(f"{address}: {reason}", remedy="give the URL of jobagent serve") from error
    if not isinstance(document, dict):
        raise CatalogueUnreachable(f"{address} is no answer of central services")
    return document


def traffic(status: dict[str, Any]) -> Sample:
    """Totals of one look: web server and seeder count as the server."""
    server = int(status["server"]["seeder"].get("upload_bytes", 0)) + int(status["server"]["http_bytes"])
    received = int(status["server"]["received_bytes"])
    return Sample(float(status["time_s"]), server, received)


def _configured_url(config: Config) -> str:
    from jobagent_catalogue.settings import CatalogueSettings

    config.declare("catalogue", CatalogueSettings)
    urls = [u for u in config.get(CatalogueSettings).urls if u.startswith("http")]
    if not urls:
        raise UsageError("which central services?", remedy="give a URL, or set [catalogue] urls")
    return urls[0]


def _watch(url: str, interval_s: float, record: Path | None) -> None:
    from rich.live import Live

    samples: list[Sample] = []
    looks: deque[dict[str, Any]] = deque()
    with Live(auto_refresh=False, screen=False) as live:
        while True:
            try:
                status = fetch_status(url)
            except CatalogueUnreachable as error:
                if not samples:
                    raise
                live.update(f"{error.cause_line}; trying again", refresh=True)
                time.sleep(interval_s)
                continue
            samples.append(traffic(status))
            if record is not None:
                write_samples(samples, record)
            while looks and status["time_s"] - looks[0]["time_s"] > WINDOW_S:
                looks.popleft()
            live.update(show(status, looks[0] if looks else None), refresh=True)
            looks.append(status)
            time.sleep(interval_s)


def show(status: dict[str, Any], before: dict[str, Any] | None) -> Group:
    """Draw one look; rates are those since the look `before`."""
    from rich.console import Group

    catalogue, server, total = status["catalogue"], status["server"], traffic(status)
    state = f"catalogue version {catalogue['version']}" if catalogue["is_verified"] else "catalogue NOT VERIFIED"
    received = max(total.received_bytes, total.server_bytes)
    share = f" ({100 * total.server_bytes / received:.1f} %)" if received else ""
    title = (
        f"{state} · {server['peers']} peers · delivered {_bytes(total.received_bytes)}, of which this server sent "
    )
    title += f"{_bytes(total.server_bytes)}{share}"
    if before is not None:
        then, seconds = traffic(before), max(total.time_s - before["time_s"], 1e-9)
        title += f" · now {_rate(total.received_bytes - then.received_bytes, seconds)}, of which "
        title += _rate(total.server_bytes - then.server_bytes, seconds)
    parts: list[str | Table] = [title, "", _packages(status, before)]
    if any(status["sites"]):
        parts += ["", _sites(status, before)]
    return Group(*parts)


def _packages(status: dict[str, Any], before: dict[str, Any] | None) -> Table:
    columns = ("size", "complete", "downloading", "completions", "copies", "delivered", "rate")
    table = _table("package", "platform", "sites", numbers=columns)
    earlier = {p["sha256"]: p["transferred_bytes"] for p in before["packages"]} if before else {}
    seconds = max(status["time_s"] - before["time_s"], 1e-9) if before else 1.0
    in_order = sorted(status["packages"], key=lambda p: (-p["incomplete"], -p["complete"], p["package"]))
    for package in in_order:
        sites = " ".join(f"{name or 'elsewhere'}:{sum(counts)}" for name, counts in sorted(package["sites"].items()))
        delivered = package["transferred_bytes"]
        table.add_row(
            package["package"] + ("" if package["state"] == "released" else f" ({package['state']})"),
            package["platform"],
            sites,
            _bytes(package["size_bytes"]),
            str(package["complete"]),
            str(package["incomplete"]),
            str(package["downloaded"]),
            f"{package['sent_bytes'] / max(1, package['size_bytes']):.2f}",
            _bytes(delivered),
            _rate(delivered - earlier.get(package["sha256"], delivered), seconds),
        )
    return table


def _sites(status: dict[str, Any], before: dict[str, Any] | None) -> Table:
    table = _table("site", numbers=("complete", "downloading", "received", "rate"))
    seconds = max(status["time_s"] - before["time_s"], 1e-9) if before else 1.0
    for name, numbers in status["sites"].items():
        received = numbers["received_bytes"]
        then = before["sites"].get(name, {"received_bytes": 0})["received_bytes"] if before else received
        counts = (str(numbers["complete"]), str(numbers["incomplete"]))
        table.add_row(name or "elsewhere", *counts, _bytes(received), _rate(received - then, seconds))
    return table


def _table(*names: str, numbers: tuple[str, ...]) -> Table:
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in names:
        table.add_column(name, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _rate(count: float, seconds: float) -> str:
    return f"{_bytes(count / seconds)}/s" if count > 0 else "–"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _print(table: Group) -> None:
    from rich.console import Console

    width = None if sys.stdout.isatty() else 200
    Console(width=width).print(table)
