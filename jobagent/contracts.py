"""What plugins provide: the protocols behind the registration hooks, and the values passed through them.

The core decides, providers do.  A provider never inherits from anything here; it has the methods.  Providers are
called from several threads at once unless a docstring says otherwise.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from jobagent.config import Config
from jobagent.events import Events
from jobagent.model import (
    Archive,
    Blob,
    EnvironmentChange,
    InputFile,
    Installed,
    Job,
    Package,
    Traffic,
)


@dataclass(frozen=True, slots=True)
class Context:
    """What a plugin gets to build its providers: configuration, a directory of its own, the event stream.

    `state` is a writable directory that lives as long as the agent's scratch (private cache) or the node's
    cache (shared cache); a plugin uses the sub-directory of its own name.
    """

    config: Config
    state: Path
    events: Events
    platform: str


class Parser(Protocol):
    """Reads one dialect of job descriptions."""

    @property
    def dialect(self) -> str:
        """Short name, as in `--dialect jdl`."""

    def recognises(self, text: str) -> bool:
        """Whether `text` looks like this dialect; must not raise."""

    def parse(self, text: str, *, arguments: Sequence[str], base_directory: Path) -> Job:
        """Return the job; raises JobSyntaxError with line and column.  `arguments` replace `$1 … $n`."""


@dataclass(frozen=True, slots=True)
class Freshness:
    """How current the verified catalogue is.  Times are seconds since the epoch."""

    version: int
    expires_s: float
    source: str
    is_stale: bool = False


class Catalogue(Protocol):
    """The verified list of packages.  All that it returns was signed by the VO of the namespace."""

    def refresh(self, *, is_forced: bool = False) -> Freshness:
        """Bring the metadata up to date, or confirm what is cached.

        What was confirmed within the site's refresh interval is current, unless `is_forced` (as before telling a
        user that a package does not exist).

        Raises:
            CatalogueUnreachable: Nothing answers and nothing valid is cached.
            CatalogueExpired: The metadata is past its expiry.
            BadSignature: Metadata was refused; the message names role and reason.
        """

    def namespaces(self) -> Sequence[str]:
        """All VOs of the catalogue."""

    def names(self, namespace: str) -> Sequence[str]:
        """All package names of a VO; empty for an unknown one."""

    def versions(self, namespace: str, name: str) -> Sequence[Package]:
        """All versions on all platforms in every state; empty where there are none."""

    def torrent(self, archive: Archive) -> bytes:
        """The torrent file of an archive, checked against the signed infohash; raises SupplyError, TrustError."""

    def blob(self, blob: Blob) -> bytes:
        """A small object of the catalogue (manifest, SBOM), checked; raises SupplyError, TrustError."""

    def urls(self, package: Package) -> Sequence[str]:
        """Alternate PFNs of the archive: the signed ones, and the catalogue's own mirrors."""


@dataclass(slots=True)
class Order:
    """One archive to fetch to `target`.  A transport writes nothing but `target` and files beside it that start with
    its name; on failure it may leave a partial `target` for the next transport or attempt to resume from.

    `deadline` is monotonic seconds.  `progress(done_bytes)` is cheap and may be called often.  `cancelled` is set
    when nobody wants the file any more: return promptly by raising SupplyError.
    """

    package: Package
    torrent: bytes | None
    urls: tuple[str, ...]
    target: Path
    deadline: float
    progress: Callable[[int], None] = lambda done: None
    cancelled: threading.Event = field(default_factory=threading.Event)


class Transport(Protocol):
    """Fetches archives."""

    @property
    def name(self) -> str:
        """Short name for logs and configuration."""

    @property
    def rank(self) -> int:
        """Order among transports, small first; the swarm is 10, web seeds are 50 (the last resort)."""

    def can_fetch(self, order: Order) -> bool:
        """Whether this transport could try; no I/O."""

    def fetch(self, order: Order) -> Traffic:
        """Fetch the whole archive; when it returns, the bytes are on disk (fsynced) and of the signed length.

        Raises:
            SupplyError: It cannot be had this way now; the next transport is tried.
            DiskFull: No room; no other transport is tried.
        """

    def close(self) -> None:
        """Free everything; idempotent."""


@runtime_checkable
class Seeder(Transport, Protocol):
    """A transport that can give to others what the node has."""

    @property
    def is_seeding(self) -> bool:
        """Whether the site wants that; where no seeder seeds, no archive is kept beside its tree."""

    def seed(self, package: Package, archive: Path, torrent: bytes) -> None:
        """Offer `archive` from now on; the file must stay unchanged until `unseed` returns.  Idempotent."""

    def unseed(self, key: str) -> None:
        """Stop offering the archive of that digest; idempotent."""

    def status(self) -> Mapping[str, float]:
        """Counters for metrics: `seeding`, `peers`, `upload_bytes`, `download_bytes`, rates in bytes/s."""


class Verifier(Protocol):
    """Decides whether an archive is what was signed.  All registered verifiers must agree; with none registered,
    nothing is installed."""

    @property
    def name(self) -> str:
        """Short name for messages."""

    def verify(self, package: Package, archive: Path) -> None:
        """Return, or raise TrustError."""


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """One member of an installed tree.

    `kind` is `f` file, `d` directory, `l` symlink.  `path` is relative, `/`-separated, without `.` or `..`.
    `mode` is 0o755 or 0o644 for files, 0o755 for directories, 0 for symlinks.
    """

    path: str
    kind: str
    mode: int = 0
    size_bytes: int = 0
    sha256: str = ""
    target: str = ""


