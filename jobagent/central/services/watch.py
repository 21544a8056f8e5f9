"""The verified catalogue as the central services see it: kept current by one thread, handed out as snapshots.

Tracker and seeder act only on what a snapshot holds.  Where the catalogue cannot be verified any more there is no
snapshot, and so nothing is tracked: it fails closed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from jobagent.central.packaging import torrents
from jobagent.central.services.tracker import Tracked
from jobagent.contracts import Catalogue, Freshness
from jobagent.errors import CatalogueUnreachable, JobAgentError, SupplyError
from jobagent.model import Package, PackageState

LEGACY_SUFFIX = ".v1"  # in the key of the swarm of a v1-only torrent

log = logging.getLogger("jobagent.central")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All packages of a verified catalogue that may be distributed; banned ones are left out.

    `tracked` is by 20-byte infohash: v1, v2 truncated (BEP 52), and that of the v1-only torrent for old clients.
    `swarms` are the packages of each swarm by its key, as `swarms_of` says.
    """

    freshness: Freshness
    packages: tuple[Package, ...]
    tracked: Mapping[bytes, Tracked] = field(default_factory=dict)
    swarms: Mapping[str, tuple[Package, ...]] = field(default_factory=dict)

    def listed(self) -> Iterator[tuple[Package, str]]:
        """Yield each package and the key of its swarm."""
        for package in self.packages:
            yield package, package.key if package.key in self.swarms else package.archive.infohash_v2


def infohashes_of(package: Package) -> list[bytes]:
    """The 20-byte names of a package's swarm: v2 truncated (BEP 52), and v1."""
    archive = package.archive
    return [bytes.fromhex(h)[:20] for h in (archive.infohash_v2, archive.infohash_v1) if h]


def swarms_of(packages: Iterable[Package]) -> dict[str, tuple[Package, ...]]:
    """Join packages that are one torrent, whichever VOs signed them, by the key of their swarm.

    The key is the archive's digest.  Where digests and torrents do not go together one to one it is the v2 infohash:
    a VO that signs other torrents for the bytes of another's package, or other bytes for its torrent, changes nothing
    for that one.
    """
    by_infohash: dict[str, list[Package]] = {}
    for package in packages:
        by_infohash.setdefault(package.archive.infohash_v2, []).append(package)
    digests = Counter(digest for group in by_infohash.values() for digest in {p.key for p in group})
    return {
        group[0].key if len({p.key for p in group}) == 1 == digests[group[0].key] else infohash: tuple(group)
        for infohash, group in by_infohash.items()
    }


def take(catalogue: Catalogue, legacy_of: Callable[[Package], str] = lambda package: "") -> Snapshot:
    """Refresh the catalogue and list it; raises SupplyError or TrustError as the catalogue does.

    `legacy_of` returns the infohash of a package's v1-only torrent, or nothing where it has none.
    """
    freshness = catalogue.refresh()
    packages = [
        package
        for namespace in catalogue.namespaces()
        for name in catalogue.names(namespace)
        for package in catalogue.versions(namespace, name)
        if package.state is not PackageState.BANNED
    ]
    swarms = swarms_of(packages)
    claims = Counter(v1 for group in swarms.values() for v1 in {p.archive.infohash_v1 for p in group})
    tracked: dict[bytes, Tracked] = {}
    for key, group in swarms.items():
        namespaces = frozenset(p.id.namespace for p in group)
        for package in group:
            is_torrent_its_own = claims[package.archive.infohash_v1] == 1 or _has_torrent(catalogue, package)
            known = infohashes_of(package)[: 2 if is_torrent_its_own else 1]
            tracked |= dict.fromkeys(known, Tracked(key, namespaces))
            if legacy := legacy_of(package):
                tracked[bytes.fromhex(legacy)] = Tracked(key + LEGACY_SUFFIX, namespaces)
    return Snapshot(freshness, tuple(packages), tracked, swarms)


