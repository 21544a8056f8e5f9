"""The keeper: a small process between agent and payload that outlives neither of their mistakes.

It is forked before the agent has threads, adopts every orphan of the payload (subreaper), and ends the whole tree
when the payload is over, when it is told, or when the agent is gone: its end of the socket then reads as closed,
however the agent died.  It can also remove the agent's scratch directory then.  Talks JSON lines over a socketpair.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import shutil
import signal
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from jobagent import processes
from jobagent.errors import PayloadNotRunnable, SiteError
from jobagent.model import Outcome

PR_SET_PDEATHSIG = 1  # prctl(2)
PR_SET_CHILD_SUBREAPER = 36
_REAP_S = 5.0  # a tree that survives SIGKILL so long hangs in the kernel; it is reported, not waited for


class Command(NamedTuple):
    """One program to run: argv, complete environment, directory, and files for its output (empty: inherited)."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    directory: Path
    stdout: str = ""
    stderr: str = ""
    stdin: str = "/dev/null"


class Keeper:
    """The agent's handle on its keeper process.  Used from one thread, but for `signal`, which any may call."""

    def __init__(self, *, scratch: Path | None = None) -> None:
        """Fork the keeper; `scratch` is removed by it if the agent dies."""
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            _keep(theirs, scratch)
        theirs.close()
        self._socket = ours
        self._unread = b""
        self._pid = pid

    @property
    def pid(self) -> int:
        """The keeper's process id."""
        return self._pid

    def start(self, command: Command) -> None:
        """Start the payload.

        Raises:
            PayloadNotRunnable: The program is missing or cannot be executed.
        """
        self._send(
            {
                "run": list(command.argv),
                "env": dict(command.environment),
                "cwd": str(command.directory),
                "files": [command.stdin, command.stdout, command.stderr],
            }
        )
        answer = self._receive(None)
        if answer and "refused" in answer:
            raise PayloadNotRunnable(f"cannot run {command.argv[0]}: {answer['refused']}")

    def wait(self, timeout_s: float) -> Outcome | None:
        """Return the payload's outcome when it and all its processes are gone; None after `timeout_s`."""
        answer = self._receive(timeout_s)
        if answer is None:
            return None
        return Outcome(
            exit_code=answer["code"],
            signal=answer["signal"],
            wall_s=answer["wall_s"],
            cpu_s=answer["cpu_s"],
            max_rss_bytes=answer["max_rss_bytes"],
        )

    def signal(self, number: int) -> None:
        """Send a signal to the payload and all its processes; SIGKILL ends whatever there is."""
        with contextlib.suppress(OSError):
            self._send({"signal": int(number)})

    def close(self) -> None:
        """End the keeper and whatever still runs below it; idempotent."""
        if self._pid:
            with contextlib.suppress(OSError):
                self._send({"quit": True})
            self._socket.close()
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._pid, 0)
            self._pid = 0

    def _send(self, message: Mapping[str, Any]) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def _receive(self, timeout_s: float | None) -> dict[str, Any] | None:
        """Return the next message; several may come in one read, so what was read is looked at first."""
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._socket], [], [], timeout_s)
            if not ready:
                return None
            data = self._socket.recv(1 << 16)
            if not data:
                raise SiteError(
                    "the payload's keeper process was killed", remedy="see the system log; out of memory?"
                )
            self._unread += data
        line, self._unread = self._unread.split(b"\n", 1)
        return dict(json.loads(line))


# --- below: the keeper's own process


def _keep(channel: socket.socket, scratch: Path | None) -> NoReturn:
    code = 0
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        _close_others(channel.fileno())
        if _serve(channel) == "orphaned" and scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
    except BaseException:  # noqa: BLE001 - a border: nothing may escape into the agent's code, which this process must not run
        code = 1
    finally:
        with contextlib.suppress(BaseException):
            _end_tree()
        os._exit(code)


def _serve(channel: socket.socket) -> str:
    """Run the loop of messages and child deaths; return why it ended: `told` or `orphaned`."""
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    buffer = b""
    payload = 0
    started = 0.0
    try:
        while True:
            ready, _, _ = select.select([channel.fileno(), wake_read], [], [], 1.0)
            if wake_read in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake_read, 4096)
            status = _reap(payload)
            if status is not None:
                payload = 0
                _end_tree()
                _report(channel, status, time.monotonic() - started)
            if channel.fileno() not in ready:
                continue
            data = channel.recv(1 << 16)
            if not data:
                return "orphaned"
            *lines, buffer = (buffer + data).split(b"\n")
            for message in map(json.loads, lines):
                if "quit" in message:
                    return "told"
                if "signal" in message:
                    _signal_tree(message["signal"])
                else:
                    started = time.monotonic()
                    payload = _spawn(channel, message)
    except ConnectionError:
        return "orphaned"
    finally:
        _end_tree()


def _spawn(channel: socket.socket, message: Mapping[str, Any]) -> int:
    """Start the program and answer; return its pid, or 0 where it was refused."""
    failure_read, failure_write = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            _exec(message)
        except BaseException as error:  # noqa: BLE001 - a border: tell the parent and end
            os.write(failure_write, str(getattr(error, "strerror", None) or error).encode()[:500])
        finally:
            os._exit(127)
    os.close(failure_write)
    with open(failure_read, "rb") as stream:
        refused = stream.read()
    if refused:
        os.waitpid(pid, 0)
        channel.sendall(json.dumps({"refused": refused.decode(errors="replace")}).encode() + b"\n")
        return 0
    channel.sendall(b'{"started": true}\n')
    return pid


def _exec(message: Mapping[str, Any]) -> NoReturn:
    signal.set_wakeup_fd(-1)
    for changed in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD):
        signal.signal(changed, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    os.chdir(message["cwd"])
    flags = (os.O_RDONLY, os.O_WRONLY | os.O_CREAT | os.O_APPEND, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number, path in enumerate(message["files"]):
        if path:
            descriptor = os.open(path, flags[number], 0o644)
            os.dup2(descriptor, number)
            os.close(descriptor)
    argv = message["run"]
    if "/" in argv[0]:
        os.execve(argv[0], argv, message["env"])
    os.execvpe(argv[0], argv, message["env"])


def _reap(payload: int) -> int | None:
    """Collect dead children; return the payload's wait status if it is among them."""
    found = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == payload:
                found = status
    return found


def _report(channel: socket.socket, status: int, wall_s: float) -> None:
    code = os.waitstatus_to_exitcode(status)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    message = {
        "code": max(code, 0),
        "signal": max(-code, 0),
        "wall_s": wall_s,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "max_rss_bytes": usage.ru_maxrss * 1024,
    }
    channel.sendall(json.dumps(message).encode() + b"\n")


def _signal_tree(number: int) -> None:
    """Signal all below us; bubblewrap only by SIGKILL: it would take the payload with it before it has cleaned up."""
    for pid in processes.descendants(os.getpid()):
        if number != signal.SIGKILL and processes.command_name(pid) == "bwrap":
            continue
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _end_tree() -> None:
    """Kill and reap until nothing is below us: orphans come to us one by one, since we are their subreaper."""
    deadline = time.monotonic() + _REAP_S
    while time.monotonic() < deadline:
        _signal_tree(signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.002)  # the killed are on their way; there is no event for "a grandchild became mine"


def _close_others(keep: int) -> None:
    """Close all descriptors but the standard ones and `keep`: the keeper must hold nobody's lock open."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != keep:
            with contextlib.suppress(OSError):
                os.close(int(name))


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")
