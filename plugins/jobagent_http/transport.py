"""Archives from web servers and local files: the last resort, when no swarm delivers."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence

from jobagent.plugin import (
    ConfigurationError,
    Context,
    DigestMismatch,
    DiskFull,
    JobAgentError,
    Order,
    ScratchUnusable,
    SupplyError,
    Traffic,
)
from jobagent_http.download import CHUNK_BYTES, SCHEMES, DownloadFailed, chunks
from jobagent_http.settings import HttpSettings

ATTEMPTS = 5  # with one mirror, as long as each brings something
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class _WrongDigest(Exception):
    """The file is complete and not the signed one; `is_mixed`: part of it was there before this attempt."""

    def __init__(self, *, is_mixed: bool) -> None:
        super().__init__()
        self.is_mixed = is_mixed


class Http:
    """Tries the mirrors of an archive in order; a partial file is resumed with any of them.  Thread-safe."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @property
    def name(self) -> str:
        """`http`."""
        return "http"

    @property
    def rank(self) -> int:
        """Behind the swarm: a server's bandwidth does not grow with its clients."""
        return 50

    def can_fetch(self, order: Order) -> bool:
        """Whether a mirror has a scheme that is known here."""
        return bool(self._usable(order))

    def fetch(self, order: Order) -> Traffic:
        """Fetch from the first mirror that delivers; see `Transport.fetch`.

        Raises:
            DigestMismatch: A mirror gave something else than what was signed, and no other gave it right.
        """
        settings = self._context.config.get(HttpSettings)
        failures: list[str] = []
        received = 0
        is_wrong = False
        for url in self._usable(order):
            for _ in range(ATTEMPTS):
                before = _size(order)
                try:
                    received += self._attempt(order, url, settings)
                    return Traffic(web_bytes=received)
                except _WrongDigest as error:
                    if error.is_mixed:
                        continue  # from the start: this mirror may have finished what a bad one began
                    is_wrong = True
                    failures.append(f"{url}: its data is not what was signed")
                    break
                except DownloadFailed as error:
                    failures.append(str(error))
                    if error.is_hopeless or _size(order) <= before:
                        break
        message = f"{order.package.id}: " + "; ".join(dict.fromkeys(failures))
        raise DigestMismatch(message) if is_wrong else SupplyError(message)

    def close(self) -> None:
        """Nothing is kept open."""

    def _usable(self, order: Order) -> list[str]:
        """The PFNs that can be asked, those of other schemes by their gateways."""
        gateways = gateways_of(self._context.config.get(HttpSettings).gateways)
        return [url for pfn in order.urls if (url := through(pfn, gateways))]

    def _attempt(self, order: Order, url: str, settings: HttpSettings) -> int:
        """Fetch what is missing from one mirror; return the bytes received."""
        size = order.package.archive.size_bytes
        received = 0
        with _writing(order) as descriptor:
            offset = min(os.fstat(descriptor).st_size, size)
            digest = _digest_of(descriptor, offset)
            is_mixed = offset > 0
            if offset < size:
                for position, chunk in chunks(url, settings, offset=offset, size_bytes=size):
                    if position == 0 and received == 0 and offset:
                        digest, is_mixed = hashlib.sha256(), False  # the server cannot resume
                        os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, chunk, position)
                    digest.update(chunk)
                    received += len(chunk)
                    order.progress(position + len(chunk))
                    _check_wanted(order)
            if digest.hexdigest() != order.package.archive.sha256:
                os.ftruncate(descriptor, 0)
                raise _WrongDigest(is_mixed=is_mixed)
            os.fsync(descriptor)
        return received


def gateways_of(entries: Sequence[str]) -> Mapping[str, str]:
    """Read `SCHEME=URL` entries; raises ConfigurationError naming the bad one."""
    gateways: dict[str, str] = {}
    for entry in entries:
        scheme, _, url = entry.partition("=")
        if not scheme.isalnum() or scheme.lower() in SCHEMES or not url.startswith(("http://", "https://")):
            raise ConfigurationError(f"[http] gateways has {entry!r}", remedy="write SCHEME=URL, as osdf=https://…")
        gateways[scheme.lower()] = url.rstrip("/")
    return gateways


def through(pfn: str, gateways: Mapping[str, str]) -> str | None:
    """The URL to ask for a PFN; None where its scheme is neither known nor has a gateway.

    `root://host//path` and `osdf:///path` alike: the gateway knows the federation, hosts in a PFN do not count.
    """
    parts = urllib.parse.urlsplit(pfn)
    scheme = parts.scheme.lower()
    if scheme in SCHEMES:
        return pfn
    gateway = gateways.get(scheme)
    return f"{gateway}/{urllib.parse.quote(parts.path.lstrip('/'), safe='/%')}" if gateway else None


def _size(order: Order) -> int:
    return order.target.stat().st_size if order.target.exists() else 0


def _check_wanted(order: Order) -> None:
    if order.cancelled.is_set():
        raise SupplyError(f"fetch of {order.package.id} was cancelled")
    if time.monotonic() >= order.deadline:
        raise SupplyError(f"{order.package.id} did not arrive in time")


@contextlib.contextmanager
def _writing(order: Order) -> Iterator[int]:
    """Open the target for writing where it is; what cannot be written is a full disk or an unusable one."""
    target, size = order.target, order.package.archive.size_bytes
    try:
        descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            status, room = os.fstat(descriptor), os.fstatvfs(descriptor)
            if status.st_size > size:
                os.ftruncate(descriptor, 0)
            missing, free = size - status.st_blocks * 512, room.f_bavail * room.f_frsize
            if missing > free:
                raise DiskFull(
                    f"need {missing} bytes for {target.name}, have {free} in {target.parent}",
                    remedy="free space or quota, or set [site] scratch to a larger disk",
                )
            yield descriptor
        finally:
            os.close(descriptor)
    except DiskFull:
        target.unlink(missing_ok=True)
        raise
    except OSError as error:
        wrong: type[JobAgentError] = DiskFull if error.errno in _NO_ROOM else ScratchUnusable
        if wrong is DiskFull:
            target.unlink(missing_ok=True)
        raise wrong(f"cannot write {target}: {error.strerror}", remedy="check [site] scratch") from error


def _digest_of(descriptor: int, size_bytes: int) -> hashlib._Hash:
    digest = hashlib.sha256()
    position = 0
    while position < size_bytes:
        chunk = os.pread(descriptor, min(CHUNK_BYTES, size_bytes - position), position)
        if not chunk:
            break
        digest.update(chunk)
        position += len(chunk)
    return digest
