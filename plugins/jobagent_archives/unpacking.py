"""Members → tree on disk, hashed as it is written.

One thread reads the archive in order, decides and writes; others decompress ahead of it, and one hashes behind it
and writes what is large.
Until the last member is written the tree holds real directories and files only, made by us in a directory of ours,
so no path can lead out of it; symlinks come last, after all of them together were found to stay within the tree.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import hashlib
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from jobagent.plugin import DiskFull, HostileArchive, ManifestEntry, Package, Tree, manifest
from jobagent_archives import streams, tar

MAX_PENDING_BYTES = 64 << 20  # written and not yet hashed
_BATCH_BYTES = 1 << 20  # handed over to be hashed together: a hand-over costs as much as a small file
_LARGE_BYTES = 128 << 10  # from here on writing takes longer than handing over
_COPY_BYTES = 1 << 20
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LINK_IMPOSSIBLE = frozenset({errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})


_Piece = tuple["hashlib._Hash", memoryview | None, int]  # None: the file of that descriptor is complete


class TarUnpacker:
    """Unpacks tar archives; up to `workers` threads decompress, as many as there are cores by default."""

    formats = streams.FORMATS

    def __init__(self, workers: int = 0) -> None:
        self._workers = workers or min(8, os.cpu_count() or 1)

    def unpack(self, archive: Path, package: Package, into: Path) -> Sequence[ManifestEntry]:
        """See `jobagent.plugin.Unpacker`."""
        with (
            disk_errors(package, into),
            streams.opened(archive, package.archive.format, self._workers) as buffers,
            _Writer(into) as writer,
        ):
            return _unpack(buffers, package.tree, writer)


@contextlib.contextmanager
def disk_errors(package: Package, into: Path) -> Iterator[None]:
    """Turn "no space" and "over quota" into DiskFull."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        usage = os.statvfs(into)
        raise DiskFull(
            f"{package.id} unpacks to {package.tree.size_bytes >> 20} MB and {package.tree.file_count} files: "
            f"{error.strerror} ({usage.f_bavail * usage.f_frsize >> 20} MB and {usage.f_favail} inodes left)",
            remedy="free space or raise the quota",
        ) from error


def _unpack(buffers: Iterator[bytes], signed: Tree, writer: _Writer) -> list[ManifestEntry]:
    source = tar.Source(
        buffers, signed.size_bytes + (signed.file_count + 1) * tar.MEMBER_OVERHEAD_BYTES + tar.MAX_TRAILER_BYTES
    )
    plan = _Plan(signed)
    for member in tar.members(source):
        for directory in plan.admit(member):
            writer.make_directory(directory)
        if member.kind == "h":
            writer.link(member.target, member.path)
        elif member.kind == "f":
            writer.write(member, source)
            source.read(tar.padding(member.size_bytes))
    digests = writer.digests()
    entries = [replace(entry, sha256=digests.get(entry.path, "")) for entry in plan.entries()]
    manifest.check(entries)
    for entry in entries:
        if entry.kind == "l":
            writer.make_symlink(entry)
    return entries


class _Plan:
    """What the tree will be: admits members one by one, within what was signed.  Does no I/O."""

    def __init__(self, signed: Tree) -> None:
        self._signed = signed
        self._entries: dict[str, ManifestEntry] = {}
        self._links: dict[str, str] = {}
        self._bytes = 0

    def admit(self, member: tar.Member) -> list[str]:
        """Take a member; return the directories to make first.  Raises HostileArchive."""
        if member.kind == "d" and member.path in {"", "."}:
            return []
        known = self._entries.get(manifest.checked_path(member.path))
        new = self._parents(member.path)
        if member.kind == "d":
            if known is None:
                new.append(member.path)
            elif known.kind != "d":
                raise HostileArchive(f"archive has {member.path[:200]!r} twice")
        elif known is not None:
            raise HostileArchive(f"archive has {member.path[:200]!r} twice")
        else:
            self._add(self._entry(member))
        for path in new:
            self._add(ManifestEntry(path, "d", 0o755))
        return new

    def entries(self) -> list[ManifestEntry]:
        """All members, in the order of manifests; files are not hashed yet, except by the writer."""
        return sorted(self._entries.values(), key=lambda e: os.fsencode(e.path))

    def _parents(self, path: str) -> list[str]:
        missing: list[str] = []
        parent = path.rpartition("/")[0]
        while parent and parent not in self._entries:
            missing.append(parent)
            parent = parent.rpartition("/")[0]
        if parent and self._entries[parent].kind != "d":
            raise HostileArchive(f"archive has {path[:200]!r} below {parent[:200]!r}, which is no directory")
        return missing[::-1]

    def _entry(self, member: tar.Member) -> ManifestEntry:
        if member.kind == "l":
            return ManifestEntry(member.path, "l", target=member.target)
        if member.kind == "f":
            return ManifestEntry(member.path, "f", member.mode, member.size_bytes)
        original = self._entries.get(member.target)
        if original is None or original.kind != "f":
            raise HostileArchive(f"archive has a hard link to {member.target[:200]!r}, which is no file before it")
        return replace(original, path=member.path)

    def _add(self, entry: ManifestEntry) -> None:
        self._entries[entry.path] = entry
        self._bytes += entry.size_bytes
        if len(self._entries) > self._signed.file_count:
            raise HostileArchive(f"archive has more than the {self._signed.file_count} members that were signed")
        if self._bytes > self._signed.size_bytes:
            raise HostileArchive(f"archive has more than the {self._signed.size_bytes} bytes that were signed")


