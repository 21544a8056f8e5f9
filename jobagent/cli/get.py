"""`jobagent get`: download the archive of a package, from swarm or web, verified, without installing it."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from jobagent.cli import reading
from jobagent.cli.borrowed import borrowed_kit
from jobagent.config import JobSettings
from jobagent.errors import PackageBanned, SiteError, UsageError, WrongPlatform
from jobagent.job import build
from jobagent.job.resolve import SOURCE_PLATFORM
from jobagent.model import Package, PackageState


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("package", metavar="PACKAGE", help="[VO_ORG@]Name[::version]")
    parser.add_argument("-o", "--output", metavar="PATH", type=Path, default=Path(), help="file or directory")
    parser.add_argument("--platform", metavar="P", default="", help="for this platform; default: the node's")
    reading.arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Download, verify, and move into place; nothing is left where that fails."""
    config = reading.configured(args)
    with borrowed_kit(config) as kit:
        candidates = reading.versions_of(reading.spec_of(args.package, config), kit.catalogue)
        package = choose(candidates, args.platform or kit.platform)
        target = args.output / package.archive.file_name if args.output.is_dir() else args.output
        if target.exists():
            raise UsageError(f"{target} exists", remedy="name another file with -o")
        try:
            with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as staging:
                partial = Path(staging) / package.archive.file_name
                deadline = time.monotonic() + config.get(JobSettings).fetch_timeout_s
                torrent = kit.catalogue.torrent(package.archive) if kit.seeders else None
                traffic = build.fetch(package, kit, torrent, partial, deadline)
                build.verify(package, kit, partial)
                os.replace(partial, target)
        except OSError as error:
            raise SiteError(f"cannot write {target}: {error.strerror}") from error
    if args.json:
        reading.print_json({**reading.as_json(package), "file": str(target), "bytes": traffic.total_bytes})
    else:
        print(f"{target}: {package.id} for {package.platform}, {reading.size(package.archive.size_bytes)}, verified")
    return 0


def choose(candidates: Sequence[Package], platform: str) -> Package:
    """Return the newest released of `candidates` for a platform, or the newest withdrawn one; never a banned one.

    Raises:
        WrongPlatform, PackageBanned: There is none.
    """
    here = [p for p in candidates if p.platform in {platform, SOURCE_PLATFORM}]
    if not here:
        there = ", ".join(sorted({p.platform for p in candidates}))
        raise WrongPlatform(f"{candidates[0].id} is not published for {platform}", remedy=f"it is for {there}")
    for state in (PackageState.RELEASED, PackageState.WITHDRAWN):
        if found := next((p for p in here if p.state is state), None):
            return found
    raise PackageBanned(f"{here[0].id} is banned by its VO: {here[0].reason}", remedy="use another version")
