"""What goes out of the cache: leftovers of ended agents, archives that nobody needs, evicted packages.

Each thing goes only under the exclusive lock of its key.  Methods say which locks their caller holds.
"""

from __future__ import annotations

from collections.abc import Callable

from jobagent.plugin import Events
from jobagent_sharedcache import filesystem, locks
from jobagent_sharedcache.layout import Layout
from jobagent_sharedcache.leases import Leases
from jobagent_sharedcache.settings import KeepArchives
from jobagent_sharedcache.shelf import Shelf
from jobagent_sharedcache.store import Store


class Upkeep:
    """Removes things from one cache."""

    def __init__(
        self, layout: Layout, shelf: Shelf, store: Store, leases: Leases, events: Events, keep_archives: KeepArchives
    ) -> None:
        self._layout = layout
        self._shelf = shelf
        self._store = store
        self._leases = leases
        self._events = events
        self._keep_archives = keep_archives

    # --- leftovers

    def sweep(self, clear_leftovers: Callable[[], None]) -> int:
        """Remove what ended agents left; `clear_leftovers` is called under the quota lock.

        Returns:
            The number of leases that ended with their holders.
        """
        ended = 0
        for key in sorted(self._untidy_keys()):
            with locks.attempted(self._layout.lock(key), exclusive=True) as is_held:
                if is_held:
                    self.sweep_key(key)
                    ended += self._leases.reap(key)
                    self.drop_idle_archive(key)
        self._leases.sweep_sessions()
        with locks.held(self._layout.quota_lock):  # nobody deletes in trash/ without it
            for path in self._layout.trash.iterdir():
                self._store.distrust()
                filesystem.remove_tree(path)
            clear_leftovers()
        return ended

    def _untidy_keys(self) -> set[str]:
        """What there is to look at under its lock; most packages of a node that only seeds are in order.

        A package is in order where its archive is what its record says, and nothing but both belongs to it.
        """
        archives = self._layout.archive_keys()
        untidy = self._layout.unsettled_keys()
        for key in self._layout.package_keys():
            record = self._shelf.record(key)
            has_archive = record is not None and record.has_archive
            if has_archive != (key in archives) or (has_archive and self._keep_archives is KeepArchives.LEASED):
                untidy.add(key)
        return untidy

    def sweep_key(self, key: str) -> None:
        """Remove what an ended builder of `key` left; exclusively locked."""
        for path in self._layout.staged(key):
            with locks.held(self._layout.quota_lock):  # nobody makes books of a tree that is half gone
                self._store.distrust()
                filesystem.remove_tree(path)
        self._layout.reservation(key).unlink(missing_ok=True)
        for path in self._layout.progress_files(key):
            path.unlink(missing_ok=True)
        record = self._shelf.record(key)
        if record is not None and record.has_archive != self._layout.archive(key).exists():
            self._shelf.drop_archive(key)  # somebody ended between the archive and the record

    # --- archives

    def drop_archive(self, key: str) -> None:
        """Remove an archive once listeners have stopped seeding it; exclusively locked."""
        record = self._shelf.record(key)
        self._events.emit("cache.archive_dropped", digest=key, package=str(record.package.id) if record else "")
        self._shelf.drop_archive(key)

    def drop_idle_archive(self, key: str) -> None:
        """Remove the archive of an unleased package where the site keeps only others; exclusively locked."""
        if self._keep_archives is not KeepArchives.LEASED:
            return
        record = self._shelf.record(key)
        if record is not None and record.has_archive and not self._leases.live(key):
            self.drop_archive(key)

    # --- packages

    def evict(self, key: str) -> bool:
        """Remove a package that nobody leases or pinned; under the quota lock, not under that of the key."""
        with locks.attempted(self._layout.lock(key), exclusive=True) as is_held:
            if not is_held or self.is_kept(key):
                return False
            record, entries = self._shelf.record(key), self._shelf.manifest(key)
            if record is not None:  # listeners stop seeding before the files go
                self._events.emit("cache.evicting", digest=key, package=str(record.package.id))
            doomed = self._shelf.take_away(key)
            if doomed is None:
                return False
            self._shelf.drop_archive(key)
            self._leases.reap(key)
        with self._store.changing() as books:
            self._store.forget(doomed / "tree", entries or (), books)
            filesystem.remove_tree(doomed)
        return True

    def is_kept(self, key: str) -> bool:
        """Whether a package may not be evicted, or is not there."""
        is_there = self._layout.package(key).exists()
        return not is_there or self._layout.pin(key).exists() or bool(self._leases.live(key))
