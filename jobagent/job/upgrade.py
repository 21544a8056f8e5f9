"""Package → tree by way of an earlier version on the node, or else as usual.

A builder around `Build`: it looks for an update (`jobagent.job.updates`) from something installed to the package,
brings that, and builds the tree from both.  Whatever goes wrong on the way costs the attempt, never the job.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jobagent import manifest
from jobagent.contracts import Builder, Built, Holder, Lease, ManifestEntry, Staging
from jobagent.errors import DigestMismatch, JobAgentError, SupplyError
from jobagent.job import build, relocation, updates
from jobagent.job.kit import Kit
from jobagent.model import Installed, Package
from jobagent.processes import start_ticks

log = logging.getLogger("jobagent.job")


class Upgrade:
    """Builds `package` by an update where there is one, and by `full` otherwise."""

    def __init__(self, package: Package, kit: Kit, *, deadline: float, full: Callable[[Staging], Built]) -> None:
        self._package = package
        self._kit = kit
        self._deadline = deadline
        self._full = full

    def __call__(self, staging: Staging) -> Built:
        chosen = self._choose() if self._kit.cache.is_shared else None
        if chosen is not None:
            update, base = chosen
            try:
                return self._upgrade(update, base, staging)
            except (JobAgentError, OSError) as error:
                if self._kit.cancelled.is_set():
                    raise
                message = (
                    f"{self._package.id}: update from {base.package.id} did not work, the whole is fetched: {error}"
                )
                self._kit.events.emit("warning", message=message)
                shutil.rmtree(staging.tree)
                staging.tree.mkdir()
        return self._full(staging)

    def _choose(self) -> tuple[Package, Installed] | None:
        package, cache = self._package, self._kit.cache
        bases = [i for i in cache.installed() if i.package.key != package.key and not _is_update(i.package)]
        if not bases:
            return None
        versions = self._kit.catalogue.versions(package.id.namespace, package.id.name)
        return updates.choose(versions, package, bases)

    def _upgrade(self, update: Package, installed: Installed, staging: Staging) -> Built:
        """Bring the update through the cache, which seeds it for others, and build the tree."""
        package, kit, start = self._package, self._kit, time.monotonic()
        with self._leased(installed.package, _gone), self._leased(update, self._bring(update)) as lease:
            fetched = time.monotonic()
            with kit.events.phase("install", package=str(package.id)):
                file = lease.installed.tree / update.archive.file_name
                base = updates.Base.installed(installed)
                updates.apply(file, base, package.tree.manifest, staging.tree)
                entries = manifest.scan(staging.tree)
                if manifest.digest(entries) != package.tree.manifest:
                    raise DigestMismatch(f"{package.id} made by its update differs from its signed manifest")
                entries = tuple(relocation.relocate(staging.tree, kit.cache.final_tree(package), entries))
        log.info("%s came as an update from %s", package.id, installed.package.id)
        seconds = {"fetch": fetched - start, "install": time.monotonic() - fetched}
        return Built(entries, keep_archive=False, traffic=lease.installed.traffic, seconds=seconds)

    @contextmanager
    def _leased(self, package: Package, build: Builder) -> Iterator[Lease]:
        """Keep a package from eviction during the block."""
        cache = self._kit.cache
        holder = Holder(os.getpid(), start_ticks(os.getpid()), "update", os.geteuid())
        lease = cache.acquire(package, holder, build, cancelled=self._kit.cancelled)
        try:
            yield lease
        finally:
            cache.release(lease)

    def _bring(self, update: Package) -> Callable[[Staging], Built]:
        def bring(staging: Staging) -> Built:
            kit, start = self._kit, time.monotonic()
            torrent = kit.catalogue.torrent(update.archive) if kit.seeders else None
            traffic = build.fetch(update, kit, torrent, staging.archive, self._deadline)
            build.verify(update, kit, staging.archive)
            for seeder in kit.seeders if torrent else ():
                seeder.seed(update, staging.archive, torrent or b"")
            os.link(staging.archive, staging.tree / update.archive.file_name)
            (staging.tree / update.archive.file_name).chmod(0o644)
            entry = ManifestEntry(
                update.archive.file_name, "f", 0o644, update.archive.size_bytes, update.archive.sha256
            )
            return Built((entry,), kit.keeps_archives, traffic, {"fetch": time.monotonic() - start})

        return bring


def _gone(staging: Staging) -> Built:
    raise SupplyError("the earlier version has gone or was damaged")


def _is_update(package: Package) -> bool:
    return package.archive.format == updates.ARCHIVE_FORMAT
