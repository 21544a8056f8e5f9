"""Run a program with all its descendants, and leave none of them behind.

`python -m jobagent.testing.warden [--user UID:GID] [--stop SIGNAL] [--grace SECONDS] -- PROGRAM …` ends when the
program ends, on SIGTERM, or when its standard input closes (so also when its starter dies by SIGKILL).  It then sends
the stop signal, waits for the grace, and kills whatever is left: being the child subreaper, it inherits every
orphan, also of processes that left session and process group.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the program's exit code as a shell would give it."""
    parser = argparse.ArgumentParser(prog="warden")
    parser.add_argument("--user", metavar="UID:GID", help="run the program as that user (needs root)")
    parser.add_argument("--stop", default="QUIT", help="signal that asks the program to end")
    parser.add_argument("--grace", type=float, default=15.0, help="seconds between that signal and SIGKILL")
    parser.add_argument("program", nargs="+")
    options = parser.parse_args(argv)
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    wakeup = _signal_pipe()
    uid, gid = (int(part) for part in options.user.split(":")) if options.user else (None, None)
    child = subprocess.Popen(
        options.program,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        user=uid,
        group=gid,
        extra_groups=[] if options.user else None,
    )
    code = _guard(child.pid, wakeup)
    if code is None:
        code = _stop(child.pid, signal.Signals[f"SIG{options.stop}"], options.grace, wakeup)
    _kill_everything()
    child.returncode = code  # reaped here, not by subprocess
    return code if code >= 0 else 128 - code


def _signal_pipe() -> int:
    """Turn SIGCHLD, SIGTERM and SIGINT into bytes on a pipe; return its read end."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return read_end


def _guard(pid: int, wakeup: int) -> int | None:
    """Reap until `pid` ends (its code), or until somebody wants the end (None)."""
    while True:
        ready, _, _ = select.select([sys.stdin.fileno(), wakeup], [], [])
        signals = os.read(wakeup, 512) if wakeup in ready else b""
        if (code := _reap(pid)) is not None:
            return code
        is_closed = sys.stdin.fileno() in ready and not os.read(sys.stdin.fileno(), 512)
        if is_closed or not {signal.SIGTERM, signal.SIGINT}.isdisjoint(signals):
            return None


def _stop(pid: int, stop: signal.Signals, grace_s: float, wakeup: int) -> int:
    deadline = time.monotonic() + grace_s
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, stop)
    while (code := _reap(pid)) is None:
        left = deadline - time.monotonic()
        if left <= 0:
            return -signal.SIGKILL
        if select.select([wakeup], [], [], left)[0]:
            os.read(wakeup, 512)
    return code


def _reap(pid: int) -> int | None:
    """Reap all that has ended; return the exit code of `pid` where it is among them."""
    found = None
    with contextlib.suppress(ChildProcessError):
        while True:
            ended, status = os.waitpid(-1, os.WNOHANG)
            if ended == 0:
                break
            if ended == pid:
                found = os.waitstatus_to_exitcode(status)
    return found


def _kill_everything() -> None:
    """Kill children until there are none: the children of the killed become ours."""
    with contextlib.suppress(ChildProcessError):
        while True:
            for child in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(child), signal.SIGKILL)
            os.waitpid(-1, 0)


if __name__ == "__main__":
    sys.exit(main())
