"""Requirement → Plan: the closure of the packages, dependencies first.

Rules: a package named without owner belongs to the job's VO; without version it is the newest released entry, by
time of publication and then by version string; a dependency names an exact version.  Withdrawn entries serve who
names them, banned ones nobody.  Two versions of one package are a conflict.  The catalogue is only read.
"""

from __future__ import annotations

from collections.abc import Sequence

from jobagent.contracts import Catalogue
from jobagent.errors import (
    DependencyCycle,
    JobError,
    PackageBanned,
    UnknownPackage,
    VersionConflict,
    WrongPlatform,
)
from jobagent.model import Package, PackageId, PackageSpec, PackageState, Plan, Requirement

SOURCE_PLATFORM = "any"  # packages of data and of pure text serve every platform
MAX_CLOSURE = 5000  # ALICE's largest closure has about 150 packages
MAX_DEPTH = 300  # far below Python's recursion limit


def resolve(requirement: Requirement, catalogue: Catalogue) -> Plan:
    """Return the install plan.

    Raises:
        UnknownPackage: With the nearest names.
        VersionConflict: Naming both versions and who asked for each.
        DependencyCycle: Naming the cycle.
        WrongPlatform, PackageBanned: The package exists but cannot be used here.
    """
    walk = _Walk(requirement, catalogue)
    for spec in requirement.packages:
        package = walk.choose(spec)
        walk.visit(package, asked_by="the job", path=())
        if package.id not in walk.requested:
            walk.requested.append(package.id)
    return Plan(tuple(walk.order), tuple(walk.requested), tuple(walk.defaulted))


class _Walk:
    """One depth-first walk: what was met, who asked for it, and the order of installation."""

    def __init__(self, requirement: Requirement, catalogue: Catalogue) -> None:
        self._requirement = requirement
        self._catalogue = catalogue
        self._chosen: dict[tuple[str, str], tuple[Package, str]] = {}
        self._done: set[PackageId] = set()
        self.order: list[Package] = []
        self.requested: list[PackageId] = []
        self.defaulted: list[PackageId] = []

    def choose(self, spec: PackageSpec) -> Package:
        namespace = spec.namespace or self._requirement.namespace
        if namespace is None:
            raise JobError(
                f"package {spec} names no owner and the job no VO",
                remedy=f"write VO_<ORG>@{spec}, as in VO_ALICE@ROOT",
            )
        spec = PackageSpec(spec.name, spec.version, namespace)
        if spec.version is None and (named := self._named_elsewhere(spec)):
            return named
        versions = self._catalogue.versions(namespace, spec.name)
        package = _pick(spec, versions, self._requirement.platform)
        if package is None:
            raise self._unknown(spec, versions)
        if spec.version is None:
            self.defaulted.append(package.id)
        return package

    def visit(self, package: Package, *, asked_by: str, path: tuple[PackageId, ...]) -> None:
        if package.id in path:
            cycle = " → ".join(str(i) for i in (*path[path.index(package.id) :], package.id))
            raise DependencyCycle(f"packages depend on one another: {cycle}", remedy="their VO must republish them")
        other, other_asked_by = self._chosen.setdefault((package.id.namespace, package.id.name), (package, asked_by))
        if other.id != package.id:
            raise VersionConflict(
                f"{package.id} (asked for by {asked_by}) and {other.id} (asked for by {other_asked_by}) "
                "cannot both be used",
                remedy="name versions that were built together",
            )
        if package.id in self._done:
            return
        if package.state is PackageState.BANNED:
            reason = f": {package.reason}" if package.reason else ""
            raise PackageBanned(f"{package.id} is banned by its VO{reason}", remedy="use another version")
        if len(self._chosen) > MAX_CLOSURE or len(path) > MAX_DEPTH:
            raise JobError(f"the job's packages need more than {MAX_CLOSURE} others, or a chain of over {MAX_DEPTH}")
        for dependency in package.dependencies:
            self.visit(self.choose(dependency.spec), asked_by=str(package.id), path=(*path, package.id))
        self._done.add(package.id)
        self.order.append(package)

    def _named_elsewhere(self, spec: PackageSpec) -> Package | None:
        """Where the job leaves the version open, one that it or a dependency already fixed is the one."""
        if found := self._chosen.get((spec.namespace or "", spec.name)):
            return found[0]
        for other in self._requirement.packages:
            same = other.name == spec.name and (other.namespace or self._requirement.namespace) == spec.namespace
            if same and other.version:
                return self.choose(other)
        return None

    def _unknown(self, spec: PackageSpec, versions: Sequence[Package]) -> JobError:
        import difflib

        namespace = spec.namespace or ""
        matching = [p for p in versions if spec.version in {None, p.id.version}]
        if matching and all(p.platform not in {self._requirement.platform, SOURCE_PLATFORM} for p in matching):
            there = ", ".join(sorted({p.platform for p in matching}))
            return WrongPlatform(
                f"{spec} is not published for {self._requirement.platform}", remedy=f"it is for {there}"
            )
        if matching and spec.version is None:
            return UnknownPackage(f"every version of {spec} is withdrawn or banned", remedy="name a version")
        if versions:
            known = [p.id.version for p in versions]
            near = difflib.get_close_matches(spec.version or "", known, 3, 0.3) or sorted(known)[-3:]
            return UnknownPackage(f"Package not defined: {spec}", remedy=f"versions there are: {', '.join(near)}")
        if namespace not in self._catalogue.namespaces():
            known_vos = ", ".join(sorted(self._catalogue.namespaces())) or "none"
            return UnknownPackage(f"Package not defined: {spec}", remedy=f"the catalogue has the VOs: {known_vos}")
        names = {n.lower(): n for n in self._catalogue.names(namespace)}
        close = [names[n] for n in difflib.get_close_matches(spec.name.lower(), names, 3, 0.4)]
        hint = f"nearest names: {', '.join(close)}" if close else "see jobagent list"
        return UnknownPackage(f"Package not defined: {spec}", remedy=hint)


def _pick(spec: PackageSpec, versions: Sequence[Package], platform: str) -> Package | None:
    here = [p for p in versions if p.platform in {platform, SOURCE_PLATFORM}]
    if spec.version is not None:
        here = [p for p in here if p.id.version == spec.version]
    else:
        here = [p for p in here if p.state is PackageState.RELEASED]
    return max(here, key=lambda p: (p.published_s, p.id.version, p.platform == platform), default=None)
