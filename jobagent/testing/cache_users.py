"""For tests of caches: other processes that use one, and what a payload may do to a tree."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

from jobagent.contracts import Built, Cache, Staging
from jobagent.testing.samples import Sample, holder

Open = Callable[[Path], Cache]

WAIT_S = 60.0  # for other processes: a hang fails the test instead of the run
_spawn = multiprocessing.get_context("spawn")


class User:
    """Another process that uses the cache on command."""

    def __init__(self, process: SpawnProcess, pipe: Connection) -> None:
        self._process = process
        self._pipe = pipe

    def send(self, command: str) -> None:
        """Tell it what to do."""
        self._pipe.send(command)

    def receive(self) -> str:
        """Return what it says next; a silent one fails the test."""
        assert self._pipe.poll(WAIT_S), "the other process says nothing"
        return str(self._pipe.recv())

    def kill(self) -> None:
        """Kill it, as the out-of-memory killer would."""
        if self._process.is_alive() and self._process.pid:
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.join(WAIT_S)


@contextlib.contextmanager
def user(open_cache: Open, directory: Path, wanted: Sample) -> Iterator[User]:
    """Start another process with the cache opened; it is killed at the end."""
    ours, theirs = _spawn.Pipe()
    process = _spawn.Process(target=_serve, args=(open_cache, directory, wanted, theirs), daemon=True)
    process.start()
    theirs.close()
    other = User(process, ours)
    try:
        assert other.receive() == "ready"
        yield other
    finally:
        other.kill()
        ours.close()
        process.close()


def _serve(open_cache: Open, directory: Path, wanted: Sample, pipe: Connection) -> None:
    cache = open_cache(directory)
    pipe.send("ready")

    def hang(staging: Staging) -> Built:
        (staging.tree / "hang").write_bytes(b"half")
        pipe.send("building")
        signal.pause()
        raise AssertionError

    while True:
        command, *arguments = pipe.recv().split()
        build = hang if command == "hang" else wanted
        lease = cache.acquire(wanted.package, holder(int(arguments[0]) if arguments else 0), build)
        pipe.send(str(lease.installed.is_cache_hit))


def content(tree: Path) -> dict[str, bytes]:
    """Return all files below `tree` by relative name."""
    return {str(p.relative_to(tree)): p.read_bytes() for p in sorted(tree.rglob("*")) if p.is_file()}


def spoil(tree: Path, damage: str) -> None:
    """Change an installed tree as a payload might."""
    victim = tree / "lib/data"
    if damage == "edit":
        status = victim.stat()
        data = bytearray(victim.read_bytes())
        data[7] ^= 1
        victim.write_bytes(data)
        os.utime(victim, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif damage == "delete":
        victim.unlink()
    elif damage == "add":
        (tree / "lib/more").write_bytes(b"more")
    elif damage == "mode":
        victim.chmod(0o755)
    elif damage == "symlink":
        victim.unlink()
        victim.symlink_to("/etc/passwd")
