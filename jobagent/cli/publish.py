"""`jobagent publish`: make a package from what there is and sign it into the catalogue."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from jobagent import config as configuration
from jobagent.central.packaging import pack, provenance
from jobagent.central.packaging.content import Given, Source
from jobagent.central.packaging.sources import DataFile, Directory, Tarball
from jobagent.central.publish import Edition, Published, Publisher
from jobagent.cli import managing, reading
from jobagent.cli.progress import ProgressDisplay
from jobagent.config import JobSettings
from jobagent.errors import UsageError
from jobagent.events import Events
from jobagent.job.kit import platform_of
from jobagent.model import EnvironmentAction, EnvironmentChange, PackageSpec, namespace_of

EPILOG = """\
examples:
  jobagent publish --vo alice --interpreter
  jobagent publish --vo alice --wheel root==0.1a12 --name ROOT --depends Python
  jobagent publish --vo alice --tree /opt/geant3 --name GEANT3 --version v4-2 --depends ROOT::v6-36
  jobagent publish --vo alice --alibuild sw O2/v1.2-1
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    source = parser.add_argument_group("what to publish (one of)").add_mutually_exclusive_group(required=True)
    source.add_argument("--tree", type=Path, metavar="DIR", help="an installed tree")
    source.add_argument("--tarball", type=Path, metavar="FILE", help="a tar of an installed tree, compressed or not")
    source.add_argument("--wheel", metavar="NAME==VERSION", help="a wheel (or its file) and all wheels that it needs")
    source.add_argument("--interpreter", action="store_true", help="the Python that runs this command")
    source.add_argument("--cxx-headers", action="store_true", help="this machine's C++ headers, which ROOT needs")
    source.add_argument("--file", type=Path, metavar="FILE", help="data: one file that is not unpacked")
    source.add_argument(
        "--alibuild", nargs=2, metavar=("DIR", "PKG/VERSION"), help="a package that alibuild made, and all it needs"
    )
    parser.add_argument("--with-libc", action="store_true", help="give --interpreter its own C and C++ libraries: "
                        "it runs on older nodes, and loads nothing of the node's")  # fmt: skip
    entry = parser.add_argument_group("its entry")
    entry.add_argument("--vo", default="", help="the VO whose package it is (default: [job] vo)")
    entry.add_argument("--name", default="", help="name of the package")
    entry.add_argument("--version", default="", dest="package_version", help="version of the package")
    entry.add_argument("--platform", default="", help="platform (default: this machine's)")
    entry.add_argument("--prefix", default="", help="path that a tree was built for (default: where it is)")
    entry.add_argument("--depends", action="append", default=[], metavar="PACKAGE", help="a package that it needs")
    entry.add_argument(
        "--env", action="append", default=[], metavar="CHANGE", help="as in 'PREPEND PATH {root}/bin', 'SET X 1'"
    )
    entry.add_argument("--description", default="", help="one line about it")
    entry.add_argument("--licence", default="", help="its licence, best by SPDX name")
    entry.add_argument("--pfn", action="append", default=[], metavar="URL", help="where else the archive can be had")
    entry.add_argument("--sbom", type=Path, metavar="FILE", help="its CycloneDX bill of materials (default: made)")
    parser.add_argument("--skip-existing", action="store_true", help="leave what is published already as it is")
    parser.add_argument("--level", type=int, default=pack.DEFAULT_LEVEL, choices=range(1, 20), metavar="1…19",
                        help="compression level of zstd (default: %(default)s)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")
    managing.arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Publish."""
    config = configuration.load(args.config)
    vo = args.vo or config.get(JobSettings).vo
    if not vo:
        raise UsageError("which VO's package is it?", remedy="give --vo, or set [job] vo")
    namespace = namespace_of(vo) if vo.upper().startswith("VO_") else vo.lower()
    repository = managing.open_repository(args)
    events = Events()
    publisher = Publisher(repository, namespace, args.platform or platform_of(config), events, level=args.level)
    with ProgressDisplay(events), tempfile.TemporaryDirectory(prefix="jobagent-publish-") as downloads:
        pin = _pinned(args) if args.skip_existing else None
        if pin and (found := publisher.find(*pin)):  # then its closure is there as well, and nothing is downloaded
            published = Published((), (found,), None)
        else:
            published = publisher.publish(_editions(args, Path(downloads)), skip_existing=args.skip_existing)
    return _tell(published, as_json=args.json)


def _pinned(args: argparse.Namespace) -> tuple[str, str] | None:
    """Return name and version of the asked wheel where they are known before anything is downloaded."""
    pin = _wheels().exact_version(args.wheel) if args.wheel else None
    return (args.name or pin[0], args.package_version or pin[1]) if pin else None


def _editions(args: argparse.Namespace, downloads: Path) -> list[Edition]:
    """The package that was asked for gets all that the command line says, those that it needs only `--depends`."""
    given = Given(
        requires=[PackageSpec.parse(text) for text in args.depends],
        environment=[parse_change(text) for text in args.env],
        description=args.description,
        licence=args.licence,
        pfns=args.pfn,
        provenance=provenance.given(args.sbom) if args.sbom else b"",
    )
    *needed, asked = _sources(args, downloads)
    name, version = args.name or asked.name, args.package_version or asked.version
    if not name or not version:
        raise UsageError("what is the package called?", remedy="give --name and --version")
    common = Given(requires=given.requires)
    return [*(Edition(s, s.name, s.version, common) for s in needed), Edition(asked, name, version, given)]


def _sources(args: argparse.Namespace, downloads: Path) -> Sequence[Source]:
    """Return what the command line names, with all that it needs before it."""
    if args.with_libc and not args.interpreter:
        raise UsageError("--with-libc is for --interpreter")
    if args.wheel:
        found: Sequence[Source] = _wheels().closure(args.wheel, downloads, args.name)
        return found
    if args.alibuild:
        from jobagent.central.packaging import alibuild

        return alibuild.closure(Path(args.alibuild[0]), args.alibuild[1])
    if args.tree:
        return [Directory(args.tree, prefix=args.prefix)]
    if args.tarball:
        return [Tarball(args.tarball, prefix=args.prefix)]
    if args.file:
        return [DataFile(args.file)]
    if args.cxx_headers:
        from jobagent.central.packaging.cxxheaders import CxxHeaders

        return [CxxHeaders(downloads)]
    from jobagent.central.packaging.interpreter import Interpreter

    return [Interpreter(with_libc=args.with_libc)]


def _wheels() -> ModuleType:
    try:
        from jobagent.central.packaging import wheels
    except ImportError as error:
        raise UsageError(
            f"wheels need more than is installed: {error}", remedy="pip install jobagent[publish]"
        ) from error
    return wheels


def parse_change(text: str) -> EnvironmentChange:
    """Parse `ACTION NAME VALUE`; raises UsageError."""
    action, _, rest = text.strip().partition(" ")
    name, _, value = rest.strip().partition(" ")
    try:
        return EnvironmentChange(EnvironmentAction(action.lower()), name, value.strip())
    except ValueError as error:
        known = ", ".join(a.name for a in EnvironmentAction)
        raise UsageError(
            f"environment change {text!r}", remedy=f"write ACTION NAME VALUE, ACTION one of {known}"
        ) from error


def _tell(published: Published, *, as_json: bool) -> int:
    if as_json:
        reading.print_json(
            {
                "published": [reading.as_json(p) for p in published.new],
                "skipped": [str(p.id) for p in published.skipped],
                "waits": [str(w) for w in (published.signed.waiting if published.signed else ())],
            }
        )
        return 0
    for package in published.skipped:
        print(f"{package.id} is already published")
    for package in published.new:
        archive, tree = package.archive, package.tree
        sizes = (
            f"{reading.size(archive.size_bytes)}, {reading.size(tree.size_bytes)} unpacked in {tree.file_count} files"
        )
        print(f"{package.id} for {package.platform}: {sizes}\n  sha256 {archive.sha256}")
    return managing.tell(f"{len(published.new)} packages signed", published.signed) if published.signed else 0
