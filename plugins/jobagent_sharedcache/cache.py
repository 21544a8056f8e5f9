"""The shared cache: one download and one installation for all jobs of a node, whatever is killed when.

The protocol: a lock per key, exclusive to build or remove, shared to lease; a package is built in staging on the
same file system, described last, synced, and appears by one rename; it goes by one rename too.  The state is the
directory; any number of agents use it at once, threads and processes alike.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from jobagent.plugin import (
    Builder,
    Built,
    CacheEntry,
    CacheTampered,
    CacheUsage,
    Events,
    Holder,
    Installed,
    Lease,
    Package,
    ScratchUnusable,
    Staging,
    SupplyError,
    TrustError,
)
from jobagent_sharedcache import filesystem, locks, progress, protection
from jobagent_sharedcache.filesystem import FreeSpace
from jobagent_sharedcache.layout import Layout, is_key
from jobagent_sharedcache.leases import Leases
from jobagent_sharedcache.room import Room
from jobagent_sharedcache.settings import KeepArchives, NetworkFilesystem, Protection, SharedCacheSettings
from jobagent_sharedcache.shelf import Record, Shelf, changed
from jobagent_sharedcache.store import Store
from jobagent_sharedcache.upkeep import Upkeep

log = logging.getLogger("jobagent.cache")

FIRST_WAIT_S, LONGEST_WAIT_S = 0.002, 0.05  # between attempts to take a lock that somebody holds
SWEEPER_PATIENCE_S = 0.5  # who evicts by name is not refused because somebody looks at the package just now
MAX_JOB_ID = 200
_UNSEEN = object()


class SharedCache:
    """A `ManagedCache` in one directory of a local disk.

    Raises:
        ScratchUnusable: The root cannot be used, or others could change it.
        SiteError: The root was written by a format that this agent does not know.
    """

    def __init__(
        self,
        settings: SharedCacheSettings,
        events: Events,
        *,
        root: Path,
        may_view: bool = True,
        free_space: FreeSpace = filesystem.free_space,
        network_type: Callable[[Path], str] = filesystem.network_type,
    ) -> None:
        self._settings = settings
        self._events = events
        self._may_view = may_view
        self._layout = layout = Layout(root)
        self._is_degraded = _check_disk(settings, root, network_type)
        with filesystem.errors_of_ours(f"cannot make the cache {root}"):
            layout.prepare()
        self._leases = Leases(layout, max_age_s=settings.lease_max_age_s, is_network_disk=self._is_degraded)
        self._shelf = Shelf(layout, self._leases.boot)
        self._store = Store(layout, self._leases.boot)
        self._upkeep = Upkeep(layout, self._shelf, self._store, self._leases, events, settings.keep_archives)
        self._room = Room(
            layout,
            settings,
            self._shelf,
            self._store,
            evict=self._upkeep.evict,
            evictable=self._evictable,
            free_space=free_space,
        )
        self._choose: Callable[[Sequence[CacheEntry]], Sequence[str]] = _least_recently_used
        self._tidied = threading.Lock()

    # --- Cache

    @property
    def root(self) -> Path:
        """Directory of the cache."""
        return self._layout.root

    @property
    def is_shared(self) -> bool:
        """Yes."""
        return True

    def final_tree(self, package: Package) -> Path:
        """The path of the package's tree once installed."""
        return self._layout.tree(package.key)

    def acquire(
        self, package: Package, holder: Holder, build: Builder, *, cancelled: threading.Event | None = None
    ) -> Lease:
        """Return a lease; see `jobagent.contracts.Cache`."""
        key, delay_s = package.key, FIRST_WAIT_S
        holder = Holder(holder.pid, holder.start_ticks, holder.job_id[:MAX_JOB_ID], holder.uid)
        waiting = progress.Waiting(self._layout.progress(key), key, str(package.id), self._events)
        # What was found unfit is not looked at again until it changed: many readers would keep every builder out.
        unfit: object = _UNSEEN
        with filesystem.errors_of_ours(f"cannot install {package.id} in {self.root}"):
            while True:
                with locks.attempted(self._layout.lock(key), exclusive=False) as is_held:
                    if is_held and (state := self._shelf.state(key)) != unfit:
                        if record := self._usable(package, holder):
                            return self._lease(package, holder, record)
                        unfit = state
                with locks.attempted(self._layout.lock(key), exclusive=True) as is_held:
                    if is_held:
                        return self._settle(package, holder, build)
                waiting.tick()
                if cancelled is None:
                    time.sleep(delay_s)
                elif cancelled.wait(delay_s):
                    raise SupplyError(f"cancelled while waiting for the installation of {package.id}")
                delay_s = min(2 * delay_s, LONGEST_WAIT_S)

    def release(self, lease: Lease) -> None:
        """End a lease; idempotent."""
        key = lease.installed.package.key
        with filesystem.errors_of_ours(f"cannot release {lease.installed.package.id} in {self.root}"):
            if self._leases.remove(key, lease.id) and self._settings.keep_archives is KeepArchives.LEASED:
                with locks.attempted(self._layout.lock(key), exclusive=True) as is_held:
                    if is_held:
                        self._upkeep.drop_idle_archive(key)

    def entries(self) -> Sequence[CacheEntry]:
        """What is installed now; a package that several VOs named is there once for each."""
        found = []
        for key in self._layout.package_keys():
            record = self._shelf.record(key)
            if record is None:
                continue
            leases, is_pinned = len(self._leases.live(key)), self._layout.pin(key).exists()
            found += [
                CacheEntry(
                    key=key,
                    package_id=str(package.id),
                    platform=package.platform,
                    size_bytes=record.tree_bytes,
                    last_used_s=self._shelf.last_used_s(key),
                    leases=leases,
                    is_pinned=is_pinned,
                    is_seedable=record.has_archive,
                )
                for package in self._shelf.packages(key)
            ]
        return found

    def installed(self) -> Iterator[Installed]:
        """Every installed package."""
        for key in self._layout.package_keys():
            if record := self._shelf.record(key):
                yield self._installed(record.package, record)

    def evict(self, key: str) -> bool:
        """Remove a package; False where it is leased, pinned or absent."""
        if not is_key(key):
            return False
        deadline = time.monotonic() + SWEEPER_PATIENCE_S
        with filesystem.errors_of_ours(f"cannot evict {key} from {self.root}"):
            while True:
                with locks.held(self._layout.quota_lock):
                    if self._upkeep.evict(key):
                        return True
                if self._upkeep.is_kept(key) or time.monotonic() >= deadline:
                    return False
                time.sleep(LONGEST_WAIT_S / 10)

    def verify(self, key: str) -> bool:
        """Hash the tree; a damaged one is set aside and its stored files are never linked again."""
        if not is_key(key):
            return False
        with filesystem.errors_of_ours(f"cannot verify {key} in {self.root}"), locks.held(self._layout.lock(key)):
            return self._shelf.record(key) is not None and self._recheck(key)

    def close(self) -> None:
        """End this agent's own leases; packages and leases of other processes stay."""
        self._leases.close()

    # --- ManagedCache

    @property
    def protection(self) -> str:
        """What protects packages from a payload that runs as this agent's user."""
        return self._protection(os.geteuid()).value

    def order_evictions_by(self, choose: Callable[[Sequence[CacheEntry]], Sequence[str]]) -> None:
        """Let `choose` give the order of evictions."""
        self._choose = choose

    def leases(self) -> Sequence[Lease]:
        """All leases that count, whoever took them."""
        return [
            Lease(lease.id, lease.holder, self._installed(record.package, record))
            for key in self._layout.leased_keys()
            if (record := self._shelf.record(key))
            for lease in self._leases.live(key)
        ]

    def pin(self, key: str, *, is_pinned: bool) -> bool:
        """Keep a package from eviction, or no longer."""
        if not is_key(key) or self._shelf.record(key) is None:
            return False
        with filesystem.errors_of_ours(f"cannot pin {key} in {self.root}"):
            if is_pinned:
                self._layout.pin(key).touch()
            else:
                self._layout.pin(key).unlink(missing_ok=True)
        return True

    def usage(self) -> CacheUsage:
        """What is used now."""
        with filesystem.errors_of_ours(f"cannot measure {self.root}"), locks.held(self._layout.quota_lock):
            return self._room.usage()

    def sweep(self) -> int:
        """Remove what ended agents left, each thing only under the lock of its key; return ended leases."""
        with filesystem.errors_of_ours(f"cannot sweep {self.root}"):
            return self._upkeep.sweep(
                lambda: self._room.clear_leftovers(older_than_s=self._settings.partial_max_age_s)
            )

    # --- under the lock of a key

    def _settle(self, package: Package, holder: Holder, build: Builder) -> Lease:
        """Exclusively locked: use what is there, after checking it where that is due, or install.

        Raises:
            TrustError: Jobs use another tree of the same archive.
        """
        key = package.key
        self._upkeep.sweep_key(key)
        there = self._shelf.record(key)
        if there is None:
            return self._install(package, holder, build)
        if not there.package.is_same_tree(package):
            self._refuse_if_leased(package, there.package)
            return self._install(package, holder, build)
        if self._usable(package, holder) or self._recheck(key):
            return self._lease(package, holder, there)
        return self._install(package, holder, build)

    def _usable(self, package: Package, holder: Holder) -> Record | None:
        """Return the record of a package that may be used as it is."""
        record = self._shelf.record(package.key)
        if record is None or not record.package.is_same_tree(package) or not self._shelf.is_fresh(package.key):
            return None
        needs_check = self._protection(holder.uid) is Protection.MANIFEST
        return None if needs_check and not self._shelf.is_unchanged(package.key) else record

    def _refuse_if_leased(self, package: Package, there: Package) -> None:
        """Let nobody take over the installation of another VO by signing its archive with another tree."""
        message = f"{package.id} signs another tree for the archive of {there.id} ({package.key[:16]}…)"
        if self._leases.live(package.key):
            raise TrustError(message, remedy="ask both publishers; evict the other once no job uses it")
        log.error("%s: installed anew for who asks now", message)

    def _recheck(self, key: str) -> bool:
        """Hash a tree; set a damaged one aside and return False."""
        try:
            wrong = self._shelf.check(key)
            if not wrong:
                return True
            reason = f"changed: {changed(wrong)}"
        except CacheTampered as error:
            wrong, reason = [], str(error)
        record = self._shelf.record(key)
        name = str(record.package.id) if record else key
        log.error("package %s in the cache was damaged and goes to quarantine: %s", name, reason)
        self._events.emit("cache.damaged", package=name, digest=key, message=reason)
        with locks.held(self._layout.quota_lock):
            self._store.drop(wrong)
            self._shelf.set_aside(key, reason, is_leased=bool(self._leases.live(key)))
        return False

    def _install(self, package: Package, holder: Holder, build: Builder) -> Lease:
        key = package.key
        if self._tidied.acquire(blocking=False):  # once per agent, where it costs least beside a download
            self.sweep()
        staged = self._layout.new_staging(key)
        try:
            with self._room.reserved(package):
                (staged / "tree").mkdir(parents=True)
                staged.chmod(0o755)
                with progress.shown(self._layout.progress(key), key, self._events):
                    built = build(Staging(staged / "tree", self._layout.archive(key)))
                keeps_archive = built.keep_archive and self._settings.keep_archives is not KeepArchives.NEVER
                self._describe(staged, package, built, keeps_archive=keeps_archive)
                self._shelf.place(staged, key)
        except BaseException:
            self._upkeep.sweep_key(key)
            raise
        if not keeps_archive:
            self._upkeep.drop_archive(key)
        record = self._shelf.record(key)
        if record is None:
            raise ScratchUnusable(f"{self._layout.package(key)} vanished", remedy="find out who else writes there")
        lease = self._lease(package, holder, record)
        installed = Installed(
            package, lease.installed.tree, lease.installed.archive, False, built.traffic, dict(built.seconds)
        )
        return Lease(lease.id, holder, installed)

    def _describe(self, staged: Path, package: Package, built: Built, *, keeps_archive: bool) -> None:
        tree = staged / "tree"
        outside_bytes = sum(filesystem.on_disk(e.size_bytes) for e in built.manifest)
        if self._settings.share_files:
            with locks.held(self._layout.quota_lock), self._store.changing() as books:
                outside_bytes = self._store.share(tree, built.manifest, books)
        filesystem.seal(tree)
        self._shelf.describe(staged, package, built, outside_bytes, has_archive=keeps_archive)

    def _lease(self, package: Package, holder: Holder, record: Record) -> Lease:
        lease = self._leases.write(package.key, holder)
        self._shelf.touch(package.key, package)
        return Lease(lease.id, holder, self._installed(package, record))

    # --- under the quota lock

    def _evictable(self) -> Sequence[CacheEntry]:
        """Return the entries that may go, in the order in which they go."""
        free = {e.key: e for e in self.entries() if not e.leases and not e.is_pinned}
        return [free[key] for key in self._choose(list(free.values())) if key in free]

    # --- facts

    def _protection(self, holder_uid: int) -> Protection:
        if self._is_degraded:
            return Protection.MANIFEST
        setting = self._settings.protection
        has_view = setting is Protection.AUTO and self._may_view and protection.has_view()
        return protection.decide(setting, holder_uid=holder_uid, owner_uid=os.geteuid(), has_view=has_view)

    def _installed(self, package: Package, record: Record) -> Installed:
        archive = self._layout.archive(package.key) if record.has_archive else None
        return Installed(package, self._layout.tree(package.key), archive, is_cache_hit=True)


def _check_disk(settings: SharedCacheSettings, root: Path, network_type: Callable[[Path], str]) -> bool:
    """Check the root; return whether it can only be used with less trust."""
    filesystem.check_root(root)
    with contextlib.suppress(OSError):
        kind = network_type(root)
        if kind and settings.network_filesystem is NetworkFilesystem.REFUSE:
            raise ScratchUnusable(
                f"cache root {root} is on {kind}, whose locks other hosts may not respect",
                remedy='set [sharedcache] root to a local disk, or network_filesystem = "degrade"',
            )
        if kind:
            log.warning("cache root %s is on %s: packages are checked before each job (degraded)", root, kind)
            return True
    return False


def _least_recently_used(entries: Sequence[CacheEntry]) -> Sequence[str]:
    return [e.key for e in sorted(entries, key=lambda e: e.last_used_s)]
