"""`make soak`: whole agents with real downloads and payloads, killed at any instant from their first import on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from jobagent.testing.world import Node, World

pytestmark = [pytest.mark.soak, pytest.mark.swarm, pytest.mark.timeout(1800)]

KILLS = int(os.environ.get("JOBAGENT_SOAK_AGENTS", "40"))
AT_ONCE = 3
LATEST_S = 3.0  # a job takes about two seconds until its payload runs
GONE_WITHIN_S = 5.0
MARK = "86399.125"  # seconds that nobody else sleeps
PAYLOAD = f"#!/bin/sh\nsetsid sh -c 'trap \"\" TERM; sleep {MARK}' &\nsleep {MARK}\n"


@pytest.mark.acceptance(4, 5)
def test_agents_killed_at_any_instant_leave_no_process_and_a_cache_that_works(tmp_path: Path) -> None:
    world = World(tmp_path / "world")
    packages = [
        world.publish(name, {"bin/hello": "#!/bin/sh\necho hello\n", "data": os.urandom(3 << 20)})
        for name in ("One", "Two")
    ]
    extra = f'[plugins]\nenable = ["sharedcache"]\n[sharedcache]\nroot = "{tmp_path / "cache"}"\n'
    script = tmp_path / "payload"
    script.write_text(PAYLOAD)
    script.chmod(0o755)
    seed = int(os.environ.get("JOBAGENT_SOAK_SEED", "0")) or random.SystemRandom().getrandbits(32)
    chance = random.Random(seed)
    print(f"seed {seed}")
    with world.serving():
        node = world.node(extra)
        for number in range(KILLS // AT_ONCE + 1):
            job = tmp_path / f"{number}.jdl"
            job.write_text(f'Executable = "{script}";\nPackages = {{"{chance.choice(packages)}"}};\n')
            kill_some(node, job, tmp_path, chance)
            if chance.random() < 0.3:  # so that installations are killed, not only leases
                node.call("cache", "evict", "*")
        check_the_node(node, packages, tmp_path)


def kill_some(node: Node, job: Path, tmp_path: Path, chance: random.Random) -> None:
    """Start agents together, kill each at a random instant, and see all that they started end."""
    agents = [
        node.start("run", job, "--output", tmp_path / "out", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(AT_ONCE)
    ]
    start = time.monotonic()
    for agent, at in zip(agents, sorted(chance.random() * LATEST_S for _ in agents), strict=True):
        time.sleep(max(0.0, start + at - time.monotonic()))
        assert agent.poll() is None, f"an agent ended by itself with {agent.returncode}"
        os.kill(agent.pid, signal.SIGKILL)
        agent.wait()
    deadline = time.monotonic() + GONE_WITHIN_S
    while alive() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert alive() == []


def alive() -> list[int]:
    """Return the payload processes that run."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if MARK.encode() in (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


def check_the_node(node: Node, packages: list[str], tmp_path: Path) -> None:
    """Check that the next agents find nothing held, nothing damaged, and leave nothing."""
    for package in packages:
        job = tmp_path / "last.jdl"
        job.write_text(f'Executable = "hello";\nPackages = {{"{package}"}};\n')
        done = node.call("run", job, "--output", tmp_path / "out")
        assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr
    entries = json.loads(node.call("cache", "--json", "list").stdout)["entries"]
    assert {e["package_id"] for e in entries} == set(packages) and all(e["leases"] == 0 for e in entries)
    assert node.call("cache", "verify").returncode == 0
    assert node.leftovers() == []
    assert node.call("cache", "evict", "*").returncode == 0
    for name in ("staging", "reservations", "progress", "trash", "quarantine", "leases", "store"):
        assert [p for p in (tmp_path / "cache" / name).rglob("*") if p.is_file()] == []
    usage = json.loads(node.call("cache", "--json", "du").stdout)["usage"]
    assert (usage["used_bytes"], usage["inodes"]) == (0, 0)
