"""Room for a download, found before the download: a full disk in libtorrent looks like success."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from jobagent.plugin import DiskFull, ScratchUnusable

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def reserve(path: Path, size_bytes: int) -> bool:
    """Make `path` a file of `size_bytes` whose blocks are allocated; return whether it held data before.

    A file that was longer is cut.  Content that was there stays.

    Raises:
        DiskFull: Not that much is free; a file that was not there before is removed again.
        ScratchUnusable: The file cannot be made.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise DiskFull(f"cannot make {path}: {error.strerror}") from error
        raise ScratchUnusable(f"cannot make {path}: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        had_data = status.st_size > 0
        if status.st_size > size_bytes:
            os.ftruncate(descriptor, size_bytes)
        missing = size_bytes - status.st_blocks * 512
        free = _free_bytes(descriptor)
        if missing > free:
            raise _disk_full(path, missing, free)
        try:
            os.posix_fallocate(descriptor, 0, size_bytes)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise ScratchUnusable(f"cannot reserve {size_bytes} bytes for {path}: {error.strerror}") from error
            if had_data:
                os.ftruncate(descriptor, status.st_size)
            raise _disk_full(path, missing, free) from error
    except DiskFull:
        if not had_data:
            path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    return had_data


def _free_bytes(descriptor: int) -> int:
    status = os.fstatvfs(descriptor)
    return status.f_bavail * status.f_frsize


def _disk_full(path: Path, needed_bytes: int, free_bytes: int) -> DiskFull:
    return DiskFull(
        f"need {needed_bytes} bytes for {path.name}, have {free_bytes} in {path.parent}",
        remedy="free space or quota, or set [site] scratch to a larger disk",
    )