class Unpacker(Protocol):
    """Turns an archive into a tree."""

    @property
    def formats(self) -> frozenset[str]:
        """Values of `Archive.format` that it handles."""

    def unpack(self, archive: Path, package: Package, into: Path) -> Sequence[ManifestEntry]:
        """Unpack into the existing empty directory `into` and return what was written, hashed as it was written.

        Hostile input: nothing outside `into`, never more bytes or members than `package.tree` signs, no devices,
        FIFOs, set-id bits, or links that leave the tree.

        Raises:
            HostileArchive: The archive breaks one of these rules.
            DiskFull: No room.
        """


class EnvironmentProvider(Protocol):
    """Says what a package's own set-up scripts do to the environment."""

    @property
    def name(self) -> str:
        """Short name for messages."""

    def changes(self, installed: Installed, dependencies: Sequence[Installed]) -> Sequence[EnvironmentChange]:
        """Changes for one package, applied after those of its dependencies; empty where it has nothing to say."""


class InputSource(Protocol):
    """Brings input files of one URL scheme into a working directory."""

    @property
    def schemes(self) -> frozenset[str]:
        """URL schemes, lower case; the empty string is a plain path."""

    def stage(self, item: InputFile, target: Path, *, base_directory: Path, deadline: float) -> int:
        """Write `target`, return its bytes; raises JobError, SupplyError or TrustError."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Whose lease it is: a process.  The lease ends with it, however it ends.

    `start_ticks` is field 22 of /proc/PID/stat: it tells a reused pid from the holder.
    """

    pid: int
    start_ticks: int
    job_id: str
    uid: int


@dataclass(frozen=True, slots=True)
class Staging:
    """Where one package is built: an empty directory for the tree, and the path where its archive goes.

    Both are on the cache's file system.  `archive` may hold a partial download of an earlier attempt.
    """

    tree: Path
    archive: Path


@dataclass(frozen=True, slots=True)
class Built:
    """What a builder made of a staging directory; `manifest` describes the tree on disk, after relocation."""

    manifest: Sequence[ManifestEntry]
    keep_archive: bool
    traffic: Traffic
    seconds: Mapping[str, float]


Builder = Callable[[Staging], Built]


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to use one installed package until released."""

    id: str
    holder: Holder
    installed: Installed


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One installed package of a cache, for lists and the machine ad."""

    key: str
    package_id: str
    platform: str
    size_bytes: int
    last_used_s: float
    leases: int
    is_pinned: bool = False
    is_seedable: bool = False


class Cache(Protocol):
    """Where installed packages live.  `jobagent.testing.cache_conformance` is the test of every implementation."""

    @property
    def root(self) -> Path:
        """Directory of the cache."""

    @property
    def is_shared(self) -> bool:
        """Whether other jobs and later agents use the same installations."""

    def final_tree(self, package: Package) -> Path:
        """The path that the package's tree has once installed: what relocation writes into it."""

    def acquire(
        self, package: Package, holder: Holder, build: Builder, *, cancelled: threading.Event | None = None
    ) -> Lease:
        """Return a lease on the installed package, building it where nobody has yet.

        At most one builder runs per package, whatever the number of callers, threads and processes; the others wait,
        until `cancelled` is set.  A failed build leaves nothing visible, its error reaches the caller that built,
        and the next waiter builds.

        Raises:
            DiskFull: The quota or the disk does not allow it, after eviction.
            SupplyError: `cancelled` was set while waiting for another's build.
            JobAgentError: What the builder raised.
        """

    def release(self, lease: Lease) -> None:
        """End a lease; idempotent."""

    def entries(self) -> Sequence[CacheEntry]:
        """What is installed now."""

    def installed(self) -> Iterator[Installed]:
        """Every installed package, for seeding after a restart."""

    def evict(self, key: str) -> bool:
        """Remove an installed package; False where it is leased or absent."""

    def verify(self, key: str) -> bool:
        """Compare a tree with its manifest; on a difference quarantine it and return False."""

    def close(self) -> None:
        """Free everything that this process holds; a private cache removes its directory."""


@dataclass(frozen=True, slots=True)
class CacheUsage:
    """What a cache takes of its disk.  `logical_bytes` is the sum over the installed trees, `stored_bytes` what they
    take with equal files kept once; a limit of 0 is none.
    """

    packages: int
    logical_bytes: int
    stored_bytes: int
    archive_bytes: int
    partial_bytes: int
    quarantine_bytes: int
    reserved_bytes: int
    limit_bytes: int
    free_bytes: int
    inodes: int
    limit_inodes: int

    @property
    def used_bytes(self) -> int:
        """All that counts against the limit."""
        return self.stored_bytes + self.archive_bytes + self.partial_bytes + self.quarantine_bytes

    @property
    def saved_bytes(self) -> int:
        """What keeping equal files once saves."""
        return max(0, self.logical_bytes - self.stored_bytes)


@runtime_checkable
class ManagedCache(Cache, Protocol):
    """A cache that outlives its agents: what the node service and `jobagent cache` need beyond `Cache`."""

    @property
    def protection(self) -> str:
        """What keeps a payload from changing packages: `uid`, `view`, or `manifest` (checked before each job)."""

    def order_evictions_by(self, choose: Callable[[Sequence[CacheEntry]], Sequence[str]]) -> None:
        """Let `choose` give the order (keys) in which packages that may go are evicted."""

    def leases(self) -> Sequence[Lease]:
        """All leases whose holder lives, whoever took them: what a restarted node service watches again."""

    def pin(self, key: str, *, is_pinned: bool) -> bool:
        """Keep a package from eviction, or no longer; False where it is absent.  A pin outlives every process."""

    def usage(self) -> CacheUsage:
        """What is used now."""

    def sweep(self) -> int:
        """Remove what ended processes left behind and leases of ended holders; return the number of leases."""


CacheFactory = Callable[[Context], Cache]
