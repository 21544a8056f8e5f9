"""Working on a catalogue from the command line: its directory, the keys, and what came of a signature.

Shared by `catalogue`, `vo`, `publish`, `withdraw` and `ban`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from securesystemslib.signer import SSlibKey

from jobagent.central.catalogue.keys import KeyStore, read_public
from jobagent.central.catalogue.repository import Repository, Signed
from jobagent.errors import UsageError

CATALOGUE_VARIABLE = "JOBAGENT_CATALOGUE"
KEYS_VARIABLE = "JOBAGENT_KEYS"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the catalogue's directory and the keys, by option or environment variable."""
    parser.add_argument(
        "--catalogue", metavar="DIR", type=Path, help=f"directory of the catalogue (${CATALOGUE_VARIABLE})"
    )
    keys_argument(parser)


def keys_argument(parser: argparse.ArgumentParser) -> None:
    """Declare the directory of keys."""
    parser.add_argument("--keys", metavar="DIR", type=Path, help=f"directory of signing keys (${KEYS_VARIABLE})")


def open_repository(args: argparse.Namespace) -> Repository:
    """Return the catalogue that the command line names, with the keys at hand."""
    return Repository(_directory(args.catalogue, CATALOGUE_VARIABLE, "--catalogue"), open_keys(args, is_needed=False))


def open_keys(args: argparse.Namespace, *, is_needed: bool = True) -> KeyStore | None:
    """Return the keys that the command line names."""
    if args.keys is None and not os.environ.get(KEYS_VARIABLE) and not is_needed:
        return None
    return KeyStore(_directory(args.keys, KEYS_VARIABLE, "--keys"))


def public_keys(names: Sequence[str], keys: KeyStore | None) -> list[SSlibKey]:
    """Return the keys that the command line names: files (key or certificate), or names in the key directory."""
    found = []
    for name in names:
        if Path(name).is_file():
            found.append(read_public(Path(name)))
        elif keys is not None:
            found.append(keys.named(name).key)
        else:
            raise UsageError(f"there is no file {name}", remedy="give --keys to name keys of that directory")
    return found


def tell(done: str, signed: Signed) -> int:
    """Print what came of a signature; the exit code is 0 although others may have to sign."""
    print(done)
    for waiting in signed.waiting:
        is_enough = waiting.signatures >= waiting.threshold
        what = "that is enough" if is_enough else "let another holder of its keys run: jobagent catalogue sign"
        print(f"  waits: {waiting}; {what}")
    for note in signed.notes:
        print(f"  note: {note}")
    if signed.is_published:
        print("  published")
    return 0


def _directory(given: Path | None, variable: str, option: str) -> Path:
    if given is not None:
        return given
    if value := os.environ.get(variable):
        return Path(value)
    raise UsageError(f"which directory? give {option} DIR or set ${variable}")
