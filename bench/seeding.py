"""`bench.seeding`: what it costs a node to seed everything that it has, while nobody asks for anything.

A real `jobagent node` installs `--packages` packages from real central services, is started anew as after a reboot,
and is then left alone for a minute.

- `seeding`: torrents in its session, as the service itself says; `announced`: packages that the tracker lists as
  complete at this node.
- `rss_mb`, `cpu_percent`: resident memory and share of one core of the idle service; `first_s`: seconds from its
  start until everything was announced.
- `ghosts`: packages that the tracker still listed when the service had ended before.
- `descriptors`, `threads`; `empty_rss_mb`: the same service with nothing in its cache.
- `announces_per_s`: what one idle node asks of the tracker.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import leave_nothing_when_terminated
from jobagent.central.catalogue.keys import KeyStore
from jobagent.central.catalogue.repository import Repository
from jobagent.central.packaging.sources import Directory
from jobagent.central.publish import Edition, Publisher
from jobagent.config import Config
from jobagent.events import Events
from jobagent.job.kit import platform_of
from jobagent.node import client
from jobagent.testing.world import Node, World

START_TIMEOUT_S = 120.0
POLL_S = 0.2


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="python -m bench.seeding", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--full", action="store_true", help="watch for five minutes")
    parser.add_argument("--packages", type=int, default=200)
    parser.add_argument("--size", type=float, default=6.0, metavar="MB", help="of each package")
    parser.add_argument("--watch", type=float, metavar="S", help="seconds to watch the idle service (default: 60)")
    options = parser.parse_args()
    leave_nothing_when_terminated()
    watch_s = options.watch or (300.0 if options.full else 60.0)
    with tempfile.TemporaryDirectory(prefix="jobagent-bench-") as directory:
        figures = measure(Path(directory), options.packages, int(options.size * 1e6), watch_s)
    text = json.dumps(figures, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    return 0


def measure(directory: Path, packages: int, size_bytes: int, watch_s: float) -> dict[str, Any]:
    """Return all figures; services and the node are on loopback."""
    world = World(directory)
    names = publish(world, packages, size_bytes)
    with world.serving():
        socket = directory / "node.sock"
        node = world.node(
            f'[plugins]\nenable = ["sharedcache"]\n[sharedcache]\nroot = "{directory / "cache"}"\n',
            sections={"node": f'socket = "{socket}"\n'},
        )
        with service(node, str(socket)) as process:
            time.sleep(3.0)  # for its first look at the catalogue
            empty = resident_mb(process.pid)
            for first in range(0, packages, 50):
                client.ask(str(socket), "prewarm", {"packages": names[first : first + 50]}, timeout_s=300.0)
        ghosts, before, start = announced(world), announces(world), time.monotonic()
        with service(node, str(socket)) as process:
            wait_until(lambda: announces(world) >= before + 2 * packages)  # hybrid torrents announce twice
            first_s = time.monotonic() - start
            wait_until(lambda: cpu_s(process.pid, over_s=2.0) < 0.2)
            figures = idle(world, process.pid, watch_s)
            status = client.ask(str(socket), "status")
            figures |= {"seeding": int(status["swarm"]["seeding"]), "announced": announced(world)}
    return {
        "packages": packages,
        "package_bytes": size_bytes,
        **figures,
        "first_s": round(first_s, 1),
        "ghosts": ghosts,
        "empty_rss_mb": round(empty, 1),
    }


def page(figures: dict[str, Any]) -> str:
    """The figures as a table in Markdown."""
    names = {
        "rss_mb": "resident MB",
        "cpu_percent": "% of a core",
        "wakeups_per_s": "wake-ups/s",
        "descriptors": "descriptors",
        "threads": "threads",
        "first_s": "s until all were announced",
    }
    head = f"| {figures['packages']} packages of {figures['package_bytes'] / 1e6:g} MB | "
    lines = [head + " | ".join(names.values()) + " |", "|" + "---|" * (len(names) + 1)]
    return "\n".join(
        [*lines, f"| idle for {figures['watched_s']:g} s | " + " | ".join(str(figures[n]) for n in names) + " |"]
    )


def publish(world: World, packages: int, size_bytes: int) -> list[str]:
    """Publish packages of random bytes, all in one signature; return their names."""
    content = random.Random(1)
    editions = []
    for number in range(packages):
        tree = world.directory / "trees" / str(number)
        (tree / "share").mkdir(parents=True)
        (tree / "share" / "data").write_bytes(content.randbytes(size_bytes))
        editions.append(Edition(Directory(tree), f"Seeded{number}", "1"))
    os.environ.setdefault("JOBAGENT_PASSPHRASE", world.passphrase)  # of keys that live as long as the run
    repository = Repository(world.catalogue, KeyStore(world.keys))
    Publisher(repository, "alice", platform_of(Config({})), Events()).publish(editions)
    return [f"VO_ALICE@Seeded{number}::1" for number in range(packages)]


def idle(world: World, pid: int, watch_s: float) -> dict[str, Any]:
    """Leave the service alone, and say what it took meanwhile."""
    before = announces(world)
    switches = context_switches(pid)
    used = cpu_s(pid, over_s=watch_s)
    asked = announces(world) - before
    return {
        "watched_s": watch_s,
        "rss_mb": round(resident_mb(pid), 1),
        "cpu_percent": round(100 * used / watch_s, 3),
        "wakeups_per_s": round((context_switches(pid) - switches) / watch_s, 1),
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": len(os.listdir(f"/proc/{pid}/task")),
        "announces_per_s": round(asked / watch_s, 2),
    }


def announces(world: World) -> int:
    """How many the tracker has answered."""
    return int(world.status()["server"]["announces"])


def announced(world: World) -> int:
    """How many packages somebody other than the central seeder has complete."""
    return sum(any(complete for complete, _ in p["sites"].values()) for p in world.status()["packages"])


def cpu_s(pid: int, *, over_s: float) -> float:
    """CPU seconds that a process uses within so many seconds."""
    before = _scheduled_s(pid)
    time.sleep(over_s)
    return _scheduled_s(pid) - before


def _scheduled_s(pid: int) -> float:
    """CPU seconds of the threads that there are, exact where ticks are too coarse for short wakes."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def resident_mb(pid: int) -> float:
    """Resident memory, in MB of 2**20 bytes."""
    return _status(pid, "VmRSS") / 1024


def context_switches(pid: int) -> int:
    """How often the threads of a process were woken."""
    return sum(
        int(line.split()[1])
        for task in Path(f"/proc/{pid}/task").iterdir()
        for line in (task / "status").read_text().splitlines()
        if line.startswith("voluntary_ctxt_switches")
    )


def _status(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


@contextlib.contextmanager
def service(node: Node, socket: str) -> Iterator[subprocess.Popen[str]]:
    """Run the node service until the end of the block."""
    process = node.start("node", stderr=subprocess.DEVNULL)
    try:
        client.ask(socket, "hello", wait_for_service_s=START_TIMEOUT_S)
        yield process
    finally:
        process.terminate()
        process.wait(30)


def wait_until(condition: Any) -> None:
    """Wait for a state without an event of its own."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {START_TIMEOUT_S:.0f} s")
        time.sleep(POLL_S)


if __name__ == "__main__":
    sys.exit(main())
