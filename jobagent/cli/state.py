"""Changing the state of a published package: what `withdraw` and `ban` share."""

from __future__ import annotations

import argparse

from jobagent.cli import managing
from jobagent.errors import UsageError
from jobagent.model import PackageId, PackageState


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("package", metavar="PACKAGE", help="VO_ORG@Name::version")
    parser.add_argument("--reason", default="", help="one line that users will see")
    parser.add_argument("--platform", default="", metavar="P", help="only on this platform")
    parser.add_argument("--undo", action="store_true", help="release it again")
    managing.arguments(parser)


def change(args: argparse.Namespace, state: PackageState) -> int:
    """Sign the new state with the VO's keys."""
    package = PackageId.parse(args.package)
    if args.undo:
        state = PackageState.RELEASED
    elif state is PackageState.BANNED and not args.reason:
        raise UsageError("a ban needs a reason", remedy="give --reason: it is what users will read")
    signed = managing.open_repository(args).set_state(package, state, reason=args.reason, platform=args.platform)
    return managing.tell(f"{package} is {state.value}", signed)
