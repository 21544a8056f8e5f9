"""What the cache needs to know of its disk and the kernel, and the few system calls that Python does not have."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from jobagent.plugin import DiskFull, ScratchUnusable

BLOCK_BYTES = 4096

# statfs(2) and the kernel's magic.h: file systems whose locks or renames other hosts may not see at once.
NETWORK_TYPES = {
    0x6969: "NFS",
    0x0BD00BD0: "Lustre",
    0x47504653: "GPFS",
    0x19830326: "BeeGFS",
    0x00C36400: "Ceph",
    0xFE534D42: "SMB",
    0xFF534D42: "CIFS",
    0x5346414F: "AFS",
    0x6B414653: "AFS",
    0x01021997: "9p",
    0x65735546: "FUSE",
}

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_libc = ctypes.CDLL(None, use_errno=True)


def network_type(path: Path) -> str:
    """Return the name of the network file system that `path` is on, or an empty string for a local one."""
    buffer = ctypes.create_string_buffer(256)  # struct statfs is smaller everywhere; f_type is its first word
    if _libc.statfs(os.fsencode(path), buffer) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    return NETWORK_TYPES.get(ctypes.c_ulong.from_buffer(buffer).value & 0xFFFFFFFF, "")


def sync(path: Path) -> None:
    """Write all of the file system that `path` is on to the disk: one call for thousands of files."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(descriptor) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    finally:
        os.close(descriptor)


def exchange(one: Path, other: Path) -> None:
    """Swap two directories in one step; where the file system cannot, in two renames with a gap between."""
    paths = os.fsencode(one), os.fsencode(other)
    if _libc.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(code, os.strerror(code), str(one))
    aside = one.with_name(f"{one.name}.aside")
    os.rename(other, aside)
    os.rename(one, other)
    os.rename(aside, one)


def check_root(root: Path) -> None:
    """Make the root directory if it is absent, and refuse one that others could change.

    Raises:
        ScratchUnusable: Foreign, writable for everybody, a symlink to such a place, or it cannot be made.
    """
    try:
        root.mkdir(mode=0o755, parents=True, exist_ok=True)
        status, parent = root.stat(), root.resolve().parent.stat()
    except OSError as error:
        raise ScratchUnusable(f"cache root {root} cannot be used: {error.strerror}") from error
    if status.st_uid != os.geteuid():
        raise ScratchUnusable(
            f"cache root {root} belongs to uid {status.st_uid}, this agent is uid {os.geteuid()}",
            remedy="chown it, or set another [sharedcache] root; jobs of other users go through the node service",
        )
    if status.st_mode & stat.S_IWOTH:
        raise ScratchUnusable(f"cache root {root} is writable for everybody", remedy=f"chmod o-w {root}")
    if parent.st_mode & stat.S_IWOTH and not parent.st_mode & stat.S_ISVTX:
        raise ScratchUnusable(
            f"cache root {root} is in a directory that everybody can write",
            remedy=f"chmod +t {root.resolve().parent}",
        )
    if not os.access(root, os.W_OK | os.X_OK) or os.statvfs(root).f_flag & os.ST_RDONLY:
        raise ScratchUnusable(f"cache root {root} is read-only", remedy="set [sharedcache] root elsewhere")


def on_disk(size_bytes: int) -> int:
    """Return what a file of that size takes, to the block."""
    return -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES


def seal(tree: Path) -> None:
    """Take the write permission from a tree, so that nobody changes it by accident (Python its `.pyc` files)."""
    for directory, _, files in os.walk(tree):
        for name in files:
            path = os.path.join(directory, name)
            mode = os.lstat(path).st_mode
            if stat.S_ISREG(mode) and mode & 0o222:
                os.chmod(path, mode & 0o555)
        os.chmod(directory, 0o555)


def remove_tree(path: Path) -> None:
    """Remove a tree, sealed or not; one that is not there is no error."""
    for directory, _, _ in os.walk(path):
        with contextlib.suppress(OSError):
            os.chmod(directory, 0o700)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)


@contextlib.contextmanager
def errors_of_ours(what: str) -> Iterator[None]:
    """Raise DiskFull or ScratchUnusable for what the operating system raises in the block; `what` was tried."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise DiskFull(f"{what}: {error.strerror}", remedy="free space or raise the quota of the disk") from error
        raise ScratchUnusable(f"{what}: {error.strerror or error}", remedy="check the disk") from error


def free_space(path: Path) -> tuple[int, int, int]:
    """Return free bytes, total bytes and free inodes for an unprivileged user."""
    status = os.statvfs(path)
    # Some file systems (btrfs) have no fixed number of inodes and say 0 of 0.
    inodes = status.f_favail if status.f_files else 1 << 62
    return status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize, inodes


FreeSpace = Callable[[Path], tuple[int, int, int]]
