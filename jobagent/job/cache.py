"""The private cache: a job's own packages, in a directory that goes with it.

The default without the shared-cache plugin.  One process uses it, from many threads; nothing in it outlives
`close`.  A package is built in a staging directory beside and appears by one rename.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from jobagent import manifest
from jobagent.contracts import Builder, CacheEntry, Holder, Lease, ManifestEntry, Staging
from jobagent.errors import DiskFull, ScratchUnusable, SupplyError, TrustError
from jobagent.model import Installed, Package, Traffic

# Paths of packages end up in `#!` lines, which older kernels cut at 127 bytes.
NAME_DIGITS = 16
POLL_S = 0.1  # how late a waiter may notice that it is cancelled


@dataclass(slots=True)
class _Slot:
    """One package of this cache; `installed` is None until it is built and after it was removed."""

    building: threading.Lock = field(default_factory=threading.Lock)
    installed: Installed | None = None
    entries: Sequence[ManifestEntry] = ()
    leases: set[str] = field(default_factory=set)
    last_used_s: float = 0.0


class PrivateCache:
    """A `jobagent.contracts.Cache` for one job.  The directory is made on first use and removed by `close`."""

    def __init__(self, directory: Path) -> None:
        self._root = directory
        self._slots: dict[str, _Slot] = {}
        self._guard = threading.Lock()
        self._numbers = itertools.count(1)

    @property
    def root(self) -> Path:
        """The directory."""
        return self._root

    @property
    def is_shared(self) -> bool:
        """No: the packages go with the job."""
        return False

    def final_tree(self, package: Package) -> Path:
        """The path of the package's tree once installed."""
        return self._root / package.key[:NAME_DIGITS]

    def acquire(
        self, package: Package, holder: Holder, build: Builder, *, cancelled: threading.Event | None = None
    ) -> Lease:
        """Return a lease; the first caller for a package builds it, the others wait.

        Raises:
            DiskFull: The file system has no room for archive and tree, found before the download.
            SupplyError: `cancelled` was set while another thread built.
            TrustError: Two packages of one job have the same first digits in their digest, or one archive and two
                trees: nobody's accident.
            JobAgentError: What the builder raised.
        """
        slot = self._slot(package)
        with _held(slot.building, cancelled):
            hit = slot.installed
            if hit and not hit.package.is_same_tree(package):
                raise TrustError(f"{package.id} signs another tree for the archive of {hit.package.id}")
            installed = (
                replace(hit, package=package, is_cache_hit=True, traffic=Traffic(), seconds={})
                if hit
                else self._install(package, slot, build)
            )
            with self._guard:
                lease_id = f"private-{next(self._numbers)}"
                slot.leases.add(lease_id)
                slot.last_used_s = time.time()
        return Lease(lease_id, holder, installed)

    def release(self, lease: Lease) -> None:
        """End a lease; the package stays until the job ends."""
        with self._guard:
            slot = self._slots.get(lease.installed.package.key)
            if slot is not None:
                slot.leases.discard(lease.id)

    def entries(self) -> Sequence[CacheEntry]:
        """What is installed now."""
        with self._guard:
            slots = list(self._slots.items())
        return [
            CacheEntry(
                key=key,
                package_id=str(slot.installed.package.id),
                platform=slot.installed.package.platform,
                size_bytes=sum(e.size_bytes for e in slot.entries),
                last_used_s=slot.last_used_s,
                leases=len(slot.leases),
                is_seedable=slot.installed.archive is not None,
            )
            for key, slot in slots
            if slot.installed
        ]

    def installed(self) -> Iterator[Installed]:
        """Every installed package."""
        with self._guard:
            slots = list(self._slots.values())
        return (slot.installed for slot in slots if slot.installed)

    def evict(self, key: str) -> bool:
        """Remove an installed package; False where it is leased or absent."""
        slot = self._slots.get(key)
        if slot is None:
            return False
        with slot.building:
            if slot.installed is None or slot.leases:
                return False
            self._remove(slot)
            return True

    def verify(self, key: str) -> bool:
        """Compare a tree with its manifest; a changed one is removed, and the next `acquire` builds it again."""
        slot = self._slots.get(key)
        if slot is None:
            return False
        with slot.building:
            if slot.installed is None:
                return False
            if not manifest.difference(slot.entries, slot.installed.tree):
                return True
            self._remove(slot)
            return False

    def close(self) -> None:
        """Remove the directory with all packages."""
        with self._guard:
            self._slots.clear()
        shutil.rmtree(self._root, ignore_errors=True)

    def _slot(self, package: Package) -> _Slot:
        with self._guard:
            slot = self._slots.setdefault(package.key, _Slot())
            twin = next((k for k in self._slots if k[:NAME_DIGITS] == package.key[:NAME_DIGITS]), package.key)
        if twin != package.key:
            raise TrustError(f"{package.id}: its digest begins like that of another package of this job, {twin}")
        return slot

    def _install(self, package: Package, slot: _Slot, build: Builder) -> Installed:
        name = package.key[:NAME_DIGITS]
        staging = Staging(self._root / f"staging-{name}", self._root / f"{name}.archive")
        try:
            staging.tree.mkdir(parents=True)
            self._check_room(package, staging)
            built = build(staging)
            os.rename(staging.tree, self.final_tree(package))
        except OSError as error:
            kind = DiskFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else ScratchUnusable
            raise kind(f"cannot install {package.id} in {self._root}: {error}") from error
        finally:
            shutil.rmtree(staging.tree, ignore_errors=True)
        if not built.keep_archive:
            _remove_archive(staging.archive)
        slot.entries = tuple(built.manifest)
        slot.installed = Installed(
            package=package,
            tree=self.final_tree(package),
            archive=staging.archive if built.keep_archive else None,
            traffic=built.traffic,
            seconds=built.seconds,
        )
        return slot.installed

    def _check_room(self, package: Package, staging: Staging) -> None:
        status = os.statvfs(self._root)
        here = staging.archive.stat().st_blocks * 512 if staging.archive.exists() else 0
        need = package.tree.size_bytes + max(0, package.archive.size_bytes - here)
        have = status.f_bavail * status.f_frsize
        if need > have:
            raise DiskFull(
                f"{package.id} needs {need} bytes in {self._root}, {have} are free",
                remedy="free space there or set [site] scratch to a larger disk",
            )

    def _remove(self, slot: _Slot) -> None:
        installed, slot.installed, slot.entries = slot.installed, None, ()
        assert installed is not None
        doomed = self._root / f"removed-{next(self._numbers)}"
        with contextlib.suppress(FileNotFoundError):
            os.rename(installed.tree, doomed)
        shutil.rmtree(doomed, ignore_errors=True)
        if installed.archive is not None:
            _remove_archive(installed.archive)


@contextlib.contextmanager
def _held(lock: threading.Lock, cancelled: threading.Event | None) -> Iterator[None]:
    """Hold `lock`, or raise SupplyError where `cancelled` is set while waiting for it."""
    while not lock.acquire(timeout=POLL_S if cancelled else -1):
        if cancelled and cancelled.is_set():
            raise SupplyError("cancelled while waiting for another thread's installation")
    try:
        yield
    finally:
        lock.release()


def _remove_archive(archive: Path) -> None:
    """Remove an archive and what a transport left beside it."""
    for path in archive.parent.glob(archive.name + "*"):
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
