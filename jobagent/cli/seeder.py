"""`jobagent seeder`: a seeder alone, for a catalogue directory; trackers come from `[swarm] trackers`."""

from __future__ import annotations

import argparse
from pathlib import Path

from jobagent.central.services.host import CentralHost, HostOptions
from jobagent.cli import serve
from jobagent.errors import UsageError
from jobagent_swarm.settings import SwarmSettings


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("directory", type=Path, metavar="DIRECTORY", help="catalogue directory with its archives")
    serve.listening(parser, port=0)


def run(args: argparse.Namespace) -> int:
    """Seed until SIGTERM or SIGINT; the port shows status and metrics."""
    config = serve.configuration(args.config)
    if not config.get(SwarmSettings).trackers:
        raise UsageError("a seeder alone needs trackers", remedy='set [swarm] trackers = ["http://…/announce"]')
    options = HostOptions(str(args.directory), host=args.host, port=args.port, is_tracking=False, is_serving=False)
    return serve.serve(CentralHost(options, config), args.port_file)
