"""A TUF client on the command line, as the public conformance suite (theupdateframework/tuf-conformance) asks for.

It drives TUF's own client with the downloader and the limits of this plugin:

    python -m jobagent_catalogue.conformance --metadata-dir DIR init ROOT
    python -m jobagent_catalogue.conformance --metadata-dir DIR --metadata-url URL refresh
    python -m jobagent_catalogue.conformance --metadata-dir DIR --metadata-url URL --target-name PATH
        --target-base-url URL --target-dir DIR download

Exit code 0, or 1 with the reason on stderr.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tuf.api.exceptions import DownloadError, RepositoryError
from tuf.ngclient import Updater

from jobagent_catalogue import chain
from jobagent_catalogue.settings import CatalogueSettings
from jobagent_catalogue.web import Web

CONFIG = dataclasses.replace(chain.LIMITS, prefix_targets_with_hash=True)


class Failure(Exception):
    """The command cannot be done; says why."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command."""
    args = _parser().parse_args(argv)
    try:
        if args.command == "init":
            _init(args.metadata_dir, args.root)
        else:
            updater = _updater(args)
            updater.refresh()
            for name in args.target_name if args.command == "download" else ():
                _download(updater, name)
    except (Failure, DownloadError, RepositoryError, OSError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jobagent-tuf-conformance", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--metadata-dir", type=Path, required=True)
    parser.add_argument("--metadata-url")
    parser.add_argument("--target-name", action="append", default=[])
    parser.add_argument("--target-base-url")
    parser.add_argument("--target-dir", type=Path)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init").add_argument("root", type=Path)
    commands.add_parser("refresh")
    commands.add_parser("download")
    return parser


def _init(metadata: Path, root: Path) -> None:
    metadata.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(root, metadata / "root.json")


def _updater(args: argparse.Namespace) -> Updater:
    if args.metadata_url is None:
        raise Failure("--metadata-url is needed")
    if args.command == "download" and not (args.target_name and args.target_base_url and args.target_dir):
        raise Failure("--target-name, --target-base-url and --target-dir are needed")
    if args.target_dir is not None:
        args.target_dir.mkdir(parents=True, exist_ok=True)
    return Updater(
        str(args.metadata_dir),
        args.metadata_url,
        target_dir=str(args.target_dir) if args.target_dir else None,
        target_base_url=args.target_base_url,
        fetcher=chain.Fetcher(Web(CatalogueSettings())),
        config=CONFIG,
        bootstrap=None,  # the suite keeps the trusted root in the metadata directory
    )


def _download(updater: Updater, name: str) -> None:
    target = updater.get_targetinfo(name)
    if target is None:
        raise Failure(f"no target {name}")
    if updater.find_cached_target(target) is None:
        updater.download_target(target)


if __name__ == "__main__":
    sys.exit(main())
