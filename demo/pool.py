"""`make pool-demo`: the main job under a real HTCondor pool with two execution points.

Sixteen jobs are submitted as AliEn JDL; each machine downloads the packages once and lends them to all its jobs.
Three more jobs are wrong on purpose: HTCondor holds them, each with its reason.  Nothing is installed on the host.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from demo.main_job import JOB, ROOT, Services, command, publish
from jobagent.testing import condor_tree, equipped, interpreter, joblog
from jobagent.testing.pool import Pool

POINTS = ("worker1", "worker2")
SLOTS = 4
JOB_LIMIT_S = 900.0
SUBMITTERS = 2  # at a time: each starts an interpreter
BAD_PACKAGES = {
    "a version that does not exist": '{ "VO_ALICE@ROOT::v5-34" }',
    "a name with a shell command in it": '{ "VO_ALICE@ROOT; rm -rf $HOME" }',
    "a package of a VO that nobody knows": '{ "VO_ATLANTIS@ROOT::0.1a12" }',
}
ORIGINS = ("JobAgentSeederBytes", "JobAgentNeighbourBytes", "JobAgentWebBytes")


@dataclass(frozen=True, slots=True)
class Centre:
    """The central services, as worker nodes know them."""

    url: str
    root: Path


def main() -> int:
    """Run the demo and return 0 where every good job ended well and every bad one was held."""
    parser = argparse.ArgumentParser(prog="make pool-demo", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--jobs", type=int, default=16, help="jobs (default 16)")
    parser.add_argument("--events", type=int, default=50, help="pp events per job (default 50)")
    parser.add_argument("--suite", choices=condor_tree.SUITES, default="sid", help="which HTCondor (default sid: 25)")
    parser.add_argument("--directory", type=Path, default=ROOT / "build" / "demo", help="where the catalogue is")
    options = parser.parse_args()
    console = Console()
    directory = options.directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    publish(directory, console)
    with tempfile.TemporaryDirectory(prefix="ja-demo-", dir="/tmp") as name:
        work = Path(name)
        work.chmod(0o755)
        root = Path(shutil.copy(directory / "catalogue" / "metadata" / "1.root.json", work / "root.json"))
        root.chmod(0o644)
        tree = condor_tree.install(work / "condor", options.suite)
        python = interpreter.readable(work / "python")
        with (
            Services(directory, console) as services,
            Pool(tree, execution_points=0, central_config=equipped.CENTRAL_CONFIG) as pool,
        ):
            machine = f"NUM_CPUS = {SLOTS}\nMEMORY = {SLOTS * 2048}\n"
            for point in POINTS:
                equipped.add(pool, point, Centre(services.url, root), python, config=machine, wait=False)
            pool.wait_for_machines()
            pool.wait_until(lambda: all(ad.get("JobAgentReady") for ad in pool.machines("JobAgentReady")))
            console.rule(f"HTCondor {tree.version}: a pool with {len(POINTS)} machines of {SLOTS} cores")
            return show(pool, work, services.url, root, options, console)


def show(pool: Pool, work: Path, url: str, root: Path, options: argparse.Namespace, console: Console) -> int:
    """Submit everything, wait, and print what came of it."""
    config = pool.client_config(work / "client")
    environment = os.environ | {"CONDOR_CONFIG": str(config)}
    settings = work / "user.toml"
    settings.write_text(f'[catalogue]\nurls = ["{url}"]\nroot = "{root}"\n[job]\nvo = "alice"\n')

    def submit(seed: int) -> int:
        words = command("--config", settings, "submit", JOB, str(options.events), str(seed), "--json")
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode:
            sys.exit(f"make pool-demo: {done.stderr}")
        return int(json.loads(done.stdout)["cluster"])

    bad = {
        title: pool.submit(f"executable = /bin/true\ntransfer_executable = false\nMY.Packages = {packages}\nqueue\n")
        for title, packages in BAD_PACKAGES.items()
    }
    with console.status(f"jobagent submit {JOB.name} × {options.jobs}"), ThreadPoolExecutor(SUBMITTERS) as threads:
        clusters = sorted(threads.map(submit, range(1, options.jobs + 1)))
    console.print(f"jobagent submit {JOB.name}: clusters {clusters[0]} to {clusters[-1]}")
    with console.status("jobs run") as status:
        ads = []
        for done, cluster in enumerate(clusters):
            status.update(f"{done} of {len(clusters)} jobs have ended")
            pool.jobs.wait(cluster, timeout_s=JOB_LIMIT_S)
            ads += pool.queue(cluster) or pool.history(cluster)
    console.print(table_of(ads))
    for line in summary(ads):
        console.print(line, soft_wrap=True)
    console.rule("three bad jobs")
    for cluster in bad.values():
        pool.jobs.wait(cluster, {joblog.HELD}, timeout_s=60)
    print(pool.central.tool("condor_q", "-allusers", "-hold", "-wide:200", *map(str, bad.values())).strip())
    is_good = all(ad.get("ExitCode") == 0 for ad in ads)
    return 0 if is_good else 1


def table_of(ads: Sequence[dict[str, Any]]) -> Table:
    """Return the table of bytes, a line per job."""
    title = "What each job made its machine download (MB); cached: there already, or brought by another job meanwhile"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in ("job", "machine", "exit", "seeder", "neighbours", "web", "cached", "prepare s", "in all s"):
        table.add_column(column, justify="right", no_wrap=True)
    for ad in ads:
        sizes = [f"{ad.get(name, 0) / 1e6:.1f}" for name in ORIGINS]
        packages = len(ad.get("JobAgentPackages", ()))
        table.add_row(
            f"{ad['ClusterId']}.{ad['ProcId']}",
            machine_of(ad),
            str(ad.get("ExitCode", "-")),
            *sizes,
            f"{ad.get('JobAgentCacheHits', 0)} of {packages}",
            f"{ad.get('JobAgentPrepareSeconds', 0):.2f}",
            f"{ad.get('RemoteWallClockTime', 0):.0f}",
        )
    return table


def summary(ads: Sequence[dict[str, Any]]) -> list[str]:
    """Return what it comes to, a line per machine."""
    by_machine: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for ad in ads:
        by_machine[machine_of(ad)].append(ad)
    lines = []
    for machine, jobs in sorted(by_machine.items()):
        seeder, neighbours, web = (sum(ad.get(name, 0) for ad in jobs) / 1e6 for name in ORIGINS)
        lines.append(
            f"{machine}: {len(jobs)} jobs, one download of {seeder + neighbours + web:.0f} MB "
            f"({seeder:.0f} from the seeder, {neighbours:.0f} from its neighbour)"
        )
    return lines


def machine_of(ad: dict[str, Any]) -> str:
    """Return the execution point where a job ran."""
    return str(ad.get("LastRemoteHost") or ad.get("RemoteHost") or "-@-").split("@")[1]


if __name__ == "__main__":
    sys.exit(main())