class _Behind:
    """Hashes, and writes large files, on a thread of its own: in order, a little behind its caller.

    The caller is busy with small files, where nearly all time is spent in the kernel's bookkeeping.
    """

    def __init__(self) -> None:
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="behind")
        self._batch: list[_Piece] = []
        self._batch_bytes = 0
        self._pending: deque[tuple[int, concurrent.futures.Future[None]]] = deque()
        self._pending_bytes = 0
        self._open: set[int] = set()

    def hash(self, digest: hashlib._Hash, data: memoryview) -> None:
        """Have `data` added to `digest`; it is, once `drain` has returned."""
        self._add((digest, data, -1))

    def write(self, digest: hashlib._Hash, pieces: Iterator[memoryview], descriptor: int) -> None:
        """Have `pieces` written to a file and hashed, and the file closed: now ours."""
        self._open.add(descriptor)
        for data in pieces:
            self._add((digest, data, descriptor))
        self._add((digest, None, descriptor))

    def drain(self) -> None:
        """Wait for all that was added; raises OSError where it could not be written."""
        self._flush()
        self._wait(0)

    def close(self) -> None:
        """End the thread, whatever is left to do."""
        self._thread.shutdown(cancel_futures=True)
        for descriptor in self._open:
            os.close(descriptor)
        self._open.clear()

    def _add(self, piece: _Piece) -> None:
        self._batch.append(piece)
        self._batch_bytes += len(piece[1] or b"")
        if self._batch_bytes >= _BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        batch, size_bytes = self._batch, self._batch_bytes
        self._batch, self._batch_bytes = [], 0
        self._pending.append((size_bytes, self._thread.submit(self._carry_out, batch)))
        self._pending_bytes += size_bytes
        self._wait(MAX_PENDING_BYTES)

    def _wait(self, limit_bytes: int) -> None:
        while self._pending and (self._pending_bytes > limit_bytes or not limit_bytes):
            size_bytes, future = self._pending.popleft()
            future.result()
            self._pending_bytes -= size_bytes

    def _carry_out(self, batch: Sequence[_Piece]) -> None:
        for digest, data, descriptor in batch:
            if data is None:
                self._open.discard(descriptor)
                os.close(descriptor)
                continue
            digest.update(data)
            if descriptor >= 0:
                _write_all(descriptor, data)


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


class _Writer:
    """Writes below one directory, from the caller's thread.

    Several threads in short system calls would pass Python's lock to and fro more often than they work, and two that
    write one file spin on its inode's lock; so only hashing, and the whole of large files, is done elsewhere.
    """

    def __init__(self, into: Path) -> None:
        self._digests: dict[str, hashlib._Hash] = {}
        self._behind = _Behind()
        self._root = os.open(into, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._behind.close()
        os.close(self._root)

    def digests(self) -> Mapping[str, str]:
        """Return the sha256 of every file, once all is hashed."""
        self._behind.drain()
        return {path: digest.hexdigest() for path, digest in self._digests.items()}

    def make_directory(self, path: str) -> None:
        """Make one directory; its parent is there."""
        os.mkdir(path, 0o755, dir_fd=self._root)
        os.chmod(path, 0o755, dir_fd=self._root)  # the umask may have taken bits away

    def write(self, member: tar.Member, source: tar.Source) -> None:
        """Write a file with the data that `source` has next."""
        digest = self._digests[member.path] = hashlib.sha256()
        descriptor = self._create(member.path, member.mode)
        if member.size_bytes >= _LARGE_BYTES:
            self._behind.write(digest, source.pieces(member.size_bytes), descriptor)
            return
        try:
            for piece in source.pieces(member.size_bytes):
                self._behind.hash(digest, piece)
                _write_all(descriptor, piece)
        finally:
            os.close(descriptor)

    def link(self, original: str, path: str) -> None:
        """Make `path` another name of a file that was written before; a copy where links are not possible."""
        try:
            os.link(original, path, src_dir_fd=self._root, dst_dir_fd=self._root, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _LINK_IMPOSSIBLE:
                raise
            self._behind.drain()
            self._copy(original, path)
        self._digests[path] = self._digests[original]

    def make_symlink(self, entry: ManifestEntry) -> None:
        """Make one symlink; called after all else is written."""
        os.symlink(entry.target, entry.path, dir_fd=self._root)

    def _create(self, path: str, mode: int) -> int:
        descriptor = os.open(path, _CREATE, mode, dir_fd=self._root)
        os.fchmod(descriptor, mode)
        return descriptor

    def _copy(self, original: str, path: str) -> None:
        reading = os.open(original, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._root)
        try:
            status = os.fstat(reading)
            writing = self._create(path, status.st_mode & 0o777)
            try:
                while os.copy_file_range(reading, writing, _COPY_BYTES):
                    pass
            finally:
                os.close(writing)
        finally:
            os.close(reading)
