"""`jobagent release ID`: end what `jobagent prepare` held, as an epilog does."""

from __future__ import annotations

import argparse

from jobagent.cli import ask
from jobagent.events import Events


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("id", metavar="ID", help="the job id of `jobagent prepare`, or the id that it answered")
    ask.arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Release; what is not held any more is no error, because an epilog may run twice."""
    with ask.at_hand(args, Events()) as asking:
        answer = asking("release", {"id": args.id})
    print(f"{answer['released']} packages released")
    return 0
