"""`jobagent seeder`: a seeder alone, of a catalogue directory or, with `--site`, of what the nodes of a site use."""

from __future__ import annotations

import argparse
from pathlib import Path

from jobagent.central.services.host import CentralHost, HostOptions, SiteHost
from jobagent.cli import serve
from jobagent.errors import UsageError
from jobagent_swarm.settings import SwarmSettings


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "directory",
        type=Path,
        metavar="DIRECTORY",
        help="catalogue directory with its archives; with --site, where to keep archives",
    )
    parser.add_argument(
        "--site", action="store_true", help="keep what the nodes of this site use; configured as they are"
    )
    parser.add_argument("--quota", type=float, default=100.0, metavar="GB", help="with --site: disk space (100)")
    serve.listening(parser, port=0)


def run(args: argparse.Namespace) -> int:
    """Seed until SIGTERM or SIGINT; the port shows status and metrics."""
    config = serve.configuration(args.config)
    if args.site:
        if args.quota <= 0:
            raise UsageError(f"--quota is {args.quota:g} GB", remedy="give the disk space that it may use")
        site = SiteHost(args.directory, int(args.quota * 1e9), config, host=args.host, port=args.port)
        return serve.serve(site, args.port_file)
    if not config.get(SwarmSettings).trackers:
        raise UsageError("a seeder alone needs trackers", remedy='set [swarm] trackers = ["http://…/announce"]')
    options = HostOptions(str(args.directory), host=args.host, port=args.port, is_tracking=False, is_serving=False)
    return serve.serve(CentralHost(options, config), args.port_file)
