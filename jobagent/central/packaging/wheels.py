"""Python wheels → sources of packages: the wheel that was asked for, and each wheel that it depends on.

Every wheel becomes a package of its own, installed as pip would, in `lib/pythonX.Y/site-packages` of its tree, for
the Python that runs this; scripts find their interpreter on PATH.  Exact versions come from pip, what depends on
what from the wheels' own metadata.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from packaging.metadata import Metadata
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from jobagent import manifest
from jobagent.central.packaging import bytecode
from jobagent.central.packaging.content import Content, assign, prepend
from jobagent.central.packaging.provenance import Component, Origin
from jobagent.central.packaging.relocatable import Report
from jobagent.central.packaging.wheelfile import SITE_PACKAGES, unpack
from jobagent.errors import PublishError
from jobagent.model import EnvironmentChange, PackageSpec

DOWNLOAD_TIMEOUT_S = 1800.0
MAX_LICENCE = 200  # characters: some wheels bring the whole text

# What some wheels need to work outside a usual Python installation, by canonical name.
KNOWN_NEEDS: Mapping[str, tuple[EnvironmentChange, ...]] = {
    "pythia8mc": (assign("PYTHIA8DATA", "{root}/share/Pythia8/xmldoc"),),
    "root": (
        assign("ROOTSYS", f"{{root}}/{SITE_PACKAGES}/ROOT"),
        prepend("PATH", f"{{root}}/{SITE_PACKAGES}/ROOT/bin"),
    ),
}


@dataclass(frozen=True)
class Wheel:
    """A wheel file as a source.  `requires` are names and exact versions of other wheels of the same closure."""

    file: Path
    name: str
    requires: Sequence[PackageSpec] = ()

    @property
    def version(self) -> str:
        """The wheel's version."""
        return str(self.metadata.version)

    @cached_property
    def metadata(self) -> Metadata:
        """Core metadata, read leniently; raises PublishError where the file is no wheel."""
        try:
            with ZipFile(self.file) as archive:
                names = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA") and n.count("/") == 1]
                return Metadata.from_email(archive.read(names[0]), validate=False)
        except (OSError, BadZipFile, IndexError, KeyError) as error:
            raise PublishError(f"{self.file} is no wheel: {error}") from error

    @property
    def canonical_name(self) -> str:
        """The project's name as pip compares it."""
        return canonicalize_name(self.metadata.name)

    def make(self, work: Path, report: Report) -> Content:
        """See `Source`."""
        tree = work / "tree"
        unpack(self.file, tree)
        bytecode.compile_modules(tree / SITE_PACKAGES)
        environment = [prepend("PYTHONPATH", f"{{root}}/{SITE_PACKAGES}"), *KNOWN_NEEDS.get(self.canonical_name, ())]
        if (tree / "bin").is_dir():
            environment.append(prepend("PATH", "{root}/bin"))
        licence = licence_of(self.metadata)
        component = Component(
            self.metadata.name,
            self.version,
            purl=f"pkg:pypi/{self.canonical_name}@{self.version}",
            licence=licence,
            sha256=manifest.hash_file(self.file),
        )
        return Content(
            path=tree,
            origin=Origin("wheel", [component], {"jobagent:file": self.file.name}),
            requires=self.requires,
            environment=environment,
            description=self.metadata.summary or "",
            licence=licence,
        )


def closure(requirement: str, directory: Path, name: str = "") -> list[Wheel]:
    """Return the wheel of `requirement` and all that it needs, dependencies first.

    `requirement` is of the form `name==version` or the path of a wheel file; pip downloads into `directory`, with
    its own configuration.  The package of the asked wheel is called `name` where that is given.

    Raises:
        PublishError: pip cannot satisfy it, or a needed wheel is missing.
    """
    directory.mkdir(parents=True, exist_ok=True)
    local = Path(requirement)
    wanted = Wheel(local, "").canonical_name if local.suffix == ".whl" else _parse(requirement).name
    _download(requirement, directory)
    by_name = {wheel.canonical_name: wheel for wheel in (Wheel(f, "") for f in sorted(directory.glob("*.whl")))}
    ordered: dict[str, Wheel] = {}
    extras = () if local.suffix == ".whl" else tuple(_parse(requirement).extras)
    _visit(canonicalize_name(wanted), extras, by_name, ordered, (), {canonicalize_name(wanted): name} if name else {})
    return list(ordered.values())


def exact_version(requirement: str) -> tuple[str, str] | None:
    """Return name and version where `requirement` pins one version, else None."""
    if requirement.endswith(".whl"):
        wheel = Wheel(Path(requirement), "")
        return wheel.canonical_name, wheel.version
    parsed = _parse(requirement)
    pins = [s.version for s in parsed.specifier if s.operator == "==" and not s.version.endswith(".*")]
    return (canonicalize_name(parsed.name), pins[0]) if len(pins) == 1 else None


def licence_of(metadata: Metadata) -> str:
    """Return the licence as one short line."""
    if metadata.license_expression:
        return str(metadata.license_expression)
    classified = [c.rpartition(" :: ")[2] for c in metadata.classifiers or () if c.startswith("License ::")]
    if classified:
        return "; ".join(classified)
    text = " ".join((metadata.license or "").split())
    return text if len(text) <= MAX_LICENCE else text[: MAX_LICENCE - 1] + "…"


def _visit(
    name: str,
    extras: Iterable[str],
    by_name: Mapping[str, Wheel],
    ordered: dict[str, Wheel],
    path: tuple[str, ...],
    names: Mapping[str, str],
) -> None:
    """Add a wheel after those that it needs; a wheel on the way to itself is left to be added by whoever began."""
    if name in ordered or name in path:
        return
    if name not in by_name:
        raise PublishError(f"{path[-1] if path else 'pip'} needs wheel {name}, which pip did not download")
    needed = list(_needed(by_name[name].metadata, extras))
    for requirement in needed:
        _visit(canonicalize_name(requirement.name), requirement.extras, by_name, ordered, (*path, name), names)
    wheels = [by_name[canonicalize_name(r.name)] for r in needed]
    specs = [PackageSpec(names.get(w.canonical_name, w.canonical_name), w.version) for w in wheels]
    ordered[name] = Wheel(by_name[name].file, names.get(name, name), tuple(dict.fromkeys(specs)))


def _needed(metadata: Metadata, extras: Iterable[str]) -> Iterable[Requirement]:
    contexts = [{"extra": extra} for extra in ("", *extras)]
    for requirement in metadata.requires_dist or ():
        if requirement.marker is None or any(requirement.marker.evaluate(context) for context in contexts):
            yield requirement


def _parse(requirement: str) -> Requirement:
    try:
        return Requirement(requirement)
    except InvalidRequirement as error:
        raise PublishError(
            f"{requirement!r} is no requirement: {error}", remedy="write --wheel name==version"
        ) from error


def _download(requirement: str, directory: Path) -> None:
    argv = [sys.executable, "-m", "pip", "download", "--only-binary=:all:", "--no-input", "--quiet"]
    argv += ["--disable-pip-version-check", "--find-links", str(directory), "--dest", str(directory), requirement]
    try:
        result = subprocess.run(
            argv, check=False, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise PublishError(f"pip took over {DOWNLOAD_TIMEOUT_S:.0f} s for {requirement}") from error
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or [result.stderr]
        raise PublishError(f"pip cannot download {requirement}: {lines[-1]}", remedy="only wheels are taken; see pip")
