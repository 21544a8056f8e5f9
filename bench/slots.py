"""`bench.slots`: many jobs at once on one node, with and without the shared cache.

Three ways to run N jobs of one package on a node, all started together: `private` (`jobagent run`, no plugin: each
job has its own), `shared` (`jobagent run` with the plugin) and `service` (N clients of one node service, as hooks
are).  Each payload says when it starts and then waits for the others, so that all N really run at once.

- `downloads`, `installs`, `network_bytes`: summed over the jobs' own reports.
- `disk_bytes`: what scratch and cache take while all N run.
- `last_start_s`: from the first process's start to the last payload's start.
- `acquire_ms_p50`, `prepare_ms_p50`: a warm lease in the cache, a warm prepare in the node service.
- `view_ms_p50`: what the read-only view adds to a process's start.
- `sharing`: installing a second version of 5,000 files of which one in twenty changed, with files shared or not.
- `update_fraction`, `real_update_fraction`: bytes of an update over those of the full archive, for one in twenty of
  5,000 files changed, and for pythia8mc 8.317.1 → 8.317.2 (with `--full`: the wheels come from the package index).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import leave_nothing_when_terminated
from jobagent.central.packaging import updating
from jobagent.central.packaging.pack import pack
from jobagent.contracts import Built, Staging
from jobagent.events import Events
from jobagent.job import sandbox
from jobagent.manifest import scan
from jobagent.model import Traffic
from jobagent.node import client
from jobagent.testing.samples import Sample, holder, sample
from jobagent.testing.world import Node, World
from jobagent_sharedcache import SharedCache, SharedCacheSettings

PACKAGE_MB = 16
FILES = 600
REAL_NAME, REAL_VERSIONS = "pythia8mc", ("8.317.1", "8.317.2")
LIMIT_S = 900.0
BLOCK_BYTES = 4096
POLL_S = 0.02
# The central services share the cores with all the jobs' interpreters: a slow answer is no outage here.
PATIENT = {
    "catalogue": "timeout_s = 300\n",
    "swarm": "no_peer_timeout_s = 300\nstall_timeout_s = 300\nminimum_rate_bytes = 1\n",
}
PAYLOAD = """#!/bin/sh
date +%s.%N > "$(mktemp "$HOME/started.XXXXXXXX")"
while [ ! -e "$HOME/go" ]; do sleep 0.1; done
"""


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="python -m bench.slots", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--full", action="store_true", help="up to 128 jobs in every way")
    parser.add_argument("--jobs", type=int, nargs="*", metavar="N", help="numbers of jobs; default: 1 8 (64 128)")
    options = parser.parse_args()
    leave_nothing_when_terminated()
    counts = options.jobs or ([1, 8, 64, 128] if options.full else [1, 8])
    with tempfile.TemporaryDirectory(prefix="jobagent-bench-") as directory:
        figures = measure(Path(directory), counts, is_full=options.full)
    print_table(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def measure(directory: Path, counts: list[int], *, is_full: bool) -> dict[str, Any]:
    """Return all figures; services and the node are on loopback."""
    world = World(directory)
    content = random.Random(1)
    files: dict[str, str | bytes] = {"bin/wait-for-all": PAYLOAD}
    files |= {f"lib/part{n}": content.randbytes((PACKAGE_MB << 20) // FILES) for n in range(FILES)}
    package = world.publish("Slots", files)
    rows: list[dict[str, Any]] = []
    with world.serving():
        for count in counts:
            rows.append(run_jobs(world, package, count))
            rows.append(run_jobs(world, package, count, directory / f"shared-{count}"))
            rows.append(ask_service(world, directory, package, count))
        figures: dict[str, Any] = {"package_mb": PACKAGE_MB, "files": FILES, "cpus": os.cpu_count(), "slots": rows}
        figures |= warm_prepare(world, directory, package)
    figures |= warm_acquire(directory / "acquire")
    figures |= view()
    figures["sharing"] = sharing(directory)
    figures["update_fraction"] = update_fraction(directory)
    if is_full:
        figures["real_update_fraction"] = real_update_fraction(world)
    return figures


def shared(root: Path) -> str:
    """Configuration of a node with the plugin."""
    return f'[plugins]\nenable = ["sharedcache"]\n[sharedcache]\nroot = "{root}"\n'


# --- jobs


def run_jobs(world: World, package: str, count: int, root: Path | None = None) -> dict[str, Any]:
    """Run `count` jobs as processes of their own, with a shared cache in `root` or without one."""
    node = world.node(shared(root) if root else "", sections=PATIENT)
    job = node.scratch / "job.jdl"
    job.write_text(f'Executable = "wait-for-all";\nPackages = {{"{package}"}};\n')
    start = time.time()
    processes = []
    for number in range(count):
        report = node.scratch / f"report.{number}"
        out = node.scratch / "out" / str(number)
        words = ("run", job, "--quiet", "--json", report, "--output", out)
        processes.append(node.start(*words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))
    try:
        wait_for_all(node.scratch, count, processes)
        disk = disk_bytes(node.scratch, root)
        last = max(float(p.read_text()) for p in node.scratch.glob("started.*"))
        (node.scratch / "go").touch()
        for process in processes:
            _, errors = process.communicate(timeout=LIMIT_S)
            if process.returncode:
                raise RuntimeError(errors)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    reports = [json.loads((node.scratch / f"report.{n}").read_text()) for n in range(count)]
    packages = [p for r in reports for p in r["packages"]]
    row = {
        "way": "shared" if root else "private",
        "jobs": count,
        "downloads": sum(not p["cache_hit"] for p in packages),
        "installs": sum(not p["cache_hit"] for p in packages),
        "network_bytes": sum(sum(r["traffic"].values()) for r in reports),
        "disk_bytes": disk,
        "last_start_s": round(last - start, 2),
    }
    print(row, flush=True)
    shutil.rmtree(node.scratch)
    return row


def wait_for_all(scratch: Path, count: int, processes: list[subprocess.Popen[str]]) -> None:
    """Return when all payloads run; raises where a job ended before."""
    deadline = time.monotonic() + LIMIT_S
    while len(list(scratch.glob("started.*"))) < count:
        for process in processes:
            if process.poll():
                raise RuntimeError(process.stderr.read() if process.stderr else "a job failed")
        if time.monotonic() > deadline:
            raise RuntimeError("not all payloads started")
        time.sleep(POLL_S)
    time.sleep(POLL_S)  # the last one writes its line


def disk_bytes(*places: Path | None) -> int:
    """Return what files below the places take in blocks, each inode once.

    By their sizes: a file system may count blocks only when it has written them, some seconds later.
    """
    seen: dict[tuple[int, int], int] = {}
    for place in places:
        for directory, _, names in os.walk(place) if place else ():
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    status = os.lstat(os.path.join(directory, name))
                    seen[(status.st_dev, status.st_ino)] = -(-status.st_size // BLOCK_BYTES) * BLOCK_BYTES
    return sum(seen.values())


@contextlib.contextmanager
def service(world: World, root: Path) -> Iterator[tuple[Node, str]]:
    """Run a node service; yield its node and socket."""
    socket = f"{root}.sock"
    node = world.node(shared(root), sections={"node": f'socket = "{socket}"\n'})
    process = node.start("node", stderr=subprocess.DEVNULL)
    try:
        client.ask(socket, "hello", wait_for_service_s=60.0)
        yield node, socket
    finally:
        process.terminate()
        process.wait(30)


def ask_service(world: World, directory: Path, package: str, count: int) -> dict[str, Any]:
    """Prepare for `count` jobs at once through one node service; their payloads are started by the clients."""
    root = directory / f"service-{count}"
    with service(world, root) as (node, socket), concurrent.futures.ThreadPoolExecutor(count) as pool:

        def job(number: int) -> tuple[dict[str, Any], float]:
            arguments = {"packages": [package], "job_id": str(number), "environment": {}}
            answer = client.ask(socket, "prepare", arguments, timeout_s=LIMIT_S)
            return answer, time.time()

        start = time.time()
        answers = list(pool.map(job, range(count)))
        packages = [p for answer, _ in answers for p in answer["packages"]]
        row = {
            "way": "service",
            "jobs": count,
            "downloads": sum(not p["cache_hit"] for p in packages),
            "installs": sum(not p["cache_hit"] for p in packages),
            "network_bytes": sum(p["seeder_bytes"] + p["neighbour_bytes"] + p["web_bytes"] for p in packages),
            "disk_bytes": disk_bytes(node.scratch, root),
            "last_start_s": round(max(t for _, t in answers) - start, 2),
        }
    print(row, flush=True)
    return row


# --- what is warm


def warm_prepare(world: World, directory: Path, package: str, repeats: int = 100) -> dict[str, Any]:
    """Time prepare and release of a cached package in the node service."""
    inside, outside = [], []
    with service(world, directory / "warm") as (_, socket):
        for number in range(repeats + 1):
            start = time.perf_counter()
            answer = client.ask(socket, "prepare", {"packages": [package], "job_id": str(number), "environment": {}})
            if number:
                outside.append((time.perf_counter() - start) * 1000)
                inside.append(answer["seconds"] * 1000)
            client.ask(socket, "release", {"id": answer["id"]})
    return {
        "prepare_ms_p50": round(statistics.median(inside), 2),
        "prepare_answered_ms_p50": round(statistics.median(outside), 2),
        "prepare_answered_ms_p99": round(sorted(outside)[int(0.99 * len(outside))], 2),
    }


def tree_of(files: int, changed: int = 0) -> Sample:
    """A package of small files, of which the first `changed` differ from those of the plain one."""
    content = {
        f"lib/{n % 50}/file{n}": f"{n} {'new' if n < changed else 'old'} ".encode() * 200 for n in range(files)
    }
    return sample("Tree", version=str(changed), files=content)


def warm_acquire(root: Path, repeats: int = 300) -> dict[str, Any]:
    """Time leases on an installed package of 5,000 files, trusted and checked."""
    wanted = tree_of(5000)
    figures = {}
    for may_view, name in ((True, "acquire_ms_p50"), (False, "acquire_checked_ms_p50")):
        cache = SharedCache(SharedCacheSettings(), Events(), root=root, may_view=may_view)
        cache.release(cache.acquire(wanted.package, holder(), wanted))
        times = []
        for _ in range(repeats if may_view else 30):
            start = time.perf_counter()
            lease = cache.acquire(wanted.package, holder(), wanted)
            times.append((time.perf_counter() - start) * 1000)
            cache.release(lease)
        figures[name] = round(statistics.median(times), 3)
        cache.close()
    return figures


def view(repeats: int = 100) -> dict[str, Any]:
    """Time what bubblewrap adds to the start of a process."""
    program = sandbox.find_bubblewrap()
    if not program:
        return {"view_ms_p50": None}
    place = Path(tempfile.gettempdir())
    times: dict[str, list[float]] = {"": [], program: []}
    for _ in range(repeats):
        for choice, found in times.items():
            argv = sandbox.wrap(["/bin/true"], program=choice, read_only=[place], directory=place)
            start = time.perf_counter()
            subprocess.run(argv, check=True)
            found.append((time.perf_counter() - start) * 1000)
    return {"view_ms_p50": round(statistics.median(times[program]) - statistics.median(times[""]), 2)}


def sharing(directory: Path) -> dict[str, Any]:
    """Install two versions that share 95 % of 5,000 files, once with files kept once and once without."""
    figures: dict[str, Any] = {}
    for share_files, name in ((True, "shared"), (False, "plain")):
        root = directory / f"sharing-{name}"
        cache = SharedCache(SharedCacheSettings(share_files=share_files), Events(), root=root)
        first, second = tree_of(5000), tree_of(5000, changed=250)
        cache.release(cache.acquire(first.package, holder(), first))
        start = time.perf_counter()
        building: list[float] = []

        def build(
            staging: Staging, wanted: Sample = second, building: list[float] = building, start: float = start
        ) -> Built:
            built = wanted(staging)
            building.append(time.perf_counter() - start)
            return Built(scan(staging.tree), built.keep_archive, Traffic(), {})

        cache.release(cache.acquire(second.package, holder(), build))
        usage = cache.usage()
        figures[f"{name}_ms"] = round((time.perf_counter() - start - building[0]) * 1000)
        figures[f"{name}_bytes"] = usage.stored_bytes
        start = time.perf_counter()
        cache.evict(first.package.key)
        figures[f"{name}_evict_ms"] = round((time.perf_counter() - start) * 1000)
        cache.close()
    return figures


def update_fraction(directory: Path) -> float:
    """Make the update between two trees of 5,000 files, one in twenty changed, of bytes that do not compress."""
    content = random.Random(2)
    files = {f"lib/{n % 50}/file{n}": content.randbytes(4000) for n in range(5000)}
    packed, entries, archives = [], [], []
    for version in ("old", "new"):
        tree, archive = directory / version, directory / f"{version}.tar.zst"
        for name, data in files.items():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes(data)
        made = pack(tree, archive)
        packed.append(made)
        entries.append(made.entries)
        archives.append(archive)
        files |= {f"lib/{n % 50}/file{n}": content.randbytes(4000) for n in range(0, 5000, 20)}
    size = updating.make(archives[0], entries[0], directory / "new", entries[1], directory / "update")
    return round(size / packed[1].archive.size_bytes, 4)


def real_update_fraction(world: World) -> float | None:
    """Publish two versions of a wheel; return the update's share, None where the package index is out of reach."""
    store = ("--vo", "alice", "--catalogue", world.catalogue, "--keys", world.keys)
    try:
        for version in REAL_VERSIONS:
            world.call("publish", *store, "--wheel", f"{REAL_NAME}=={version}", "--skip-existing")
    except RuntimeError as error:
        print(error)
        return None
    sizes = {p.suffix: p.stat().st_size for p in sorted(world.catalogue.glob(f"archives/*/{REAL_NAME}-*"))}
    return round(sizes[".update"] / sizes[".zst"], 4)


def print_table(figures: dict[str, Any]) -> None:
    """Print the figures for people."""
    names = ("way", "jobs", "downloads", "installs", "network_bytes", "disk_bytes", "last_start_s")
    print("".join(f"{name:>15}" for name in names))
    for row in figures["slots"]:
        print("".join(f"{row[name]:>15}" for name in names))
    print(json.dumps({k: v for k, v in figures.items() if k != "slots"}, indent=2))


if __name__ == "__main__":
    sys.exit(main())
