"""`jobagent keys`: make and inspect signing keys."""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

from jobagent import durable
from jobagent.central.catalogue.keys import KeyInfo, KeyStore, read_public
from jobagent.central.services.tokens import MAX_LIFETIME_S, Claims, issue
from jobagent.cli import managing, reading
from jobagent.errors import UsageError
from jobagent.model import namespace_of


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    new = commands.add_parser("new", help="make a key; $JOBAGENT_PASSPHRASE or a prompt gives its passphrase")
    new.add_argument("name", metavar="NAME", help="as in alice-1; the files are NAME.pem and NAME.pub")
    new.add_argument("--no-passphrase", action="store_true", help="keep the private half unencrypted, mode 600")
    managing.keys_argument(new)
    token = commands.add_parser("token", help="note a key of a PKCS#11 token; $PYKCS11LIB names its library")
    token.add_argument("name", metavar="NAME")
    token.add_argument("--slot", type=int, default=2, help="id of the key on the token (default 2, PIV slot 9c)")
    token.add_argument("--label", help="label of the token, where there are several")
    managing.keys_argument(token)
    announce = commands.add_parser("announce", help="issue a token that lets the nodes of a VO into its swarms")
    announce.add_argument(
        "name", metavar="NAME", help="the key whose public half the tracker has as [central] token_keys"
    )
    announce.add_argument("--vo", required=True, help="as in alice or VO_ALICE")
    announce.add_argument("--site", default="", help="the site that its bearers are of")
    announce.add_argument("--hours", type=float, default=24.0, help="how long it is valid (24, at most 168)")
    announce.add_argument("--output", type=Path, metavar="FILE", help="write it here, mode 600; else it is printed")
    managing.keys_argument(announce)
    show = commands.add_parser("show", help="list the keys of a directory, or show a public key or certificate")
    show.add_argument("file", metavar="FILE", nargs="?", type=Path, help="key, certificate or directory")
    show.add_argument("--json", action="store_true", help="print JSON")
    managing.keys_argument(show)


def run(args: argparse.Namespace) -> int:
    """Do what was asked."""
    if args.action == "show":
        return _show(args)
    keys = managing.open_keys(args)
    assert keys is not None  # it is needed, so it is there
    if args.action == "announce":
        return _announce(args, keys)
    if args.action == "new":
        info = keys.new(args.name, is_encrypted=not args.no_passphrase)
    else:
        info = keys.adopt_token(args.name, slot=args.slot, label=args.label)
    print(f"{info.name} {info.id} ({info.home}); its public half is {keys.directory / info.name}.pub")
    return 0


def _announce(args: argparse.Namespace, keys: KeyStore) -> int:
    if not 0 < args.hours * 3600 <= MAX_LIFETIME_S:
        raise UsageError(f"--hours is {args.hours:g}", remedy=f"give at most {MAX_LIFETIME_S // 3600}")
    namespace = namespace_of(args.vo) if args.vo.upper().startswith("VO_") else args.vo
    token = issue(Claims(namespace, int(time.time() + args.hours * 3600), args.site), keys.announcing(args.name))
    if args.output is None:
        print(token)
        return 0
    try:
        durable.write(args.output, token.encode() + b"\n", mode=0o600)
    except OSError as error:
        raise UsageError(f"cannot write {args.output}: {error.strerror}") from error
    print(f"token for VO {namespace}, valid {args.hours:g} hours, in {args.output}")
    return 0


def _show(args: argparse.Namespace) -> int:
    if args.file is not None and args.file.is_dir():
        infos = _all(KeyStore(args.file))
    elif args.file is not None:
        infos = [KeyInfo(args.file.stem, read_public(args.file), "")]
    else:
        keys = managing.open_keys(args)
        infos = _all(keys) if keys is not None else []
    if args.json:
        rows = [{"name": i.name, "id": i.id, "scheme": i.key.scheme, "private": i.home} for i in infos]
        reading.print_json(rows)
        return 0
    for info in infos:
        print(f"{info.name:<16} {info.id} {info.key.scheme}{f', private half: {info.home}' if info.home else ''}")
    return 0


def _all(keys: KeyStore) -> list[KeyInfo]:
    infos = sorted(keys.keys().values(), key=lambda info: info.name)
    if not infos:
        raise UsageError(f"{keys.directory} holds no keys", remedy="jobagent keys new NAME")
    return [dataclasses.replace(info) for info in infos]
