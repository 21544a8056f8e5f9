"""`jobagent swarm`: watch the swarms of a central server, and draw what a run did."""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobagent.central.services.plot import Sample, plot_traffic, read_samples, write_samples
from jobagent.config import Config, load
from jobagent.errors import CatalogueUnreachable, UsageError

if TYPE_CHECKING:
    from rich.table import Table

TIMEOUT_S = 10.0
MAX_STATUS_BYTES = 64 << 20


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
    plot.add_argument("run", type=Path, metavar="RUN", help="file of --record or of a benchmark")
    plot.add_argument("-o", "--output", type=Path, metavar="PNG", help="default: RUN with the suffix .png")


def run(args: argparse.Namespace) -> int:
    """Show or draw."""
    if args.action == "plot":
        output = args.output or args.run.with_suffix(".png")
        plot_traffic(read_samples(args.run), output)
        print(output)
        return 0
    url = args.url or _configured_url(load(args.config))
    if args.json:
        print(json.dumps(fetch_status(url)))
    elif args.once or not sys.stdout.isatty():
        _print(_table(fetch_status(url), None))
    else:
        _watch(url, args.interval, args.record)
    return 0


def fetch_status(url: str) -> dict[str, Any]:
    """Return the status of the central services at `url`; raises CatalogueUnreachable."""
    address = f"{url.rstrip('/')}/status.json"
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer:
            document = json.loads(answer.read(MAX_STATUS_BYTES))
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise CatalogueUnreachable(f"{address}: {reason}", remedy="give the URL of jobagent serve") from error
    if not isinstance(document, dict) or "server" not in document:
        raise CatalogueUnreachable(f"{address} is no status of central services")
    return document


def traffic(status: dict[str, Any]) -> Sample:
    """Totals of one look: web server and seeder count as the server."""
    server = int(status["server"]["seeder"].get("upload_bytes", 0)) + int(status["server"]["http_bytes"])
    received = sum(int(p["transferred_bytes"]) for p in status["packages"])
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
    previous: dict[str, Any] | None = None
    with Live(auto_refresh=False, screen=False) as live:
        while True:
            status = fetch_status(url)
            samples.append(traffic(status))
            if record is not None:
                write_samples(samples, record)
            live.update(_table(status, previous), refresh=True)
            previous = status
            time.sleep(interval_s)


def _table(status: dict[str, Any], previous: dict[str, Any] | None) -> Table:
    from rich.table import Table

    catalogue, server = status["catalogue"], status["server"]
    state = f"catalogue version {catalogue['version']}" if catalogue["is_verified"] else "catalogue NOT VERIFIED"
    sample = traffic(status)
    rate = f", {_rate(sample, traffic(previous))}" if previous else ""
    title = (
        f"{state}, {server['peers']} peers, sent by this server {_bytes(sample.server_bytes)}, "
        f"received by peers {_bytes(sample.received_bytes)}{rate}"
    )
    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for name in ("package", "platform", "sites"):
        table.add_column(name, no_wrap=True)
    for name in ("size", "complete", "downloading", "completions", "delivered"):
        table.add_column(name, justify="right", no_wrap=True)
    for package in status["packages"]:
        sites = " ".join(f"{name or 'elsewhere'}:{sum(counts)}" for name, counts in sorted(package["sites"].items()))
        table.add_row(
            package["package"] + ("" if package["state"] == "released" else f" ({package['state']})"),
            package["platform"],
            sites,
            _bytes(package["size_bytes"]),
            str(package["complete"]),
            str(package["incomplete"]),
            str(package["downloaded"]),
            _bytes(package["transferred_bytes"]),
        )
    return table


def _rate(now: Sample, before: Sample) -> str:
    seconds = max(now.time_s - before.time_s, 1e-9)
    server, all_peers = now.server_bytes - before.server_bytes, now.received_bytes - before.received_bytes
    return f"{_bytes(server / seconds)}/s of {_bytes(all_peers / seconds)}/s"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _print(table: Table) -> None:
    from rich.console import Console

    width = None if sys.stdout.isatty() else 200
    Console(width=width).print(table)
