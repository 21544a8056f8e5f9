"""flock(2), and nothing else: a lock ends with its descriptor, so with its process, however that ends.

Each lock has a descriptor of its own: threads exclude one another as processes do.  Not fcntl's POSIX locks, which
are lost when any descriptor of the file is closed.  Descriptors are close-on-exec: a payload inherits none.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the exclusive lock, waiting for it."""
    descriptor = os.open(path, _FLAGS, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def attempted(path: Path, *, exclusive: bool) -> Iterator[bool]:
    """Try to take the lock without waiting; yield whether it is held."""
    descriptor = os.open(path, _FLAGS, 0o600)
    try:
        yield _take(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def is_exclusively_held(path: Path) -> bool:
    """Whether somebody holds the exclusive lock now."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        return not _take(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def open_held(path: Path) -> int:
    """Make `path` and return a descriptor that holds its exclusive lock until closed.

    The file may be swept between its making and its locking: then it is made anew.
    """
    while True:
        descriptor = os.open(path, _FLAGS, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        os.close(descriptor)


def unlink_if_free(path: Path) -> bool:
    """Remove a lock file that nobody holds, under its lock; the counterpart of `open_held`."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        is_free = _take(descriptor, fcntl.LOCK_EX)
        if is_free:
            path.unlink(missing_ok=True)
        return is_free
    finally:
        os.close(descriptor)


def _take(descriptor: int, operation: int) -> bool:
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
