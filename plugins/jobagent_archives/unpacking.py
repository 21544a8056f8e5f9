"""Members → tree on disk, hashed as it is written.

One thread reads the archive in order, decides, hashes and writes; others decompress ahead of it.  Until the last
member is written the tree holds real directories and files only, made by us in a directory of ours, so no path can
lead out of it; symlinks come last, after all of them together were found to stay within the tree.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import hashlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from jobagent.plugin import DiskFull, HostileArchive, ManifestEntry, Package, Tree, manifest
from jobagent_archives import streams, tar

LARGE_FILE_BYTES = 1 << 20  # above this another thread writes while the first hashes
MAX_PENDING_BYTES = 64 << 20  # read from the archive and not yet on disk
_COPY_BYTES = 1 << 20
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LINK_IMPOSSIBLE = frozenset({errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})


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
    entries = [replace(e, sha256=writer.digests[e.path]) if e.path in writer.digests else e for e in plan.entries()]
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


class _Writer:
    """Writes below one directory.

    Small files are written by the caller's thread: several threads in short system calls would pass Python's lock to
    and fro more often than they work.  Large files are hashed there while one other thread writes them (two would
    spin on the inode's lock).
    """

    def __init__(self, into: Path) -> None:
        self.digests: dict[str, str] = {}
        self._root = os.open(into, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._other = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="write")

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._other.shutdown(cancel_futures=True)
        os.close(self._root)

    def make_directory(self, path: str) -> None:
        """Make one directory; its parent is there."""
        os.mkdir(path, 0o755, dir_fd=self._root)
        os.chmod(path, 0o755, dir_fd=self._root)  # the umask may have taken bits away

    def write(self, member: tar.Member, source: tar.Source) -> None:
        """Write a file with the data that `source` has next."""
        descriptor = self._create(member.path, member.mode)
        digest = hashlib.sha256()
        write = self._write_large if member.size_bytes > LARGE_FILE_BYTES else _write_small
        try:
            write(descriptor, source.pieces(member.size_bytes), digest)
        finally:
            os.close(descriptor)
        self.digests[member.path] = digest.hexdigest()

    def link(self, original: str, path: str) -> None:
        """Make `path` another name of a file that was written before; a copy where links are not possible."""
        try:
            os.link(original, path, src_dir_fd=self._root, dst_dir_fd=self._root, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _LINK_IMPOSSIBLE:
                raise
            self._copy(original, path)
        self.digests[path] = self.digests[original]

    def make_symlink(self, entry: ManifestEntry) -> None:
        """Make one symlink; called after all else is written."""
        os.symlink(entry.target, entry.path, dir_fd=self._root)

    def _write_large(self, descriptor: int, pieces: Iterator[memoryview], digest: hashlib._Hash) -> None:
        pending: deque[tuple[int, concurrent.futures.Future[None]]] = deque()
        pending_bytes = 0
        try:
            for piece in pieces:
                pending.append((len(piece), self._other.submit(_write_all, descriptor, piece)))
                pending_bytes += len(piece)
                digest.update(piece)
                while pending_bytes > MAX_PENDING_BYTES:
                    size_bytes, future = pending.popleft()
                    future.result()
                    pending_bytes -= size_bytes
        finally:
            concurrent.futures.wait([future for _, future in pending])  # they use the descriptor
        for _, future in pending:
            future.result()

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


def _write_small(descriptor: int, pieces: Iterator[memoryview], digest: hashlib._Hash) -> None:
    for piece in pieces:
        _write_all(descriptor, piece)
        digest.update(piece)


def _write_all(descriptor: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(descriptor, piece) :]
