"""Tree → archive: the same bytes from the same tree, whatever its times, order, owner and hard links.

The archive is a POSIX tar of the tree's members, paths relative to the tree, sorted by the bytes of the path; times,
owners and groups are 0, modes 0755 or 0644, PAX headers only where a name needs one.  A file equal to an earlier one
is a hard link to it.  The tar is cut into zstd frames, each compressed by itself, so that both directions use all
cores; standard tools (`tar --zstd -x`) read it as one stream.

Frames start at members, and where they start depends on what is nearby only: two versions of a package that share
most files share most frames, byte for byte.  Bytes are the same for the same release of the zstd library; what is
signed besides (the manifest) does not depend on it.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import tarfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import zstandard

from jobagent import manifest
from jobagent.contracts import ManifestEntry
from jobagent.errors import HostileArchive, PublishError
from jobagent.model import Blob, Tree

FORMAT = "tar.zst"
DEFAULT_LEVEL = 9  # ROOT, 592 MB: 188 MB in 11 s on 2 cores; level 12: 187 MB in 27 s, level 3: 206 MB in 4 s
FRAME_BYTES = 8 << 20  # of tar data in a frame; 16 MiB saves 1 %, and costs twice the memory while unpacking
_SHARED_CUT = 16  # outside large files about one member in 16 starts a frame, chosen by its name
_BLOCK_BYTES = tarfile.BLOCKSIZE
_READ_BYTES = 1 << 20
_MIN_LINKED_BYTES = 4096  # below this a link saves nothing


@dataclass(frozen=True, slots=True)
class Packed:
    """A tree, and the archive made of it."""

    entries: tuple[ManifestEntry, ...]
    archive: Blob

    @property
    def tree(self) -> Tree:
        """What is signed about the tree."""
        return manifest.tree_of(self.entries)


def pack(
    tree: Path,
    archive: Path,
    *,
    level: int = DEFAULT_LEVEL,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Packed:
    """Write the `tar.zst` of `tree` to `archive`; `progress` gets bytes of files done, and all of them.

    Raises:
        PublishError: The tree holds what a package cannot (devices, links that leave it) or changes meanwhile.
        OSError: Something cannot be read or written.
    """
    entries = checked(tree)
    total_bytes = sum(entry.size_bytes for entry in entries)
    digest = hashlib.sha256()
    done_bytes = size_bytes = 0
    with open(archive, "wb") as stream:
        for frame_bytes, compressed in _compressed(_frames(tree, entries), level):
            digest.update(compressed)
            size_bytes += stream.write(compressed)
            done_bytes = min(done_bytes + frame_bytes, total_bytes)
            progress(done_bytes, total_bytes)
    return Packed(entries, Blob(digest.hexdigest(), size_bytes))


def checked(tree: Path) -> tuple[ManifestEntry, ...]:
    """Return the manifest of a tree that can be a package; raises PublishError where it cannot."""
    entries = manifest.scan(tree)
    for entry in entries:
        if entry.kind == "?":
            raise PublishError(f"{tree / entry.path} is neither file, directory nor symlink", remedy="remove it")
        if entry.kind == "f" and entry.mode not in {0o644, 0o755}:
            raise PublishError(f"{tree / entry.path} has a set-id bit", remedy="chmod a-s it")
    try:
        manifest.check(entries)
    except HostileArchive as error:
        raise PublishError(
            f"{tree}: {error.cause_line}", remedy="make links relative and within the package, or remove them"
        ) from error
    return entries


def _compressed(frames: Iterator[bytes], level: int) -> Iterator[tuple[int, bytes]]:
    """Compress frames on all cores; yields (bytes before, frame) in order, holding a few of them at a time."""
    workers = os.cpu_count() or 1
    pending: deque[tuple[int, concurrent.futures.Future[bytes]]] = deque()
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for frame in frames:
            pending.append((len(frame), pool.submit(_compress, frame, level)))
            if len(pending) > 2 * workers:
                size, future = pending.popleft()
                yield size, future.result()
        for size, future in pending:
            yield size, future.result()


def _compress(frame: bytes, level: int) -> bytes:
    # All parameters stand here: defaults of the binding would be part of the format.
    compressor = zstandard.ZstdCompressor(
        level=level, write_checksum=False, write_content_size=True, write_dict_id=False, threads=0
    )
    return compressor.compress(frame)


def _frames(tree: Path, entries: Sequence[ManifestEntry]) -> Iterator[bytes]:
    """Yield the tar in pieces, each to be one frame."""
    frame = bytearray()
    previous: ManifestEntry | None = None
    for entry, link in _linked(entries):
        if frame and _starts_frame(entry, previous, len(frame)):
            yield bytes(frame)
            frame.clear()
        frame += _header(entry, link)
        if entry.kind == "f" and not link:
            for block in _read(tree, entry):
                if len(frame) >= FRAME_BYTES:
                    yield bytes(frame)
                    frame.clear()
                frame += block
            frame += bytes(-entry.size_bytes % _BLOCK_BYTES)
        previous = entry
    yield bytes(frame + bytes(2 * _BLOCK_BYTES))  # the end of every tar


def _starts_frame(entry: ManifestEntry, previous: ManifestEntry | None, size_bytes: int) -> bool:
    if previous is not None and previous.size_bytes >= FRAME_BYTES:
        return True
    if size_bytes + entry.size_bytes > FRAME_BYTES:
        return True
    return size_bytes > FRAME_BYTES // 8 and zlib.crc32(os.fsencode(entry.path)) % _SHARED_CUT == 0


def _linked(entries: Sequence[ManifestEntry]) -> Iterator[tuple[ManifestEntry, str]]:
    """Yield every entry with the path of an earlier file that is equal to it, if there is one."""
    first: dict[tuple[str, int], str] = {}
    for entry in entries:
        if entry.kind != "f" or entry.size_bytes < _MIN_LINKED_BYTES:
            yield entry, ""
            continue
        original = first.setdefault((entry.sha256, entry.mode), entry.path)
        yield entry, "" if original == entry.path else original


def _header(entry: ManifestEntry, link: str) -> bytes:
    info = tarfile.TarInfo(entry.path)
    info.mode = entry.mode or 0o777
    if entry.kind == "d":
        info.type = tarfile.DIRTYPE
    elif entry.kind == "l":
        info.type, info.linkname = tarfile.SYMTYPE, entry.target
    elif link:
        info.type, info.linkname = tarfile.LNKTYPE, link
    else:
        info.size = entry.size_bytes
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _read(tree: Path, entry: ManifestEntry) -> Iterator[bytes]:
    digest = hashlib.sha256()
    with open(tree / entry.path, "rb") as stream:
        left = entry.size_bytes
        while left > 0 and (block := stream.read(min(_READ_BYTES, left))):
            digest.update(block)
            left -= len(block)
            yield block
    if digest.hexdigest() != entry.sha256:
        raise PublishError(
            f"{tree / entry.path} changed while it was packed", remedy="publish when nobody writes to it"
        )