def _has_torrent(catalogue: Catalogue, package: Package) -> bool:
    """Whether there is a torrent with both infohashes: what a VO signs for another's v1 infohash has none."""
    try:
        catalogue.torrent(package.archive)
    except JobAgentError as error:
        log.warning("%s is not tracked by its v1 infohash, which another package has: %s", package.id, error)
        return False
    return True


class CatalogueWatch:
    """Takes a snapshot now and whenever `has_changed` says so, but at least every `period_s`.

    Args:
        catalogue: Asked only in the watch's own thread.
        has_changed: Cheap test called every `poll_s`; None: the period alone.
        with_legacy: Whether the v1-only torrents are tracked too; costs a look at each package's torrent, once.
        clock: Seconds since the epoch, as expiry is.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        period_s: float = 30.0,
        poll_s: float = 1.0,
        has_changed: Callable[[], bool] | None = None,
        with_legacy: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._catalogue = catalogue
        self._period_s = period_s
        self._poll_s = poll_s
        self._has_changed = has_changed
        self._with_legacy = with_legacy
        self._legacy: dict[str, str] = {}
        self._clock = clock
        self._snapshot: Snapshot | None = None
        self._listeners: list[Callable[[Snapshot | None], None]] = []
        self._stopping = threading.Event()
        self._taken = threading.Event()
        self._thread = threading.Thread(target=self._run, name="catalogue-watch", daemon=True)
        self.last_error = ""

    @property
    def catalogue(self) -> Catalogue:
        """What is watched; use it only from a listener."""
        return self._catalogue

    def subscribe(self, listener: Callable[[Snapshot | None], None]) -> None:
        """Call `listener` in the watch's thread with each new snapshot, and with None when there is none any more."""
        self._listeners.append(listener)

    def start(self, timeout_s: float = 30.0) -> None:
        """Begin, and wait until the first snapshot was taken or failed."""
        self._thread.start()
        self._taken.wait(timeout_s)

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def snapshot(self) -> Snapshot | None:
        """The last snapshot while its metadata is valid, else None."""
        snapshot = self._snapshot
        if snapshot is None or snapshot.freshness.expires_s <= self._clock():
            return None
        return snapshot

    def tracked(self) -> Mapping[bytes, Tracked] | None:
        """The tracker's allow-list."""
        snapshot = self.snapshot()
        return None if snapshot is None else snapshot.tracked

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._take()
            self._taken.set()
            waited = 0.0
            while waited < self._period_s and not self._stopping.wait(self._poll_s):
                waited += self._poll_s
                if self._has_changed is not None and self._has_changed():
                    break

    def _take(self) -> None:
        """Replace the snapshot; an unreachable catalogue keeps it until that expires, anything worse drops it."""
        try:
            self._snapshot = take(self._catalogue, self._legacy_of)
            self.last_error = ""
        except (CatalogueUnreachable, SupplyError) as error:
            self._note(error)
            if isinstance(error, CatalogueUnreachable) and self.snapshot() is not None:
                return
            self._snapshot = None
        except JobAgentError as error:
            self._note(error)
            self._snapshot = None
        for listener in self._listeners:
            try:
                listener(self._snapshot)
            except Exception:  # a border: the watch outlives what it feeds
                log.exception("a service failed on a new catalogue")

    def _legacy_of(self, package: Package) -> str:
        """The infohash of the v1-only torrent, remembered; empty where the torrent cannot be had."""
        key = package.archive.infohash_v2
        if self._with_legacy and key not in self._legacy:
            try:
                self._legacy[key] = torrents.legacy(self._catalogue.torrent(package.archive)).infohash_v1
            except JobAgentError as error:
                log.warning("no torrent for old clients of %s: %s", package.id, error)
                self._legacy[key] = ""
        return self._legacy.get(key, "")

    def _note(self, error: JobAgentError) -> None:
        if str(error) != self.last_error:
            log.error("catalogue: %s", error)
        self.last_error = str(error)
