"""`jobagent vo`: which VOs sign packages of this catalogue, and with which keys."""

from __future__ import annotations

import argparse

from securesystemslib.signer import SSlibKey

from jobagent.central.catalogue.keys import KeyStore
from jobagent.central.catalogue.repository import Repository
from jobagent.cli import managing
from jobagent.errors import UsageError
from jobagent.model import namespace_of


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    texts = {
        "add": "let a VO sign packages; needs the keys of targets",
        "rotate": "replace the keys of a VO; needs the keys of targets and the VO's new ones",
        "revoke": "take a key from a VO, or the VO out of the catalogue; needs the keys of targets",
        "list": "list the VOs with their keys",
    }
    for action, text in texts.items():
        command = commands.add_parser(action, help=text)
        managing.arguments(command)
        if action == "list":
            continue
        command.add_argument("vo", metavar="VO", help="as in alice or VO_ALICE")
        if action == "revoke":
            command.add_argument("--key", metavar="KEY", help="only this key: its name, or the start of its id")
            continue
        command.add_argument(
            "--key",
            metavar="KEY",
            action="append",
            default=[],
            help="public key or certificate: a file, or a name in --keys (default: VO-N there, made where missing)",
        )
        command.add_argument("--threshold", type=int, metavar="N", help="signatures that a change needs")


def run(args: argparse.Namespace) -> int:
    """Do what was asked."""
    repository = managing.open_repository(args)
    if args.action == "list":
        return _list(repository)
    vo = namespace_of(args.vo) if args.vo.upper().startswith("VO_") else args.vo
    keys = managing.open_keys(args, is_needed=False)
    if args.action == "add":
        chosen = managing.public_keys(args.key, keys) if args.key else _own_keys(vo, keys)
        return managing.tell(f"VO {vo} added", repository.add_vo(vo, chosen, args.threshold or 1))
    if args.action == "rotate":
        if not args.key:
            raise UsageError("which keys? give --key for each of the new ones")
        chosen = managing.public_keys(args.key, keys)
        return managing.tell(f"keys of VO {vo} replaced", repository.rotate_vo(vo, chosen, args.threshold))
    if args.key is None:
        return managing.tell(f"VO {vo} revoked", repository.revoke_vo(vo))
    known, threshold = repository.vo_keys(vo)
    named = {info.name: info.id for info in keys.keys().values()} if keys is not None else {}
    key_id = named.get(args.key, args.key)
    left = [key for key in known if not key.keyid.startswith(key_id)]
    if len(left) != len(known) - 1:
        raise UsageError(f"{len(known) - len(left)} keys of VO {vo} are called {args.key}", remedy="jobagent vo list")
    return managing.tell(f"key {args.key} taken from VO {vo}", repository.rotate_vo(vo, left, threshold))


def _list(repository: Repository) -> int:
    for vo in repository.namespaces():
        keys, threshold = repository.vo_keys(vo)
        print(f"{vo}: {threshold} of {len(keys)} keys")
        for key in keys:
            print(f"  {key.keyid} {key.scheme}")
    return 0


def _own_keys(vo: str, keys: KeyStore | None) -> list[SSlibKey]:
    """Return the keys of a VO that are in the key directory by name; a first one is made where there are none."""
    if keys is None:
        raise UsageError("which keys? give --key, or --keys DIR to have one made there")
    found = [info for info in keys.keys().values() if info.name == vo or info.name.startswith(f"{vo}-")]
    return [info.key for info in found or [keys.new(f"{vo}-1")]]
