"""The directory of one job on a local disk, and the sweep of those that killed agents left behind.

A job directory holds a lock file on which its agent has an flock; the kernel drops it when the agent dies, however
that happens, so a directory whose lock can be taken belongs to nobody and is removed by the next agent.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path

from jobagent.errors import ScratchUnusable

PREFIX = "jobagent-job-"
_LOCK = ".lock"


class JobDirectory:
    """A fresh directory, ours until `remove` or death."""

    def __init__(self, base: Path) -> None:
        """Make the directory below `base`; raises ScratchUnusable."""
        self._lock = -1
        try:
            while self._lock < 0:
                self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
                self._lock = _locked(self.path / _LOCK)
        except OSError as error:
            raise ScratchUnusable(
                f"cannot make a job directory in {base}: {error.strerror}",
                remedy="set [site] scratch to a local disk",
            ) from error

    def remove(self) -> None:
        """Remove the directory and all below it; idempotent."""
        if self._lock >= 0:
            remove_tree(self.path)
            os.close(self._lock)
            self._lock = -1


def _locked(path: Path) -> int:
    """Make and lock a file; return its descriptor, or -1 where another agent's sweep came between the two."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # waits for that sweep
    if os.fstat(descriptor).st_nlink:
        return descriptor
    os.close(descriptor)
    return -1


def sweep(base: Path) -> list[Path]:
    """Remove job directories whose agents are gone; only our own user's.  Returns what was removed."""
    removed = []
    for path in base.glob(PREFIX + "*"):
        with contextlib.suppress(OSError):
            status = path.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
                continue
            lock = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_tree(path)
                removed.append(path)
            finally:
                os.close(lock)
    return removed


def remove_tree(path: Path) -> None:
    """Remove a tree of which some directories may be read-only; what is gone already is no error."""

    def make_writable(function: object, name: str, error: BaseException) -> None:
        if isinstance(error, FileNotFoundError):
            return
        parent = os.path.dirname(name)
        with contextlib.suppress(OSError):
            os.chmod(parent, 0o700)
            if os.path.isdir(name) and not os.path.islink(name):
                os.chmod(name, 0o700)
                shutil.rmtree(name, ignore_errors=True)
            else:
                os.unlink(name)

    def compatible(function: object, name: str, info: tuple[object, BaseException, object]) -> None:
        make_writable(function, name, info[1])

    shutil.rmtree(path, onerror=compatible)
