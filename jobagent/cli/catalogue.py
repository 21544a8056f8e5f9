"""`jobagent catalogue`: make a catalogue, collect signatures, keep it from expiring, check it."""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

from jobagent.central.catalogue.changes import changes
from jobagent.central.catalogue.repository import KINDS, Repository
from jobagent.cli import managing
from jobagent.errors import UsageError

ACTIONS = {
    "init": "make a catalogue in an empty directory, and keys where there are none",
    "sign": "add signatures of the keys at hand to what waits for them",
    "refresh": "publish all that is completely signed, and renew snapshot and timestamp; needs the online key",
    "check": "verify everything: signatures, expiry, entries, files",
    "rotate": "replace the keys of root, targets or online",
    "renew": "sign a role again for a new expiry: root, targets or a VO",
    "discard": "give up a change that waits for signatures",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for action, text in ACTIONS.items():
        command = commands.add_parser(action, help=text, description=text[0].upper() + text[1:] + ".")
        command.add_argument("catalogue", metavar="DIR", type=Path, nargs="?", help="directory of the catalogue")
        managing.keys_argument(command)
        if action == "sign":
            command.add_argument("--role", action="append", default=[], help="only this role (default: all)")
            command.add_argument("--yes", action="store_true", help="do not ask")
        if action == "refresh":
            command.add_argument("--force", action="store_true", help="also where nothing changed or is due")
        if action == "check":
            command.add_argument("--deep", action="store_true", help="also read every archive and object")
        if action == "rotate":
            command.add_argument("--role", choices=sorted(KINDS), required=True)
            command.add_argument("--key", action="append", required=True, help="each of the new keys: file or name")
            command.add_argument("--threshold", type=int, metavar="N")
        if action in {"renew", "discard"}:
            command.add_argument("--role", required=True)


def run(args: argparse.Namespace) -> int:
    """Do what was asked."""
    if args.action == "init":
        return _init(args)
    repository = managing.open_repository(args)
    match args.action:
        case "sign":
            return _sign(repository, args)
        case "refresh":
            return managing.tell("refreshed", repository.refresh(is_forced=args.force))
        case "check":
            return _check(repository, args)
        case "rotate":
            keys = managing.public_keys(args.key, managing.open_keys(args, is_needed=False))
            return managing.tell(f"new keys of {args.role}", repository.rotate(args.role, keys, args.threshold))
        case "renew":
            return managing.tell(f"{args.role} renewed", repository.renew(args.role))
        case _:
            repository.discard(args.role)
            print(f"{args.role} waits no longer")
            return 0


def _init(args: argparse.Namespace) -> int:
    if args.catalogue is None:
        raise UsageError("where? jobagent catalogue init DIR --keys DIR")
    keys = managing.open_keys(args)
    assert keys is not None  # it is needed, so it is there
    repository, signed = Repository.create(args.catalogue, keys)
    managing.tell(f"catalogue {args.catalogue}, keys in {keys.directory}", signed)
    if signed.is_published:
        digest = hashlib.sha256(repository.root_bytes()).hexdigest()
        print(f"give clients {args.catalogue / 'metadata' / '1.root.json'}, sha256 {digest}")
        print("take the keys of root and targets off this machine; only the online key is needed to refresh")
    return 0


def _sign(repository: Repository, args: argparse.Namespace) -> int:
    waiting = [w for w in repository.waiting() if not args.role or w.role in args.role]
    if not waiting:
        print("nothing waits for signatures")
        return 0
    for item in waiting:
        print(item)
        for line in changes(repository.shelf, item.role):
            print(f"  {line}")
    if not args.yes and not _is_agreed():
        print("not signed")
        return 1
    return managing.tell("signed with the keys at hand", repository.sign([w.role for w in waiting]))


def _is_agreed() -> bool:
    if not sys.stdin.isatty():
        raise UsageError("nobody is there to agree to that", remedy="read it, then give --yes")
    return input("sign this? [y/N] ").strip().lower() in {"y", "yes"}


def _check(repository: Repository, args: argparse.Namespace) -> int:
    has_errors = False
    for finding in repository.check(is_deep=args.deep):
        print(finding)
        has_errors = has_errors or finding.is_error
    if not has_errors:
        print(f"{repository.directory} is sound: {sum(1 for _ in repository.packages())} packages")
    return 1 if has_errors else 0
