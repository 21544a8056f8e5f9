"""`bench.hooks`: what the agent adds to jobs under HTCondor, everything cached, on a real pool on loopback.

- `prepare_ms_p50`, `prepare_ms_p99`: from the starter's start of the prepare hook to its end, by the starter's log.
- `service_ms_p50`, `service_ms_p99`: the node service's part of it, by the jobs' `JobAgentPrepareSeconds`.
- `client_ms_p50`: the same hook run by hand, one at a time: what it costs without a busy machine around it.
- `throughput_ratio`: jobs per minute with the agent over jobs per minute on a machine
  without it, in alternating batches of jobs that run `payload_s` each.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from bench import leave_nothing_when_terminated
from jobagent.testing import condor_tree, equipped, interpreter, joblog
from jobagent.testing.equipped import EquippedPoint
from jobagent.testing.pool import Pool
from jobagent.testing.world import World

SLOTS = 3 * (os.cpu_count() or 1)  # payloads only sleep: what is busy is HTCondor and the agent
PAYLOADS_S = (2, 1, 3, 1.5, 2.5)  # in turn, so that jobs do not start in step; HTCondor itself adds two seconds
BATCH = 50  # jobs; both sides' batches are of one size, because a batch's end leaves slots empty
ROUNDS = {"quick": ("plain", "agent"), "full": ("agent", "plain", "agent", "agent", "agent")}
USUAL = "JOBAGENT_PERIOD = 20s\n"  # a site's, not the tests' quick one
BATCH_LIMIT_S = 900.0
LOGS = "STARTER_DEBUG = D_FULLDEBUG:1, D_SUB_SECOND\n"
_LINE = re.compile(r"^(\d\d/\d\d/\d\d \d\d:\d\d:\d\d\.\d+) .*?(PREPARE_JOB_BEFORE_TRANSFER \(.*\) invoked|"
                   r"HookClient .*/prepare .* exited with status 0)", re.MULTILINE)  # fmt: skip


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="python -m bench.hooks", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--full", action="store_true", help="200 jobs with packages instead of 50")
    parser.add_argument("--suite", choices=condor_tree.SUITES, default="sid", help="which HTCondor")
    options = parser.parse_args()
    leave_nothing_when_terminated()
    with tempfile.TemporaryDirectory(prefix="ja-bench-", dir="/tmp") as name:
        directory = Path(name)
        directory.chmod(0o755)
        figures = measure(directory, ROUNDS["full" if options.full else "quick"], suite=options.suite)
    text = json.dumps(figures, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    return 0


def measure(directory: Path, rounds: Sequence[str], *, suite: str) -> dict[str, Any]:
    """Return all figures; each round is a batch on the machine `plain` or on the machine `agent`."""
    tree = condor_tree.install(directory / "condor", suite)
    python = interpreter.readable(directory / "python")
    world = World(directory / "world")
    base = world.publish("Base", {"share/x": "x"})
    tool = world.publish("Tool", {"bin/tool": "#!/bin/sh\n"}, "--depends", base)
    lines = {"plain": "", "agent": f'MY.Packages = {{ "{tool}" }}\n'}
    with world.serving(), Pool(tree, execution_points=0, central_config=equipped.CENTRAL_CONFIG) as pool:
        slots = f"NUM_CPUS = {SLOTS}\nMEMORY = {SLOTS * 128}\n"
        pool.add_execution_point("plain", config=slots)
        agent = equipped.add(pool, "agent", world, python, config=slots + LOGS + USUAL)
        pool.wait_until(lambda: any(ad.get("JobAgentReady") for ad in pool.machines("JobAgentReady")))
        run(pool, "agent", lines["agent"], 1)  # it downloads
        rates: dict[str, list[float]] = {"plain": [], "agent": []}
        for point in rounds:
            rates[point].append(run(pool, point, lines[point], BATCH))
        times = hook_times_ms(agent)
        service = service_times_ms(pool)
        alone = client_times_ms(agent, tool, 20)
    with_agent, without = statistics.mean(rates["agent"]), statistics.mean(rates["plain"])
    return {
        "condor": tree.version,
        "jobs": len(times),
        "payload_s": statistics.mean(PAYLOADS_S),
        **_quantiles("prepare_ms", times),
        **_quantiles("service_ms", service),
        "client_ms_p50": round(statistics.median(alone), 1),
        "jobs_per_minute": round(with_agent, 1),
        "jobs_per_minute_without": round(without, 1),
        "throughput_ratio": round(with_agent / without, 3),
    }


def _quantiles(name: str, values: Sequence[float]) -> dict[str, float]:
    return {
        f"{name}_p50": round(statistics.median(values), 1),
        f"{name}_p99": round(statistics.quantiles(values, n=100, method="inclusive")[98], 1),
    }


def run(pool: Pool, point: str, lines: str, jobs: int) -> float:
    """Run a batch of jobs on one machine; return jobs per minute."""
    start = time.monotonic()
    seconds = " ".join(str(PAYLOADS_S[number % len(PAYLOADS_S)]) for number in range(jobs))
    cluster = pool.submit(
        "executable = /bin/sleep\ntransfer_executable = false\narguments = $(seconds)\n"
        f'requirements = TARGET.EPName == "{point}"\n{lines}queue seconds in ({seconds})\n'
    )
    events = pool.jobs.wait(cluster, timeout_s=BATCH_LIMIT_S)
    taken_s = time.monotonic() - start
    if any(event.kind != joblog.TERMINATED for event in events):
        sys.exit(f"bench.hooks: jobs failed: {events[0].reason}")
    return 60 * jobs / taken_s


def hook_times_ms(point: EquippedPoint) -> list[float]:
    """Return how long each prepare hook but the first, which downloaded, ran, by the logs of the starters."""
    times: list[tuple[datetime, float]] = []
    for log in sorted((point.point.directory / "log").glob("StarterLog.slot1_*")):
        began: datetime | None = None
        for stamp, what in _LINE.findall(log.read_text(errors="replace")):
            moment = datetime.strptime(stamp, "%m/%d/%y %H:%M:%S.%f")
            if what.endswith("invoked"):
                began = moment
            elif began is not None:
                times.append((began, (moment - began).total_seconds() * 1000))
                began = None
    return [time_ms for _, time_ms in sorted(times)[1:]]


def service_times_ms(pool: Pool) -> list[float]:
    """Return how long the node service took for each job that found everything cached."""
    chosen = ["JobAgentPrepareSeconds > 0 && JobAgentCacheHits == 2", "-af", "JobAgentPrepareSeconds"]
    rows = pool.central.tool("condor_history", "-constraint", *chosen).split()
    return [float(seconds) * 1000 for seconds in rows]


def client_times_ms(point: EquippedPoint, package: str, repeats: int) -> list[float]:
    """Return how long the hook takes when it is run by hand, as the child of this process."""
    ad = f'ClusterId = 0\nProcId = 0\nPackages = {{ "{package}" }}\n'
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        done = subprocess.run(
            [point.point.directory / "libexec" / "prepare"],
            input=ad, capture_output=True, text=True, timeout=60, check=True, env={},
        )  # fmt: skip
        times.append((time.perf_counter() - start) * 1000)
        if "Environment" not in done.stdout:
            sys.exit(f"bench.hooks: the hook refused: {done.stdout}{done.stderr}")
    return times


if __name__ == "__main__":
    sys.exit(main())
