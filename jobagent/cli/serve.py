"""`jobagent serve`: catalogue, tracker, seeder and status page of a grid in one process."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path

from jobagent import durable
from jobagent.central.services.host import CentralHost, HostOptions, SiteHost
from jobagent.central.services.settings import CentralSettings
from jobagent.config import Config, load
from jobagent_catalogue.settings import CatalogueSettings
from jobagent_swarm.settings import SwarmSettings


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "directory", type=Path, metavar="DIRECTORY", help="catalogue, as made by jobagent catalogue init"
    )
    parser.add_argument("--keys", type=Path, metavar="DIR", help="keys, for renewing the timestamp before it expires")
    listening(parser, port=8080)


def listening(parser: argparse.ArgumentParser, *, port: int) -> None:
    """Declare the arguments that all central services share."""
    parser.add_argument(
        "--host", default="0.0.0.0", metavar="ADDRESS", help="address to listen on; :: is IPv6 and IPv4"
    )
    parser.add_argument("--port", type=int, default=port, help=f"0: any free one (default: {port})")
    parser.add_argument("--port-file", type=Path, metavar="FILE", help="write the port here when everything answers")
    parser.add_argument("--advertise", default="", metavar="ADDRESS", help="the seeder's address behind NAT")


def configuration(path: Path | None) -> Config:
    """Load the host's configuration: `[central]`, `[swarm]`, `[catalogue]` and `[site]`."""
    config = load(path)
    config.declare("catalogue", CatalogueSettings)
    config.declare("central", CentralSettings)
    config.declare("swarm", SwarmSettings)
    return config


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    options = HostOptions(
        str(args.directory), host=args.host, port=args.port, keys=args.keys, advertise=args.advertise
    )
    return serve(CentralHost(options, configuration(args.config)), args.port_file)


def serve(host: CentralHost | SiteHost, port_file: Path | None) -> int:
    """Run `host` until a signal; prints its URL when everything answers."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    try:
        host.start()
        print(host.web.url, flush=True)
        if host.watch.last_error:
            print(f"jobagent: catalogue: {host.watch.last_error}", file=sys.stderr)
        if port_file is not None:
            durable.write(port_file, f"{host.web.port}\n".encode())
        ended.wait()
    finally:
        host.stop()
    return 0
