"""Programs that end when their starter ends, however it ends, and whose orphans come back to it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from jobagent import processes
from jobagent.errors import SiteError

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # prctl(2)
_POLL_S = 0.05


def adopt_orphans(*, end_with_parent: bool = True) -> None:
    """Become the parent of all orphaned descendants, and get SIGTERM when our own parent ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if end_with_parent:
        parent = os.getppid()
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)


def start(
    argv: Sequence[str | Path], environment: Mapping[str, str], log: Path, *, death_signal: signal.Signals
) -> subprocess.Popen[bytes]:
    """Start a program that gets `death_signal` when this process ends; both outputs go to the end of `log`.

    Only before any thread is started: the child runs Python between fork and exec.

    Raises:
        SiteError: It cannot be started.
    """
    libc = ctypes.CDLL(None)

    def tie() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)

    try:
        with log.open("ab") as output:
            return subprocess.Popen(
                [str(word) for word in argv],
                env=dict(environment),
                cwd=log.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=tie,  # noqa: PLW1509 - see above
            )
    except OSError as error:
        raise SiteError(f"cannot start {argv[0]}: {error.strerror}") from error


def end(child: subprocess.Popen[bytes], signals: Sequence[tuple[signal.Signals, float]]) -> int:
    """Send one signal after the other, each with its seconds to obey, then SIGKILL; return the exit code."""
    for number, patience_s in signals:
        if child.poll() is not None:
            break
        child.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(patience_s)
    if child.poll() is None:
        child.kill()
    return child.wait()


def end_descendants(*, patience_s: float = 3.0, spared: Sequence[int] = ()) -> list[str]:
    """End all that still descends from this process, by SIGTERM, then SIGKILL; return what was found running."""
    _reap(spared)
    found = [_name(pid) for pid in processes.descendants(os.getpid()) if pid not in spared]
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + patience_s
        while left := [pid for pid in processes.descendants(os.getpid()) if pid not in spared]:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            _reap(spared)
            if time.monotonic() > deadline:
                break
            time.sleep(_POLL_S)
    return found


def _name(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return str(pid)
    return f"{pid} ({os.fsdecode(b' '.join(words))[:120].strip()})"


def _reap(spared: Sequence[int]) -> None:
    """Take the exit codes of orphans that ended; those of programs that we started ourselves are `subprocess`'s."""
    for pid in processes.descendants(os.getpid()):
        if pid not in spared:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
