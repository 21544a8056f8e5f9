"""Keeping the house: what nobody may use is removed, what is cached is seeded, an idle service ends.

Idle is a service that no job needs and from which no neighbour fetches.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from jobagent import processes
from jobagent.contracts import Cache, Catalogue, ManagedCache
from jobagent.errors import JobAgentError
from jobagent.events import Event
from jobagent.job import data
from jobagent.job.kit import Kit
from jobagent.model import Package, PackageState

log = logging.getLogger("jobagent.node")


class Janitor:
    """One thread that sweeps at an interval, and at once when `wake` is called."""

    def __init__(
        self,
        kit: Kit,
        *,
        interval_s: float,
        idle_exit_s: float,
        idle_s: Callable[[], float],
        stop: Callable[[], None],
    ) -> None:
        self._kit = kit
        self._idle_s = idle_s
        self._interval_s = interval_s
        self._idle_exit_s = idle_exit_s
        self._stop = stop
        self._seeding = Seeding(kit)
        self._wake = threading.Event()
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="janitor", daemon=True)

    def start(self) -> None:
        """Begin with a sweep."""
        self._thread.start()

    def wake(self) -> None:
        """Sweep soon: the catalogue is another."""
        self._wake.set()

    def close(self, *, timeout_s: float = 10.0) -> None:
        """End after the sweep that is going on."""
        self._is_closing.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._is_closing.is_set():
            try:
                self._sweep()
            except (JobAgentError, OSError) as error:
                log.error("sweep of the cache failed: %s", error)
            idle_s = min(self._idle_s(), self._seeding.unneeded_s()) if self._idle_exit_s else 0.0
            if self._idle_exit_s and idle_s >= self._idle_exit_s:
                log.info("no job and no neighbour needed anything for %.0f s: ending", idle_s)
                self._stop()
            processes.give_back_memory()
            interval_s = min(self._interval_s, self._idle_exit_s or self._interval_s)
            self._wake.wait(interval_s)
            self._wake.clear()

    def _sweep(self) -> None:
        cache = self._kit.cache
        if not isinstance(cache, ManagedCache):
            return
        ended = cache.sweep()
        if ended:
            log.info("%d leases of ended holders removed", ended)
        if self._kit.catalogues:
            evict_banned(cache, self._kit.catalogue)
            self._seeding.seed_all()


class Seeding:
    """What the node gives to its neighbours, and whether any of them still takes it.  One thread calls it."""

    def __init__(self, kit: Kit, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._kit = kit
        self._clock = clock
        self._offered: dict[str, Path] = {}
        self._given_bytes = 0.0
        self._needed_s = clock()
        kit.events.subscribe(self._forget)

    def _forget(self, event: Event) -> None:
        """What the cache was about to remove is offered no more, whether it was removed in the end or not."""
        if event.name in {"cache.evicting", "cache.archive_dropped"}:
            self._offered.pop(str(event.fields["digest"]), None)

    def seed_all(self) -> None:
        """Offer what is cached; what was offered and lies where it lay costs nothing."""
        installed = {i.package.key: i for i in self._kit.cache.installed()} if self._kit.seeders else {}
        self._offered = {key: path for key, path in self._offered.items() if key in installed}
        for key, found in installed.items():
            archive = found.archive
            if archive is None or self._offered.get(key) == archive:
                continue
            try:
                data.seed(found.package, archive, self._kit)
                self._offered[key] = archive
            except (JobAgentError, OSError) as error:
                log.warning("cannot seed %s: %s", found.package.id, error)

    def unneeded_s(self) -> float:
        """Seconds since a neighbour was last seen to fetch something from here."""
        given = sum(seeder.status().get("upload_bytes", 0.0) for seeder in self._kit.seeders)
        if given > self._given_bytes:
            self._given_bytes, self._needed_s = given, self._clock()
        return self._clock() - self._needed_s


def evict_banned(cache: Cache, catalogue: Catalogue) -> list[Package]:
    """Remove packages that their VO banned and nobody leases; return them.

    What several VOs signed stays while one of them has not banned it: no VO may take from another.
    """
    by_key: dict[str, list[Package]] = {}
    for installed in cache.installed():
        by_key.setdefault(installed.package.key, []).append(installed.package)
    gone = []
    for key, packages in by_key.items():
        bans = [_ban_of(package, catalogue) for package in packages]
        if not all(bans):
            continue
        if isinstance(cache, ManagedCache):
            cache.pin(key, is_pinned=False)  # a site keeps what it likes, not what is dangerous
        if cache.evict(key):
            for package, ban in zip(packages, bans, strict=True):
                log.warning("package %s was banned (%s) and is removed", package.id, ban)
            gone += packages
    return gone


def _ban_of(package: Package, catalogue: Catalogue) -> str:
    """Why a package is banned; empty where it is not."""
    for version in catalogue.versions(package.id.namespace, package.id.name):
        if version.key == package.key and version.state is PackageState.BANNED:
            return version.reason or "no reason given"
    return ""
