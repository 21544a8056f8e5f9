"""alibuild's output → sources of packages: what was asked for, and all that it needs to run.

alibuild keeps `TARS/<arch>/<Pkg>/<Pkg>-<version>-<revision>.<arch>.tar.gz`, links to archives by hash, and beside
them `dist-runtime` (a package and all that it needs at run time) and `dist-direct` (what its recipe names).  Direct
dependencies at run time are what is in both.  Inside an archive, below `<arch>/<Pkg>/<version>-<revision>/`, files
that name the build directory exist twice: as they are, and as `*.unrelocated`; `relocate-me.sh` makes one of the
other by a substitution that is done here instead, so that a node runs no script to install a package.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobagent.central.packaging import elf
from jobagent.central.packaging.content import Content
from jobagent.central.packaging.provenance import Component, Origin
from jobagent.central.packaging.relocatable import Report, make_relocatable
from jobagent.central.packaging.sources import unpack
from jobagent.errors import PublishError
from jobagent.model import PackageSpec

SUFFIX = ".tar.gz"
UNRELOCATED = ".unrelocated"
UNRELOCATED_LIST = ".original-unrelocated"
_REVISION = re.compile(rb"@@PKGREVISION@[0-9a-zA-Z]+@@")  # known only after the build
_OWN_FILES = (UNRELOCATED_LIST, "relocate-me.sh", ".build-hash", ".rsync-done")


@dataclass(frozen=True, slots=True)
class Built:
    """One package that alibuild made, as a source."""

    archive: Path
    architecture: str
    name: str
    version: str
    requires: Sequence[PackageSpec] = ()

    def make(self, work: Path, report: Report) -> Content:
        """See `Source`."""
        unpack(self.archive.resolve(), work / "unpacked")
        tree = work / "unpacked" / self.architecture / self.name / self.version
        if not tree.is_dir():
            raise PublishError(f"{self.archive.name} has no {self.architecture}/{self.name}/{self.version}")
        meta = _meta(tree)
        restore(tree, self.version.rpartition("-")[2])
        prefix = build_prefix(tree, f"{self.architecture}/{self.name}/{self.version}")
        if prefix:
            make_relocatable(tree, prefix, report)
        return Content(
            tree, _origin(meta, self), self.requires, description=f"{self.name} {self.version} by alibuild"
        )


def closure(work_directory: Path, package: str) -> list[Built]:
    """Return `Name/version-revision` (or `Name::…`) of alibuild's work directory and its closure, dependencies first.

    Raises:
        PublishError: There is no such package, or it is there for several architectures.
    """
    spec = PackageSpec.parse(package)
    found = sorted(work_directory.glob(f"TARS/*/dist-runtime/{spec.name}/{spec.name}-{spec.version or '*'}"))
    if len(found) != 1:
        there = ", ".join(str(path.relative_to(work_directory)) for path in found[:5])
        raise PublishError(
            f"{work_directory} has {len(found)} packages {package}" + (f": {there}" if there else ""),
            remedy="write Name/version-revision as below TARS/<arch>/dist-runtime",
        )
    architecture = found[0].parents[2].name
    tars = work_directory / "TARS" / architecture
    names = {
        link.name: link.parent.name for link in tars.glob(f"*/*{SUFFIX}") if not link.parent.name.startswith("dist")
    }
    ordered: dict[str, Built] = {}
    _visit(_file_name(found[0], architecture), tars, names, ordered, ())
    return list(ordered.values())


def restore(tree: Path, revision: str) -> None:
    """Put the files that name the build directory back as the build left them, and remove what is alibuild's own."""
    listing = tree / UNRELOCATED_LIST
    names = listing.read_text().splitlines() if listing.is_file() else []
    for name in [*names, *(p.relative_to(tree).as_posix() for p in (tree / "etc/modulefiles").glob("*"))]:
        path = tree / name
        original = path.with_name(path.name + UNRELOCATED)
        source = original if original.is_file() else path
        if path.resolve().is_relative_to(tree.resolve()) and source.is_file():
            path.write_bytes(_REVISION.sub(revision.encode(), source.read_bytes()))
            original.unlink(missing_ok=True)
    for name in _OWN_FILES:
        (tree / name).unlink(missing_ok=True)


def build_prefix(tree: Path, package_path: str) -> str:
    """Return the directory that the package was installed into while it was built, as its files name it; or ''."""
    pattern = re.compile(rb"/[^\s;:'\"\0]*INSTALLROOT/[0-9a-f]+/" + re.escape(package_path.encode()))
    for directory, _, names in os.walk(tree):
        for name in names:
            path = Path(directory, name)
            if path.is_symlink() or not path.is_file():
                continue
            data = ":".join(elf.runpath(path)).encode() if elf.is_elf(path) else path.read_bytes()
            if match := pattern.search(data):
                return os.fsdecode(match[0])
    return ""


def _visit(
    file_name: str, tars: Path, names: Mapping[str, str], ordered: dict[str, Built], path: tuple[str, ...]
) -> None:
    if file_name in ordered or file_name in path:
        return
    architecture = tars.name
    name = names.get(file_name, "")
    if not name:
        raise PublishError(f"{tars} has no archive {file_name}", remedy="it may have been cleaned: build again")
    version = file_name.removeprefix(f"{name}-").removesuffix(f".{architecture}{SUFFIX}")
    listings = [_listing(tars / kind / name / f"{name}-{version}") for kind in ("dist-direct", "dist-runtime")]
    direct = sorted(listings[0] & listings[1] - {file_name})
    for needed in direct:
        _visit(needed, tars, names, ordered, (*path, file_name))
    requires = tuple(PackageSpec(ordered[n].name, ordered[n].version) for n in direct if n in ordered)
    ordered[file_name] = Built(tars / name / file_name, architecture, name, version, requires)


def _listing(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()} if directory.is_dir() else set()


def _file_name(dist: Path, architecture: str) -> str:
    return f"{dist.name}.{architecture}{SUFFIX}"


def _meta(tree: Path) -> Mapping[str, Any]:
    """Return alibuild's own record of the build; old versions wrote none."""
    try:
        document = json.loads((tree / ".meta.json").read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise PublishError(f"{tree.name}/.meta.json is malformed: {error}") from error
    return document if isinstance(document, dict) else {}


def _table(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = document.get(key)
    return value if isinstance(value, dict) else {}


def _origin(meta: Mapping[str, Any], built: Built) -> Origin:
    """Return where the package came from: sources and tag, the recipes' commit, alibuild's release and hash."""
    package = _table(meta, "package")
    runtime = _table(_table(meta, "dependencies"), "recursive").get("runtime")
    built_with = [item for item in runtime if isinstance(item, dict)] if isinstance(runtime, list) else []
    components = [
        Component(built.name, str(package.get("tag") or built.version), source=str(package.get("source") or ""))
    ]
    components += [
        Component(str(i.get("name")), f"{i.get('version')}-{i.get('revision')}", source=str(i.get("source") or ""))
        for i in built_with
    ]
    properties = {
        "alibuild:version": meta.get("alibuild_version"),
        "alibuild:alidist-commit": _table(meta, "alidist").get("commit"),
        "alibuild:architecture": meta.get("architecture") or built.architecture,
        "alibuild:defaults": meta.get("defaults"),
        "alibuild:hash": package.get("hash"),
    }
    return Origin("alibuild", components, {k: str(v) for k, v in properties.items() if v})
