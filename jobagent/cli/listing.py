"""`jobagent list`: the packages of the catalogue."""

from __future__ import annotations

import argparse
import fnmatch
import sys
import time
from collections.abc import Iterator

from jobagent.cli import reading
from jobagent.contracts import Catalogue
from jobagent.model import Package, PackageState, is_update, namespace_of

WIDTH = 400  # columns of a file or pipe: nothing is folded there
STYLES = {PackageState.RELEASED: "green", PackageState.WITHDRAWN: "yellow", PackageState.BANNED: "red"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("pattern", nargs="?", default="*", help="names to list, as in 'ROOT*'")
    parser.add_argument("--vo", metavar="VO", help="only this VO: alice or VO_ALICE")
    parser.add_argument("--platform", metavar="P", help="only for this platform")
    parser.add_argument("--released", action="store_true", help="leave out what is withdrawn or banned")
    reading.arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the list."""
    catalogue, _ = reading.open_catalogue(args)
    packages = sorted(
        (p for p in _packages(catalogue, args.vo, args.pattern) if args.platform in {None, p.platform}),
        key=lambda p: (p.id.namespace, p.id.name.lower(), -p.published_s, p.id.version, p.platform),
    )
    if args.released:
        packages = [p for p in packages if p.state is PackageState.RELEASED]
    if args.json:
        reading.print_json([reading.as_json(p) for p in packages])
    elif packages:
        _print_table(packages)
    else:
        print("no packages")
    return 0


def _packages(catalogue: Catalogue, vo: str | None, pattern: str) -> Iterator[Package]:
    wanted = namespace_of(vo) if vo and vo.upper().startswith("VO_") else vo
    for namespace in catalogue.namespaces():
        if wanted in {None, namespace}:
            for name in catalogue.names(namespace):
                if fnmatch.fnmatchcase(name.lower(), pattern.lower()):
                    yield from (p for p in catalogue.versions(namespace, name) if not is_update(p.platform))


def _print_table(packages: list[Package]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for column in ("package", "platform", "published", "size", "state"):
        table.add_column(column, no_wrap=True)
    table.add_column("description", overflow="fold")
    for package in packages:
        table.add_row(
            escape(str(package.id)),
            package.platform,
            time.strftime("%Y-%m-%d", time.gmtime(package.published_s)),
            reading.size(package.archive.size_bytes),
            f"[{STYLES[package.state]}]{package.state.value}[/]",
            escape(f"{package.description}{f' ({package.reason})' if package.reason else ''}"),
        )
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)
