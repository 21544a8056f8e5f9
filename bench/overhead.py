"""`bench.overhead`: what the agent adds to a job.

- `added_ms_p50`: wall time of `jobagent run` of an empty payload with everything cached, less the payload's own time;
  `phases_ms` says where it goes.
- `fetch_vs_aria2c`: rate of one client fetching one archive, over aria2c's on the same torrent in the same run.
- `unpack_vs_tar`: `tar --zstd` over ours, from `bench.unpack`.
- `seeding_rss_mb`: resident memory of an agent that seeds that archive while its payload sleeps.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import leave_nothing_when_terminated, unpack
from jobagent.testing.world import Node, World

ARCHIVE_MB = 128


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="python -m bench.overhead", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--full", action="store_true", help="more repeats")
    options = parser.parse_args()
    leave_nothing_when_terminated()
    with tempfile.TemporaryDirectory(prefix="jobagent-bench-") as directory:
        base = Path(directory)
        figures = measure(base, repeats=30 if options.full else 11)
        unpack.copy_installation(base / "tree")
        unpacking = unpack.measure(base, base / "tree", repeats=9 if options.full else 5)
        figures["unpack_vs_tar"] = unpacking["unpack_vs_tar"]
    text = json.dumps(figures, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    return 0


def measure(directory: Path, *, repeats: int) -> dict[str, Any]:
    """Return all figures but that of unpacking; services and nodes are on loopback."""
    world = World(directory)
    small = world.publish("Small", {"bin/small": "#!/bin/sh\n"})
    big = world.publish("Big", {"share/random": os.urandom(ARCHIVE_MB << 20)})
    with world.serving():
        shared = world.node(
            f'[plugins]\nenable = ["sharedcache"]\n[sharedcache]\nroot = "{directory / "cache"}"\n',
            sections={"job": 'sandbox = "none"\n'},
        )
        figures: dict[str, Any] = {"repeats": repeats, "archive_mb": ARCHIVE_MB}
        figures |= added_time(shared, directory, small, repeats)
        figures |= fetch_rates(world, directory, big, max(3, repeats // 4))
        figures |= seeding_memory(world, directory, big)
    return figures


def job(directory: Path, package: str, executable: str, arguments: str = "") -> Path:
    """Write a job description."""
    path = directory / f"{package.partition('@')[2].partition(':')[0]}.jdl"
    path.write_text(f'Executable = "{executable}";\nArguments = "{arguments}";\nPackages = {{"{package}"}};\n')
    return path


def added_time(node: Node, directory: Path, package: str, repeats: int) -> dict[str, Any]:
    """Time an empty payload with everything cached; the first run fills the cache."""
    description, report = job(directory, package, "true"), directory / "report.json"
    added, phases = [], []
    for number in range(repeats + 1):
        start = time.perf_counter()
        done = node.call("run", description, "--quiet", "--json", report, "--output", directory / "out")
        wall_s = time.perf_counter() - start
        if done.returncode:
            raise RuntimeError(done.stderr)
        document = json.loads(report.read_text())
        if number:
            added.append((wall_s - document["payload"]["wall_s"]) * 1000)
            phases.append(document["seconds"])
    names = phases[0]
    return {
        "added_ms_p50": round(statistics.median(added), 1),
        "added_ms_min": round(min(added), 1),
        "added_ms_max": round(max(added), 1),
        "phases_ms": {n: round(statistics.median(p.get(n, 0.0) for p in phases) * 1000, 1) for n in names},
    }


def fetch_rates(world: World, directory: Path, package: str, repeats: int) -> dict[str, Any]:
    """Fetch one archive in turn with the agent and with aria2c, and compare the rates of the download itself."""
    if shutil.which("aria2c") is None:
        return {"fetch_vs_aria2c": None}
    words = ("--json", "--catalogue", world.url, "--root", world.root)
    shown = json.loads(world.call("show", package, *words))
    torrent = f"{world.url}/torrents/v1/{shown[0]['archive']['infohash_v2']}.torrent"
    ours, theirs = [], []
    for _ in range(repeats):
        ours.append(fetch_with_agent(world, directory, package))
        theirs.append(fetch_with_aria2c(directory, torrent))
    return {
        "fetch_mb_s": round(ARCHIVE_MB / statistics.median(ours), 1),
        "aria2c_mb_s": round(ARCHIVE_MB / statistics.median(theirs), 1),
        "fetch_vs_aria2c": round(statistics.median(t / o for o, t in zip(ours, theirs, strict=True)), 2),
    }


def fetch_with_agent(world: World, directory: Path, package: str) -> float:
    """Seconds of a whole `jobagent get`, its start included."""
    node = world.node()
    target = directory / "fetched"
    target.unlink(missing_ok=True)
    start = time.perf_counter()
    done = node.call("get", package, "-o", target)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(done.stderr)
    return seconds


def fetch_with_aria2c(directory: Path, torrent: str) -> float:
    """Seconds of a whole aria2c, its start included; it does not seed and hashes what it has."""
    target = directory / "aria2c"
    shutil.rmtree(target, ignore_errors=True)
    options = ["--enable-dht=false", "--enable-dht6=false", "--bt-enable-lpd=false", "--seed-time=0", "--quiet"]
    start = time.perf_counter()
    subprocess.run(["aria2c", *options, f"--dir={target}", torrent], check=True, timeout=120)
    return time.perf_counter() - start


def seeding_memory(world: World, directory: Path, package: str) -> dict[str, Any]:
    """Resident memory of the agent while its payload runs and the archive is seeded."""
    node = world.node()
    process = node.start("run", job(directory, package, "sleep", "300"), "--output", directory / "out", stderr=-1)
    try:
        assert process.stderr is not None
        while "payload starts" not in (line := process.stderr.readline()):
            if not line:
                raise RuntimeError("the agent ended before its payload started")
        time.sleep(2)  # let allocations of the download settle: the figure is the state, not the peak
        status = Path(f"/proc/{process.pid}/status").read_text()
    finally:
        process.terminate()
        process.wait(30)
        if process.stderr:
            process.stderr.close()
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in status.splitlines() if line.startswith("Vm")}
    return {
        "seeding_rss_mb": round(kilobytes["VmRSS"] / 1024, 1),
        "fetching_peak_mb": round(kilobytes["VmHWM"] / 1024, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
