"""`jobagent ban`: forbid a package everywhere: no job gets it any more, caches drop it."""

from __future__ import annotations

import argparse

from jobagent.cli import state
from jobagent.model import PackageState


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    state.arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Sign the new state."""
    return state.change(args, PackageState.BANNED)
