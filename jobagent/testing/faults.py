"""Step faults: the n-th change of a directory fails, or is the last thing that the process does.

For caches and anything else that promises to survive: run a scenario with n rising until no step is left.  Arm a
process of its own (`in_child`): what is armed cannot be disarmed.  Python's own file operations are caught, by the
audit events of `open`, `os.rename`, `os.mkdir` … and by the writes of files opened for writing; a payload's are not.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Events of sys.addaudithook that change a directory, and the position of the path among their arguments.
_MAKING = {"os.rename": 1, "os.link": 1, "os.mkdir": 0, "os.symlink": 1, "os.truncate": 0}
_OTHER = {"os.remove": 0, "os.rmdir": 0, "os.chmod": 0, "os.utime": 0}
_WRITING_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

KINDS = ("ENOSPC", "EIO", "kill")


@dataclass(slots=True)
class Steps:
    """Counts the changes below `root`; the `at`-th is the fault.  A full disk strikes only what takes space."""

    root: Path
    kind: str
    at: int
    count: int = 0
    log: list[str] = field(default_factory=list)

    def step(self, what: str, *, takes_space: bool) -> None:
        """Count one change, or let it be the fault."""
        if self.kind == "ENOSPC" and not takes_space:
            return
        self.count += 1
        if self.count != self.at:
            return
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        code = getattr(errno, self.kind)
        raise OSError(code, os.strerror(code), what)

    def is_below(self, path: object) -> bool:
        """Whether a path is inside `root`; a relative one is, because only `rmtree` uses those."""
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        text = os.fsdecode(path)
        return not text.startswith("/") or text.startswith(f"{self.root}/")


def arm(steps: Steps) -> None:
    """Let the fault happen in this process, from now on and for good."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITING_FLAGS and steps.is_below(path):
                steps.step(f"open {path}", takes_space=True)
        elif event in _MAKING:
            if steps.is_below(arguments[_MAKING[event]]):
                steps.step(f"{event} {arguments[_MAKING[event]]}", takes_space=True)
        elif event in _OTHER and steps.is_below(arguments[_OTHER[event]]):
            steps.step(f"{event} {arguments[_OTHER[event]]}", takes_space=False)

    class FaultyFile(io.FileIO):
        """A file whose writes are steps."""

        def write(self, data: Any, /) -> int:
            if steps.is_below(self.name):
                steps.step(f"write {self.name!r}", takes_space=True)
            return super().write(data)

    original = io.open

    def faulty_open(file: Any, mode: str = "r", buffering: int = -1, *options: Any, **named: Any) -> Any:
        is_writing = bool(set(mode) & set("wax+"))
        if not is_writing or isinstance(file, int) or buffering == 0 or "+" in mode:
            return original(file, mode, buffering, *options, **named)
        raw = FaultyFile(file, mode.replace("b", "").replace("t", ""), opener=named.get("opener"))
        buffered = io.BufferedWriter(raw)
        if "b" in mode:
            return buffered
        names = ("encoding", "errors", "newline")
        texts = dict(zip(names, options, strict=False)) | {k: v for k, v in named.items() if k in names}
        return io.TextIOWrapper(buffered, **texts)

    io.open = faulty_open
    builtins.open = faulty_open
    sys.addaudithook(hook)


def in_child(act: Callable[[], int]) -> int:
    """Run `act` in a forked child and return its exit status as `os.waitstatus_to_exitcode` does (-9 for SIGKILL).

    An exception that `act` lets through is printed and ends the child with 70.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            code = act()
        except BaseException:  # noqa: BLE001 - the child must never return into its parent's stack
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)
