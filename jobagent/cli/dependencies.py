"""`jobagent dependencies`: what a package needs, as a tree, with the sizes of the downloads."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping

from jobagent.cli import reading
from jobagent.model import Package, PackageId


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("package", metavar="PACKAGE", help="[VO_ORG@]Name[::version]")
    parser.add_argument("--platform", metavar="P", default="", help="for this platform; default: the node's")
    reading.arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the closure, resolved as for a job."""
    catalogue, config = reading.open_catalogue(args)
    plan = reading.plan_of(reading.spec_of(args.package, config), catalogue, config, platform=args.platform)
    if args.json:
        reading.print_json([reading.as_json(package) for package in plan.packages])
        return 0
    packages = {package.id: package for package in plan.packages}
    for line in _tree(plan.requested[0], packages, set()):
        print(line)
    total_bytes = sum(package.archive.size_bytes for package in plan.packages)
    print(f"{len(plan.packages)} packages, {reading.size(total_bytes)} to download")
    return 0


def _tree(root: PackageId, packages: Mapping[PackageId, Package], seen: set[PackageId]) -> Iterator[str]:
    """Yield a line a package; one that was shown above is not opened again."""
    package = packages[root]
    again = " (see above)" if root in seen and package.dependencies else ""
    yield f"{root}  {reading.size(package.archive.size_bytes)}{again}"
    if root in seen:
        return
    seen.add(root)
    for number, dependency in enumerate(package.dependencies, 1):
        is_last = number == len(package.dependencies)
        for index, line in enumerate(_tree(dependency, packages, seen)):
            yield (("└─ " if is_last else "├─ ") if index == 0 else ("   " if is_last else "│  ")) + line
