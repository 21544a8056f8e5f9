"""Keeping the house: what nobody may use is removed, what is cached is seeded, an idle service ends."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from jobagent import processes
from jobagent.contracts import Cache, Catalogue, ManagedCache
from jobagent.errors import JobAgentError
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
        self._wake = threading.Event()
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="janitor", daemon=True)

    def start(self) -> None:
        """Begin with a sweep."""
        self._thread.start()

    def wake(self) -> None:
        """Sweep soon: the catalogue was renewed, or a job ended."""
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
            if self._idle_exit_s and self._idle_s() >= self._idle_exit_s:
                log.info("idle for %.0f s: ending", self._idle_s())
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
            seed_all(self._kit)


def evict_banned(cache: Cache, catalogue: Catalogue) -> list[Package]:
    """Remove packages that their VO banned and nobody leases; return them."""
    gone = []
    for installed in list(cache.installed()):
        package = installed.package
        versions = catalogue.versions(package.id.namespace, package.id.name)
        banned = [v for v in versions if v.key == package.key and v.state is PackageState.BANNED]
        if banned and isinstance(cache, ManagedCache):
            cache.pin(package.key, is_pinned=False)  # a site keeps what it likes, not what is dangerous
        if banned and cache.evict(package.key):
            log.warning(
                "package %s was banned (%s) and is removed", package.id, banned[0].reason or "no reason given"
            )
            gone.append(package)
    return gone


def seed_all(kit: Kit) -> None:
    """Seed what is cached; seeders take each package once, so this is cheap when nothing is new."""
    for installed in kit.cache.installed() if kit.seeders else ():
        archive: Path | None = installed.archive
        if archive is None:
            continue
        try:
            data.seed(installed.package, archive, kit)
        except (JobAgentError, OSError) as error:
            log.warning("cannot seed %s: %s", installed.package.id, error)
