"""Package → tree in a staging directory: fetch, verify, unpack, check, relocate.

The one place where an archive becomes software.  Each step is a function; `Build` is what the cache calls when
nobody has the package yet.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobagent import manifest
from jobagent.contracts import Built, ManifestEntry, Order, Staging, Transport
from jobagent.errors import (
    DigestMismatch,
    DiskFull,
    PackageUnavailable,
    PluginError,
    SiteError,
    SupplyError,
    TrustError,
)
from jobagent.job import relocation
from jobagent.job.kit import Kit
from jobagent.model import Package, Traffic

RESERVE_BYTES = 16 << 20  # left free on the disk for logs and journals


class Build:
    """The builder of one package for one `prepare`; called by the cache with a staging directory."""

    def __init__(self, package: Package, kit: Kit, *, deadline: float, unpacking: threading.Semaphore) -> None:
        self._package = package
        self._kit = kit
        self._deadline = deadline
        self._unpacking = unpacking
        self._seconds: dict[str, float] = {}

    def __call__(self, staging: Staging) -> Built:
        package, kit = self._package, self._kit
        with self._timed("fetch"):
            check_room(package, staging.tree)
            torrent = kit.catalogue.torrent(package.archive) if kit.seeders else None
            traffic = fetch(package, kit, torrent, staging.archive, self._deadline)
        with self._timed("verify"):
            verify(package, kit, staging.archive)
        for seeder in kit.seeders if torrent else ():  # others need it now, not after it is unpacked
            seeder.seed(package, staging.archive, torrent or b"")
        try:
            with self._unpacking, self._timed("install"):
                entries = unpack(package, kit, staging)
                entries = relocation.relocate(staging.tree, kit.cache.final_tree(package), entries)
        except BaseException:
            for seeder in kit.seeders:
                seeder.unseed(package.key)
            raise
        return Built(tuple(entries), keep_archive=kit.keeps_archives, traffic=traffic, seconds=self._seconds)

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        start = time.monotonic()
        with self._kit.events.phase(step, package=str(self._package.id)):
            yield
        self._seconds[step] = time.monotonic() - start


def check_room(package: Package, directory: Path) -> None:
    """Raise DiskFull where archive and tree do not fit: found before the download, not in its middle."""
    needed = package.archive.size_bytes + package.tree.size_bytes + RESERVE_BYTES
    usage = shutil.disk_usage(directory)
    if usage.free < needed:
        raise DiskFull(
            f"{package.id} needs {needed >> 20} MB, {directory} has {usage.free >> 20} MB",
            remedy="free space, or set [site] scratch to a larger disk",
        )


def fetch(package: Package, kit: Kit, torrent: bytes | None, target: Path, deadline: float) -> Traffic:
    """Fetch the archive by the first transport that delivers.

    A failed transport's partial file is left for the next one, which resumes or starts anew as it can.

    Raises:
        PackageUnavailable: None delivered; the message says why each failed.
        DiskFull: No room.
        TrustError: The torrent was refused and no other transport delivered.
    """
    task = f"fetch {package.id}"
    size_bytes = package.archive.size_bytes

    def progress(done_bytes: int) -> None:
        kit.events.emit("progress", task=task, digest=package.key, done=done_bytes, total=size_bytes)

    order = Order(
        package, torrent, tuple(kit.catalogue.urls(package)), target, deadline, progress, cancelled=kit.cancelled
    )
    failures: list[str] = []
    for transport in _ordered(kit, package):
        if not transport.can_fetch(order):
            continue
        try:
            traffic = transport.fetch(order)
        except (DiskFull, TrustError):
            raise
        except (SupplyError, SiteError) as error:
            failures.append(f"{transport.name}: {error.cause_line}")
            kit.events.emit("warning", message=f"{package.id}: transport {transport.name} failed: {error}")
            if kit.cancelled.is_set():
                raise
            continue
        if target.stat().st_size != size_bytes:
            raise PluginError(f"transport {transport.name} left {target.stat().st_size} of {size_bytes} bytes")
        kit.events.emit(
            "package.fetched",
            package=str(package.id),
            transport=transport.name,
            seeder_bytes=traffic.seeder_bytes,
            neighbour_bytes=traffic.neighbour_bytes,
            web_bytes=traffic.web_bytes,
        )
        return traffic
    why = "; ".join(failures) or "no transport can fetch it"
    raise PackageUnavailable(f"{package.id} cannot be fetched: {why}", remedy="retry later; see jobagent whereis")


def _ordered(kit: Kit, package: Package) -> list[Transport]:
    by_name = {t.name: t for t in kit.transports}
    return [by_name[n] for n in kit.plugins.transport_order(package, list(by_name))]


def verify(package: Package, kit: Kit, archive: Path) -> None:
    """Ask all verifiers; a refused archive is deleted.  Without a verifier nothing passes."""
    if not kit.verifiers:
        raise PluginError("no verifier is registered, so nothing is installed", remedy="see jobagent plugins")
    try:
        for verifier in kit.verifiers:
            verifier.verify(package, archive)
    except TrustError:
        archive.unlink(missing_ok=True)
        raise


def unpack(package: Package, kit: Kit, staging: Staging) -> list[ManifestEntry]:
    """Unpack into the staging tree and compare with the signed manifest.

    Raises:
        HostileArchive, DiskFull: From the unpacker.
        DigestMismatch: The tree is not what was signed.
    """
    unpacker = next((u for u in kit.unpackers if package.archive.format in u.formats), None)
    if unpacker is None:
        known = ", ".join(sorted(f for u in kit.unpackers for f in u.formats))
        raise PluginError(f"no plugin unpacks {package.archive.format!r}", remedy=f"there are: {known}")
    entries = list(unpacker.unpack(staging.archive, package, staging.tree))
    if manifest.digest(entries) != package.tree.manifest:
        raise DigestMismatch(f"{package.id} unpacks to a tree that differs from its signed manifest")
    return entries
