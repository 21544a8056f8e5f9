"""One process at a time brings the catalogue's state directory up to date; the others wait and use what it found."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path
from types import TracebackType

from jobagent.plugin import ScratchUnusable

POLL_S = 0.02


class StateLock:
    """An exclusive flock on a file that is never removed, with a limit on the wait.  Not re-entrant."""

    def __init__(self, path: Path, *, timeout_s: float) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._descriptor = -1

    def __enter__(self) -> None:
        deadline = time.monotonic() + self._timeout_s
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ScratchUnusable(f"cannot open {self._path}: {error.strerror}") from error
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno not in {errno.EWOULDBLOCK, errno.EINTR} or time.monotonic() > deadline:
                    os.close(self._descriptor)
                    raise ScratchUnusable(
                        f"{self._path} is held by another process for over {self._timeout_s:.0f} s"
                    ) from error
            time.sleep(POLL_S)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)
