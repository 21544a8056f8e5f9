"""`jobagent plugins`: which plugins there are, whether they are on, and which hooks they implement."""

from __future__ import annotations

import argparse
import json

from jobagent import config as configuration
from jobagent.pluginmanager import load


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the list."""
    infos = load(configuration.load(args.config)).infos
    if args.json:
        print(json.dumps([info._asdict() for info in infos], indent=2))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table("plugin", "distribution", "state", "hooks", box=None, header_style="bold")
    for info in infos:
        hooks = ", ".join(h.removeprefix("jobagent_") for h in info.hooks)
        table.add_row(info.name, info.distribution, info.state, hooks)
    Console().print(table)
    return 0
