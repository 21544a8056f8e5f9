"""Any file that has a torrent, through the cache: what `torrent://` inputs of jobs are made of.

Nobody signed it; its name is the infohash, which the torrent's publisher gave to the job.  So its integrity is that
of the infohash (BEP 52: the root hash of the file's 16 KiB blocks, checked here whatever delivered the bytes), and
the cache's key is made from the infohash so that no archive's digest can be equal to it.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jobagent import bencode
from jobagent.contracts import Built, Order, Staging
from jobagent.errors import (
    DigestMismatch,
    DiskFull,
    HostileArchive,
    PackageUnavailable,
    PluginError,
    SiteError,
    SupplyError,
)
from jobagent.job.kit import Kit
from jobagent.model import Archive, Blob, Package, PackageId, Traffic, Tree

BLOCK_BYTES = 1 << 14  # BEP 52
FORMAT = "file"
NAMESPACE = "user.torrent"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+~-]{0,126}")


@dataclass(frozen=True, slots=True)
class Data:
    """One file as its torrent describes it.  `url` is where the torrent came from, and may be empty."""

    package: Package
    torrent: bytes
    root: bytes
    url: str = ""

    @property
    def urls(self) -> tuple[str, ...]:
        """Where the file itself may lie: beside its torrent."""
        place = self.url.removeprefix("torrent://").removesuffix(".torrent")
        if not self.url.endswith(".torrent") or not place.partition("/")[0]:
            return ()
        return (f"https://{place}", f"http://{place}")


def read(torrent: bytes, url: str = "") -> Data:
    """Return what a torrent describes.

    Raises:
        HostileArchive: Malformed, without v2 hashes, or anything but one plain file.
    """
    try:
        top = bencode.decode(torrent)
        info_bytes = bytes(bencode.raw_member(torrent, b"info"))
    except ValueError as error:
        raise HostileArchive(f"torrent is malformed: {error}") from error
    info = top.get(b"info") if isinstance(top, dict) else None
    if not isinstance(info, dict) or info.get(b"meta version") != 2:
        raise HostileArchive("torrent has no v2 hashes", remedy="make it with jobagent publish, or as hybrid or v2")
    name = info.get(b"name")
    tree = info.get(b"file tree")
    node = tree.get(name) if isinstance(tree, dict) and isinstance(name, bytes) and len(tree) == 1 else None
    leaf = node.get(b"") if isinstance(node, dict) and len(node) == 1 else None
    if not isinstance(leaf, dict) or not isinstance(name, bytes):
        raise HostileArchive("torrent is not of exactly one file", remedy="publish a directory as a package")
    size, root = leaf.get(b"length"), leaf.get(b"pieces root")
    if not isinstance(size, int) or size <= 0 or not isinstance(root, bytes) or len(root) != 32:
        raise HostileArchive("torrent's file has no length or no root hash")
    file_name = name.decode("utf-8", "replace")
    if not _NAME.fullmatch(file_name):
        raise HostileArchive(f"torrent's file name {file_name[:100]!r} is not a plain file name")
    infohash = hashlib.sha256(info_bytes).hexdigest()
    return Data(_package(file_name, size, infohash), torrent, root, url)


def key_of(infohash_v2: str) -> str:
    """Return the cache's key: the complement of the infohash, whose preimage nobody can make an archive of."""
    return bytes(byte ^ 0xFF for byte in bytes.fromhex(infohash_v2)).hex()


def _package(file_name: str, size_bytes: int, infohash: str) -> Package:
    archive = Archive(file_name, FORMAT, key_of(infohash), size_bytes, "", infohash)
    package_id = PackageId(NAMESPACE, file_name, infohash[:16])
    return Package(package_id, "any", archive, Tree(Blob(infohash, 0), size_bytes, 1), int(time.time()))


class DataBuild:
    """The builder of one file; called by the cache with a staging directory."""

    def __init__(self, data: Data, kit: Kit, *, deadline: float) -> None:
        self._data = data
        self._kit = kit
        self._deadline = deadline

    def __call__(self, staging: Staging) -> Built:
        data, kit = self._data, self._kit
        start = time.monotonic()
        traffic = self._fetch(staging.archive)
        fetched = time.monotonic()
        if root_of(staging.archive) != data.root:
            staging.archive.unlink(missing_ok=True)
            raise DigestMismatch(f"{data.package.archive.file_name} is not what its torrent describes")
        staging.archive.with_name(staging.archive.name + ".torrent").write_bytes(data.torrent)
        unpacker = next((u for u in kit.unpackers if FORMAT in u.formats), None)
        if unpacker is None:
            raise PluginError(f"no plugin unpacks {FORMAT!r}", remedy="see jobagent plugins")
        entries = unpacker.unpack(staging.archive, data.package, staging.tree)
        seconds = {"fetch": fetched - start, "install": time.monotonic() - fetched}
        return Built(entries, keep_archive=kit.keeps_archives, traffic=traffic, seconds=seconds)

    def _fetch(self, target: Path) -> Traffic:
        """Fetch by the first transport that delivers; raises PackageUnavailable with every reason."""
        package, kit = self._data.package, self._kit

        def progress(done_bytes: int) -> None:
            task, total = f"fetch {package.archive.file_name}", package.archive.size_bytes
            kit.events.emit("progress", task=task, digest=package.key, done=done_bytes, total=total)

        order = Order(package, self._data.torrent, self._data.urls, target, self._deadline, progress, kit.cancelled)
        failures: list[str] = []
        for transport in (t for t in kit.transports if t.can_fetch(order)):
            try:
                return transport.fetch(order)
            except DiskFull:
                raise
            except (SupplyError, SiteError) as error:
                failures.append(f"{transport.name}: {error.cause_line}")
                if kit.cancelled.is_set():
                    raise
        why = "; ".join(failures) or "no transport can fetch it"
        raise PackageUnavailable(f"{package.archive.file_name} cannot be fetched: {why}", remedy="retry later")


def seed(data: Package, archive: Path, kit: Kit) -> None:
    """Offer a cached file again, by the torrent that lies beside it, or the catalogue's.

    Raises:
        JobAgentError: There is no torrent now, or it is not the file's.
    """
    beside = archive.with_name(archive.name + ".torrent")
    torrent = beside.read_bytes() if beside.exists() else kit.catalogue.torrent(data.archive)
    for seeder in kit.seeders:
        seeder.seed(data, archive, torrent)


def root_of(path: Path) -> bytes:
    """Return the BEP 52 root hash of a file: SHA-256 over 16 KiB blocks, joined pairwise to a tree."""
    leaves: list[bytes] = []
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            leaves.append(hashlib.sha256(block).digest())
    return _join(leaves)


def _join(nodes: Sequence[bytes]) -> bytes:
    padding = bytes(32)
    while len(nodes) > 1:
        even = [*nodes, padding] if len(nodes) % 2 else nodes
        nodes = [hashlib.sha256(even[i] + even[i + 1]).digest() for i in range(0, len(even), 2)]
        padding = hashlib.sha256(padding + padding).digest()
    return nodes[0] if nodes else padding
