"""Room on the disk: what may be used, who must go, and what is promised to builders.

The decisions (`limits_of`, `shortage`) are pure; `Room` does the I/O under the quota lock.  Whoever holds the quota
lock takes locks of keys without waiting, so it may be taken while holding one.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jobagent.plugin import CacheEntry, CacheUsage, DiskFull, Package
from jobagent_sharedcache import filesystem, locks
from jobagent_sharedcache.filesystem import FreeSpace, on_disk
from jobagent_sharedcache.layout import Layout
from jobagent_sharedcache.settings import SharedCacheSettings
from jobagent_sharedcache.shelf import Shelf
from jobagent_sharedcache.store import Store

SPARE_BYTES = 16 << 20  # left free on the disk for journals and logs
SPARE_INODES = 64


@dataclass(frozen=True, slots=True)
class Amount:
    """Bytes and inodes."""

    bytes: int
    inodes: int

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.bytes + other.bytes, self.inodes + other.inodes)


NOTHING = Amount(0, 0)


def need_of(package: Package) -> Amount:
    """Return what an installation takes at most: archive, tree, and a partly filled last block per file."""
    tree, archive = package.tree, package.archive
    tree_bytes = tree.size_bytes + tree.file_count * filesystem.BLOCK_BYTES // 2
    return Amount(on_disk(archive.size_bytes) + tree_bytes, tree.file_count + 16)


def limits_of(settings: SharedCacheSettings, disk_bytes: int) -> Amount:
    """Return what the site allows; 0 inodes is as many as the disk has."""
    share = int(disk_bytes * settings.quota_fraction)
    return Amount(min(settings.quota_bytes, share) if settings.quota_bytes else share, settings.quota_inodes)


def shortage(need: Amount, used: Amount, free: Amount, limits: Amount) -> Amount:
    """Return how much must go before `need` fits into the limits and onto the disk; nothing where it fits."""
    over_bytes = max(used.bytes + need.bytes - limits.bytes, need.bytes + SPARE_BYTES - free.bytes)
    over_inodes = need.inodes + SPARE_INODES - free.inodes
    if limits.inodes:
        over_inodes = max(over_inodes, used.inodes + need.inodes - limits.inodes)
    return Amount(max(0, over_bytes), max(0, over_inodes))


class Room:
    """Reservations and usage of one cache.  `evict(key)` removes an unleased package, or returns False."""

    def __init__(
        self,
        layout: Layout,
        settings: SharedCacheSettings,
        shelf: Shelf,
        store: Store,
        *,
        evict: Callable[[str], bool],
        evictable: Callable[[], Sequence[CacheEntry]],
        free_space: FreeSpace = filesystem.free_space,
    ) -> None:
        self._layout = layout
        self._settings = settings
        self._shelf = shelf
        self._store = store
        self._evict = evict
        self._evictable = evictable
        self._free_space = free_space

    @contextlib.contextmanager
    def reserved(self, package: Package) -> Iterator[None]:
        """Hold room for an installation, made by eviction where needed; the caller holds the lock of its key.

        Raises:
            DiskFull: It does not fit, whatever may be evicted; nothing is evicted where that is clear from the start.
        """
        key = package.key
        need = need_of(package)
        with locks.held(self._layout.quota_lock):
            self._make_room(package, need)
            promise = [need.bytes, need.inodes, package.id.namespace]
            self._layout.reservation(key).write_text(json.dumps(promise), encoding="ascii")
        try:
            yield
        finally:
            self._layout.reservation(key).unlink(missing_ok=True)

    def usage(self) -> CacheUsage:
        """Return what is used; the caller holds the quota lock."""
        records = [r for key in self._layout.package_keys() if (r := self._shelf.record(key))]
        installed = {r.package.key for r in records}
        archive_bytes = partial_bytes = 0
        for key, size in self._layout.archive_sizes().items():
            if key in installed:
                archive_bytes += size
            elif not self._is_reserved(key):
                partial_bytes += size
        books = self._store.books()
        free_bytes, disk_bytes, _ = self._free_space(self._layout.root)
        limits = limits_of(self._settings, disk_bytes)
        return CacheUsage(
            packages=len(records),
            logical_bytes=sum(r.tree_bytes * len(self._shelf.packages(r.package.key)) for r in records),
            stored_bytes=books.stored_bytes + sum(r.outside_bytes for r in records),
            archive_bytes=archive_bytes,
            partial_bytes=partial_bytes,
            quarantine_bytes=sum(_tree_bytes(path) for path in self._layout.quarantine.iterdir()),
            reserved_bytes=self._promised().bytes,
            limit_bytes=limits.bytes,
            free_bytes=free_bytes,
            inodes=books.stored_files + sum(r.members - r.stored_files for r in records) + len(records),
            limit_inodes=limits.inodes,
        )

    def clear_leftovers(self, *, older_than_s: float) -> None:
        """Remove quarantined trees and partial downloads of at least that age; the caller holds the quota lock."""
        limit_s = time.time() - older_than_s
        for path in self._layout.quarantine.iterdir():
            if path.stat().st_mtime <= limit_s:
                self._store.distrust()
                filesystem.remove_tree(path)
        installed = set(self._layout.package_keys())
        for key in self._layout.archive_sizes().keys() - installed:
            files = self._layout.archive_files(key)
            if all(p.stat().st_mtime <= limit_s for p in files):
                with locks.attempted(self._layout.lock(key), exclusive=True) as is_free:
                    if is_free and not self._layout.package(key).exists():
                        for path in files:
                            filesystem.remove_tree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def _make_room(self, package: Package, need: Amount) -> None:
        need = replace(need, bytes=need.bytes - min(need.bytes, self._layout.archive_sizes().get(package.key, 0)))
        _, disk_bytes, _ = self._free_space(self._layout.root)
        limits = limits_of(self._settings, disk_bytes)
        if need.bytes > limits.bytes or (limits.inodes and need.inodes > limits.inodes):
            raise self._full(package, need, f"the quota of the cache is {limits.bytes} bytes")
        if self._settings.quota_share < 1:
            self._keep_to_share(package, need, int(limits.bytes * self._settings.quota_share))
        over = self._shortage(need, limits)
        if over != NOTHING:
            self.clear_leftovers(older_than_s=0)
            over = self._shortage(need, limits)
        for entry in self._evictable() if over != NOTHING else ():
            if self._evict(entry.key):
                over = self._shortage(need, limits)
                if over == NOTHING:
                    return
        if over != NOTHING:
            missing = f"{over.bytes} bytes" if over.bytes else f"{over.inodes} inodes"
            raise self._full(package, need, f"{missing} are missing, all else is leased, pinned or being installed")

    def _keep_to_share(self, package: Package, need: Amount, share_bytes: int) -> None:
        """Let packages of the same VO, and of it alone, go until `need` fits into what one VO may take."""
        namespace = package.id.namespace
        taken = self._promised(namespace).bytes + need.bytes
        owned: dict[str, int] = {}
        archives = self._layout.archive_sizes()
        for key in self._layout.package_keys():
            names = {p.id.namespace for p in self._shelf.packages(key)}
            record = self._shelf.record(key)
            if record is not None and namespace in names:
                size = record.tree_bytes + archives.get(key, 0)
                taken += size // len(names)  # what several VOs use is a part of each one's share
                if len(names) == 1:
                    owned[key] = size
        for entry in self._evictable() if taken > share_bytes else ():
            if entry.key in owned and self._evict(entry.key):
                taken -= owned[entry.key]
                if taken <= share_bytes:
                    return
        if taken > share_bytes:
            raise self._full(package, need, f"the share of VO {namespace} is {share_bytes} bytes, {taken} were taken")

    def _shortage(self, need: Amount, limits: Amount) -> Amount:
        usage, promised = self.usage(), self._promised()
        free_bytes, _, free_inodes = self._free_space(self._layout.root)
        return shortage(
            need,
            Amount(usage.used_bytes, usage.inodes) + promised,
            Amount(free_bytes - promised.bytes, free_inodes - promised.inodes),
            limits,
        )

    def _full(self, package: Package, need: Amount, why: str) -> DiskFull:
        return DiskFull(
            f"{package.id} needs {need.bytes} bytes and {need.inodes} inodes in {self._layout.root}: {why}",
            remedy="raise [sharedcache] quota, unpin packages, or free space on the disk",
        )

    def _promised(self, namespace: str = "") -> Amount:
        """Sum the reservations, all or a VO's, whose builder lives: it holds the lock of its key."""
        total = NOTHING
        for key in self._layout.reserved_keys():
            if self._is_reserved(key):
                with contextlib.suppress(OSError, ValueError):
                    size_bytes, inodes, *owner = json.loads(self._layout.reservation(key).read_bytes())
                    if namespace in {"", *owner}:
                        total += Amount(size_bytes, inodes)
        return total

    def _is_reserved(self, key: str) -> bool:
        return self._layout.reservation(key).exists() and locks.is_exclusively_held(self._layout.lock(key))


def _tree_bytes(path: Path) -> int:
    return sum(
        on_disk(os.lstat(os.path.join(directory, name)).st_size)
        for directory, _, names in os.walk(path)
        for name in names
    )
