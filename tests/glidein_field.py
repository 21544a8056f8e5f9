"""Glide-ins on bare worker nodes, watched from outside: what the tests of `make test` and of the soak share."""

from __future__ import annotations

import subprocess
import time

from jobagent.testing.barenode import BareNode
from jobagent.testing.grid import Grid

LONG_JOB = "executable = /bin/sleep\narguments = 120\ntransfer_executable = false\n"


def put_script(grid: Grid, node: BareNode) -> tuple[str, ...]:
    """Put the pilot script onto a node as a batch job brings it; return the command that starts it."""
    node.put("/tmp/pilot.sh", (grid.directory / "bundle" / "pilot.sh").read_bytes())
    return ("sh", "/tmp/pilot.sh")


def wait_for(text: str, started: subprocess.Popen[str], timeout_s: float = 180.0) -> str:
    """Read the pilot's log until a line has `text`; return all of it."""
    assert started.stderr is not None
    seen = ""
    deadline = time.monotonic() + timeout_s
    while text not in seen:
        assert time.monotonic() < deadline, seen
        line = started.stderr.readline()
        assert line, f"ended before {text!r}: {seen}"
        seen += line
    return seen


def ended(pilot: subprocess.Popen[str], timeout_s: float = 120.0) -> str:
    """Return the rest of the log of a pilot that is about to end."""
    try:
        return pilot.communicate(timeout=timeout_s)[1]
    except subprocess.TimeoutExpired:
        pilot.kill()
        raise AssertionError(f"the pilot does not end: {pilot.communicate()[1]}") from None


def written(node: BareNode) -> list[str]:
    """What was written on the node, without what its user brought."""
    return [path for path in node.written() if not path.startswith(("/home/pilot/", "/tmp/pilot.sh"))]


def shell_of(node: BareNode) -> int:
    """The pilot script's own process, which is all that a batch system knows."""
    (shell,) = [pid for pid in node.pids() if cmdline(pid) == b"sh\0/tmp/pilot.sh\0"]
    return shell


def master_of(node: BareNode) -> int:
    """The glide-in's condor_master."""
    (master,) = [pid for pid in node.pids() if b"condor_master" in cmdline(pid).split(b"\0")[0]]
    return master


def cmdline(pid: int) -> bytes:
    """A process's command line, or nothing where it is gone."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as stream:
            return stream.read()
    except OSError:
        return b""
