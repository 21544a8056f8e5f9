"""A catalogue in memory that implements the `Catalogue` protocol: for tests of everything that needs packages."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Sequence

from jobagent.contracts import Freshness
from jobagent.errors import CatalogueUnreachable, DigestMismatch, SupplyError
from jobagent.model import Archive, Blob, Package


class FakeCatalogue:
    """Packages, torrents and objects that a test put there.

    Torrents are given as `add(package, torrent=…)` and handed out unchanged: whether they agree with the infohash is
    the business of the real catalogue.  Objects are checked against their digest, as the protocol promises.
    Set `is_reachable` to False to see how a caller takes `CatalogueUnreachable`.  Thread-safe.
    """

    def __init__(self, packages: Iterable[Package] = (), *, objects: Iterable[bytes] = ()) -> None:
        self.is_reachable = True
        self.refreshes = 0
        self._lock = threading.Lock()
        self._packages: dict[tuple[str, str, str, str], Package] = {}
        self._torrents: dict[str, bytes] = {}
        self._objects: dict[str, bytes] = {}
        self._urls: dict[str, tuple[str, ...]] = {}
        for package in packages:
            self.add(package)
        for content in objects:
            self.add_object(content)

    def add(
        self,
        package: Package,
        *,
        torrent: bytes | None = None,
        objects: Iterable[bytes] = (),
        urls: Sequence[str] = (),
    ) -> None:
        """Put a package there, or replace it (a new state, for instance); `urls` are the catalogue's own mirrors."""
        with self._lock:
            self._packages[(package.id.namespace, package.id.name, package.id.version, package.platform)] = package
            if torrent is not None:
                self._torrents[package.archive.infohash_v2] = torrent
            if urls:
                self._urls[package.key] = tuple(urls)
        for content in objects:
            self.add_object(content)

    def add_object(self, content: bytes) -> Blob:
        """Put an object there and return its reference."""
        reference = Blob(hashlib.sha256(content).hexdigest(), len(content))
        with self._lock:
            self._objects[reference.sha256] = content
        return reference

    def refresh(self, *, is_forced: bool = False) -> Freshness:
        """Count the call; the fake never expires."""
        self._check_reachable()
        with self._lock:
            self.refreshes += 1
            return Freshness(version=self.refreshes, expires_s=4102444800.0, source="memory")

    def namespaces(self) -> Sequence[str]:
        """All namespaces that have a package."""
        self._check_reachable()
        return sorted({package.id.namespace for package in self._snapshot()})

    def names(self, namespace: str) -> Sequence[str]:
        """All names of a namespace."""
        self._check_reachable()
        return sorted({package.id.name for package in self._snapshot() if package.id.namespace == namespace})

    def versions(self, namespace: str, name: str) -> Sequence[Package]:
        """All versions on all platforms in every state."""
        self._check_reachable()
        return [p for p in self._snapshot() if p.id.namespace == namespace and p.id.name == name]

    def torrent(self, archive: Archive) -> bytes:
        """The torrent that the test gave."""
        self._check_reachable()
        with self._lock:
            content = self._torrents.get(archive.infohash_v2)
        if content is None:
            raise SupplyError(f"no torrent {archive.infohash_v2[:12]}… of {archive.file_name} in the fake catalogue")
        return content

    def blob(self, blob: Blob) -> bytes:
        """The object with that digest."""
        self._check_reachable()
        with self._lock:
            content = self._objects.get(blob.sha256)
        if content is None:
            raise SupplyError(f"no object {blob.sha256[:12]}… in the fake catalogue")
        if len(content) != blob.size_bytes:
            raise DigestMismatch(f"object {blob.sha256[:12]}… has {len(content)} bytes, signed are {blob.size_bytes}")
        return content

    def urls(self, package: Package) -> Sequence[str]:
        """The signed alternates, then those of the test."""
        with self._lock:
            return (*package.pfns, *self._urls.get(package.key, ()))

    def _snapshot(self) -> tuple[Package, ...]:
        with self._lock:
            return tuple(self._packages.values())

    def _check_reachable(self) -> None:
        if not self.is_reachable:
            raise CatalogueUnreachable("the fake catalogue was made unreachable by the test")
