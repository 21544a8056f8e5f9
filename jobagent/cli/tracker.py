"""`jobagent tracker`: a tracker alone, for a catalogue on this host or elsewhere."""

from __future__ import annotations

import argparse
from pathlib import Path

from jobagent.central.services.host import CentralHost, HostOptions
from jobagent.cli import serve


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("catalogue", metavar="CATALOGUE", help="directory, or URL of the catalogue")
    parser.add_argument("--root", type=Path, metavar="FILE", help="the catalogue's first root metadata, for a URL")
    serve.listening(parser, port=6969)


def run(args: argparse.Namespace) -> int:
    """Track until SIGTERM or SIGINT."""
    options = HostOptions(
        args.catalogue,
        host=args.host,
        port=args.port,
        root=args.root,
        advertise=args.advertise,
        is_seeding=False,
        is_serving=False,
    )
    return serve.serve(CentralHost(options, serve.configuration(args.config)), args.port_file)
