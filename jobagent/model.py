"""The nouns of the project: frozen values that the phases hand to one another.

job ad → `Job` → `Requirement` → `Plan` of `Package` → `Installed` → `Environment` → `Outcome`.
Pure: no I/O, no clock, no third-party import.  Names and syntax of packages follow AliEn
(`[owner@]Name[::version]`, the owner of a VO's packages is `VO_<ORG>`).
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from jobagent.errors import JobSyntaxError

# Grammar of names, versions and platforms. Not first: dot or dash, as a word becomes a path segment and an argument.
WORD = r"[A-Za-z0-9_][A-Za-z0-9_.+~-]{0,127}"
_SPEC = re.compile(rf"(?:(?P<owner>{WORD})@)?(?P<name>{WORD})(?:(?:::|/)(?P<version>{WORD}))?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_VO_PREFIX = "VO_"
UPDATE_MARK = "~"  # in the platform of an entry that leads from one version to another: no job can ask for it

EMPTY: Mapping[str, str] = MappingProxyType({})


def namespace_of(owner: str) -> str:
    """Return the catalogue namespace of a package owner: `VO_ALICE` → `alice`, `jdoe` → `user.jdoe`."""
    if owner.upper().startswith(_VO_PREFIX):
        return owner[len(_VO_PREFIX) :].lower()
    return f"user.{owner}"


def owner_of(namespace: str) -> str:
    """Return the owner that users write for a namespace; the inverse of `namespace_of`."""
    return namespace[5:] if namespace.startswith("user.") else _VO_PREFIX + namespace.upper()


def is_update(platform: str) -> bool:
    """Whether an entry with this platform is an update of an installed version: nothing that a job can ask for."""
    return UPDATE_MARK in platform


@dataclass(frozen=True, slots=True)
class PackageSpec:
    """What a user writes: a package by name, perhaps with owner and version."""

    name: str
    version: str | None = None
    namespace: str | None = None

    @classmethod
    def parse(cls, text: str) -> PackageSpec:
        """Parse `[owner@]Name[::version]`, or alienv's `Name/version`; blanks around are trimmed.

        Raises:
            JobSyntaxError: The text is not of that form.
        """
        match = _SPEC.fullmatch(text.strip())
        if match is None:
            raise JobSyntaxError(
                f"package name {text.strip()[:200]!r} is not of the form [VO_ORG@]Name[::version]",
                remedy="allowed are letters, digits and _ . + ~ - (not first: . + ~ -)",
            )
        owner = match["owner"]
        return cls(match["name"], match["version"], namespace_of(owner) if owner else None)

    def __str__(self) -> str:
        owner = f"{owner_of(self.namespace)}@" if self.namespace else ""
        return owner + self.name + (f"::{self.version}" if self.version else "")


@dataclass(frozen=True, slots=True, order=True)
class PackageId:
    """One version of one package of one namespace."""

    namespace: str
    name: str
    version: str

    @classmethod
    def parse(cls, text: str) -> PackageId:
        """Parse the full form `VO_ORG@Name::version`; raises JobSyntaxError where a part is missing."""
        spec = PackageSpec.parse(text)
        if spec.namespace is None or spec.version is None:
            raise JobSyntaxError(f"{text!r} must name owner and version, as in VO_ALICE@ROOT::v6-36")
        return cls(spec.namespace, spec.name, spec.version)

    @property
    def spec(self) -> PackageSpec:
        """The same package as a user would ask for it."""
        return PackageSpec(self.name, self.version, self.namespace)

    def __str__(self) -> str:
        return f"{owner_of(self.namespace)}@{self.name}::{self.version}"


class PackageState(enum.StrEnum):
    """Life of a catalogue entry: withdrawn is no new default, banned gets no new leases anywhere."""

    RELEASED = "released"
    WITHDRAWN = "withdrawn"
    BANNED = "banned"


@dataclass(frozen=True, slots=True)
class Blob:
    """A signed reference to an object of the catalogue, named by its digest."""

    sha256: str
    size_bytes: int

    def __post_init__(self) -> None:
        if not _SHA256.fullmatch(self.sha256) or self.size_bytes < 0:
            raise ValueError(f"not a blob reference: {self.sha256[:80]!r}, {self.size_bytes} bytes")


@dataclass(frozen=True, slots=True)
class Archive:
    """The immutable file that is seeded: one torrent, one file.

    `format` names the unpacker (`tar.zst`, `tar.gz`, or `file` for data that is not unpacked).
    Infohashes are lower-case hex: `infohash_v1` 40 digits or empty, `infohash_v2` 64 digits.
    """

    file_name: str
    format: str
    sha256: str
    size_bytes: int
    infohash_v1: str
    infohash_v2: str

    @property
    def blob(self) -> Blob:
        """The archive as an object of the catalogue."""
        return Blob(self.sha256, self.size_bytes)


@dataclass(frozen=True, slots=True)
class Tree:
    """What the archive unpacks to, before relocation: limits for unpacking and the digest of its manifest."""

    manifest: Blob
    size_bytes: int
    file_count: int


class EnvironmentAction(enum.StrEnum):
    """What is done to a variable; prepend and append work on `:`-separated lists."""

    SET = "set"
    PREPEND = "prepend"
    APPEND = "append"


@dataclass(frozen=True, slots=True)
class EnvironmentChange:
    """One change to the payload's environment; `{root}` in `value` is the installed tree."""

    action: EnvironmentAction
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Package:
    """A verified entry of the catalogue: all that its VO signed about one package on one platform.

    `published_s` is seconds since the epoch and orders releases: a job that names no version gets the
    released entry with the greatest (`published_s`, version).
    """

    id: PackageId
    platform: str
    archive: Archive
    tree: Tree
    published_s: int
    dependencies: tuple[PackageId, ...] = ()
    environment: tuple[EnvironmentChange, ...] = ()
    state: PackageState = PackageState.RELEASED
    reason: str = ""
    description: str = ""
    licence: str = ""
    pfns: tuple[str, ...] = ()
    provenance: Blob | None = None

    @property
    def key(self) -> str:
        """The name of the package in every cache: the digest of its archive."""
        return self.archive.sha256

    def is_same_tree(self, other: Package) -> bool:
        """Whether an entry with the same archive also signs the same tree: only then may they share it."""
        return (self.tree.manifest, self.archive.format) == (other.tree.manifest, other.archive.format)


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file that the job wants in its working directory before the payload starts."""

    url: str
    name: str
    is_optional: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """A job description in any dialect, with nothing lost.

    `attributes` holds every attribute of the source as ClassAd expression text, the mapped ones included, in
    order.  Sizes are bytes, times seconds; 0 means that the job does not say.
    """

    dialect: str
    executable: str = ""
    arguments: tuple[str, ...] = ()
    packages: tuple[PackageSpec, ...] = ()
    namespace: str | None = None
    is_preinstalled_only: bool = False
    environment: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    inputs: tuple[InputFile, ...] = ()
    outputs: tuple[str, ...] = ()
    stdout: str = ""
    stderr: str = ""
    validation_command: str = ""
    wall_limit_s: int = 0
    disk_bytes: int = 0
    memory_bytes: int = 0
    cpus: int = 0
    requirements: str = ""
    attributes: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    warnings: tuple[str, ...] = ()
    base_directory: Path = Path()


@dataclass(frozen=True, slots=True)
class Requirement:
    """What must be on the node before the payload runs."""

    packages: tuple[PackageSpec, ...]
    namespace: str | None
    platform: str
    is_preinstalled_only: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """The closure of a requirement, dependencies first, each package once."""

    packages: tuple[Package, ...]
    requested: tuple[PackageId, ...]
    defaulted: tuple[PackageId, ...] = ()


@dataclass(frozen=True, slots=True)
class Traffic:
    """Payload bytes of one download by where they came from."""

    seeder_bytes: int = 0
    neighbour_bytes: int = 0
    web_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """All bytes received."""
        return self.seeder_bytes + self.neighbour_bytes + self.web_bytes

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.seeder_bytes + other.seeder_bytes,
            self.neighbour_bytes + other.neighbour_bytes,
            self.web_bytes + other.web_bytes,
        )


@dataclass(frozen=True, slots=True)
class Installed:
    """A verified package as a read-only tree on this node."""

    package: Package
    tree: Path
    archive: Path | None = None
    is_cache_hit: bool = False
    traffic: Traffic = Traffic()
    seconds: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Environment:
    """The payload's complete environment."""

    variables: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a payload ended: an exit code, or a signal, or a limit that the agent enforced."""

    exit_code: int
    signal: int = 0
    reason: str = ""
    wall_s: float = 0.0
    cpu_s: float = 0.0
    max_rss_bytes: int = 0

    @property
    def is_success(self) -> bool:
        """Whether the payload ended by itself with 0."""
        return self.exit_code == 0 and not self.signal and not self.reason

    @property
    def shell_code(self) -> int:
        """The exit code as a shell would give it."""
        return 128 + self.signal if self.signal else self.exit_code
