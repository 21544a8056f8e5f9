"""`make pilot-demo`: from a job in the VO's queue, through a compute element, to a bare worker node and back.

Real parts: the VO's pool and catalogue; a site with collector, schedd and job router in front of its batch system; a
worker node that is a minimal Debian with wget, in a network of its own.  The pilot lands there as an unprivileged
user, brings everything by swarm, runs the main job and leaves the node as it was.  Needs root, for the node's
namespaces only.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from demo.main_job import JOB, PASSPHRASE, ROOT, publish
from jobagent.central.landing import bundletree
from jobagent.testing import joblog
from jobagent.testing.barenode import SUITES, is_possible
from jobagent.testing.element import Site
from jobagent.testing.grid import Grid, User

JOB_LIMIT_S = 400.0
LEAVE_LIMIT_S = 120.0
_X11 = ("libSM.so.6", "libXext.so.6", "libXrender.so.1", "libexpat.so.1", "libz.so.1")
_LIBRARY_DIRECTORIES = [Path(d) / f"{platform.machine()}-linux-gnu" for d in ("/lib", "/usr/lib")] + [
    Path("/usr/lib64")
]
_OF_EVERY_LINUX = ("ld-linux", "libc.so", "libm.so", "libdl.so", "libpthread.so", "librt.so", "linux-vdso")
_LINE = re.compile(r"\S+ (?:pilot|glidein) \S+ \+(?P<at>[0-9.]+) \S+ (?P<what>.*)")
_STEPS = (  # what the pilot's log says, and what it means
    ("begin ", "script starts"),
    ("scratch ", "scratch on a local disk chosen, node checked"),
    ("fetched ", "runtime fetched and its digest checked"),
    ("runtime ready", "runtime unpacked and checked file by file"),
    ("packages ", "node service up, asking the swarm"),
    ("ready ", "HTCondor and agent installed"),
    ("condor_master started", "joining the pool"),
)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the landing, so many seconds after the script's start."""

    at_s: float
    name: str


def main() -> int:
    """Run the demo and return 0 where the job was valid and the node is clean."""
    parser = argparse.ArgumentParser(prog="make pilot-demo", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--suite", choices=SUITES, default="bookworm", help="Debian of the worker node")
    parser.add_argument("--events", type=int, default=200, help="pp events (default 200)")
    parser.add_argument("--directory", type=Path, default=ROOT / "build" / "demo", help="where the catalogue is")
    options = parser.parse_args()
    if why := is_possible():
        sys.exit(f"make pilot-demo: {why}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console = Console()
    directory = options.directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    publish(directory, console)
    settings = {"glidein": {"idle_s": 10}}
    with console.status("bundle, pool and services"):
        grid = Grid(store=directory, passphrase=PASSPHRASE, effort=4, settings=settings)
        grid.__enter__()
    try:
        console.print(
            f"bundle: {grid.bundle_bytes / 1e6:.1f} MB; pool at {grid.pool.address}, catalogue {grid.world.url}"
        )
        publish_libraries(grid)
        with Site(grid, nodes=1, suite=options.suite) as site:
            return run(grid, site, options, console)
    finally:
        grid.__exit__(None, None, None)


def publish_libraries(grid: Grid) -> None:
    """Publish the X11 libraries that ROOT's wheel takes for granted, and that a bare node does not have."""
    found: dict[str, Path] = {}
    for name in _X11:
        directory = next((d for d in _LIBRARY_DIRECTORIES if (d / name).exists()), None)
        if directory is None:
            sys.exit(f"make pilot-demo: {name} is not on this machine; on Debian: apt-get install libsm6 libxrender1")
        found |= {name: directory / name} | bundletree.libraries_of(directory / name)
    tree = grid.directory / "x11"
    (tree / "lib").mkdir(parents=True)
    for name, path in sorted(found.items()):
        if not name.startswith(_OF_EVERY_LINUX):
            shutil.copy(path.resolve(), tree / "lib" / name)
    grid.publish("X11-libraries", "1", tree)


def run(grid: Grid, site: Site, options: argparse.Namespace, console: Console) -> int:
    """Submit the job, let the factory send a pilot, wait, and tell."""
    user = grid.user()
    job = user.home / "job"
    shutil.copytree(JOB.parent, job)
    description = job / JOB.name
    description.write_text(
        description.read_text().replace("Packages = {", 'Packages = { "VO_ALICE@X11-libraries",', 1)
    )
    for path in (job, *job.iterdir()):
        shutil.chown(path, grid.pool.user.uid, grid.pool.user.gid)
    console.rule(f"a job in the VO's queue, {site.element.resource}, one bare {options.suite} behind it")
    cluster = int(json.loads(user.call("submit", job / JOB.name, str(options.events), "1", "--json"))["cluster"])
    console.print(f"jobagent submit {JOB.name}: cluster {cluster}")
    sent_before = grid.lan.sent_bytes()
    console.print("jobagent pilots factory: a pilot for what waits")
    factory = user.start("pilots", "factory", "--interval", "3", *pilot_words(grid, site, user))
    try:
        with console.status("the pilot lands, the job runs"):
            grid.pool.jobs.wait(cluster, timeout_s=JOB_LIMIT_S)
    finally:
        factory.terminate()
        console.print(told(factory.communicate(timeout=30)[1]), soft_wrap=True)
    user.call("jobs", str(cluster), "--fetch")
    show_timeline(grid, cluster, site, user, console)
    console.print(
        f"the central host sent {(grid.lan.sent_bytes() - sent_before) / 1e6:.1f} MB, packages of the job included"
    )
    with console.status("the pilot leaves"):
        left = leftovers(site)
    console.print(f"left on the node: {left or 'nothing'}")
    outputs = [name for name in ("histograms.root", "multiplicity.png") if (job / name).is_file()]
    console.print(f"outputs brought back: {', '.join(outputs) or 'none'}")
    ad = (grid.pool.queue(cluster) or grid.pool.history(cluster))[0]
    console.print(f"the job's exit code: {ad.get('ExitCode')}")
    if ad.get("ExitCode") != 0:
        for path in sorted(job.glob("*err*")):
            console.print(path.read_text(errors="replace")[-3000:])
    return 0 if ad.get("ExitCode") == 0 and len(outputs) == 2 and not left else 1


def told(log: str) -> str:
    """Return the decisions in the factory's log, each once."""
    lines = [line.partition("jobagent.factory: ")[2] for line in log.splitlines()]
    return "\n".join(dict.fromkeys(line for line in lines if line))


def pilot_words(grid: Grid, site: Site, user: User) -> Sequence[str | Path]:
    """Return the factory's files: compute elements, script, token."""
    element = site.element
    entry = "".join(
        f"{name} = {json.dumps(getattr(element, name))}\n"
        for name in ("name", "resource", "site", "cpus", "memory_mb", "wall_s", "max_pilots")
    )
    elements = user.write("elements.toml", f"[[element]]\n{entry}")
    token = user.write("pool.token", grid.token())
    logs = user.home / "pilots"
    return [
        "--elements",
        elements,
        "--script",
        grid.directory / "bundle" / "pilot.sh",
        "--token",
        token,
        "--logs",
        logs,
    ]


def show_timeline(grid: Grid, cluster: int, site: Site, user: User, console: Console) -> None:
    """Print what happened when, from the pilot's own log and the job's events."""
    text = pilot_log(site, user)
    steps = timeline(text)
    started = begin_s(text)
    events = {
        event.kind: datetime.fromisoformat(event.fields["EventTime"]).timestamp()
        for event in grid.pool.jobs.events(cluster)
    }
    for kind, name in ((joblog.EXECUTING, "payload runs, with its packages"), (joblog.TERMINATED, "output is back")):
        if started and kind in events:
            steps.append(Step(events[kind] - started, name))
    table = Table(title="The landing", title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column("s", justify="right")
    table.add_column("step")
    for step in steps:
        table.add_row(f"{step.at_s:.1f}", step.name)
    console.print(table)


def pilot_log(site: Site, user: User) -> str:
    """Return the pilot's log: still on the node, or already with its owner."""
    for path in [*(user.home / "pilots").glob("*.err"), *site.pilot_logs()]:
        if text := path.read_text(errors="replace"):
            return text
    return ""


def timeline(text: str) -> list[Step]:
    """Return the steps that a pilot's log tells, each once."""
    steps: list[Step] = []
    pending = list(_STEPS)
    for line in text.splitlines():
        match = _LINE.match(line)
        if match and pending and match["what"].startswith(pending[0][0]):
            steps.append(Step(float(match["at"]), pending.pop(0)[1]))
    return steps


def begin_s(text: str) -> float:
    """Return when the script started, seconds since the epoch, from the name that it gave itself."""
    match = re.search(r" pilot (\d+)-\d+ ", text)
    return float(match[1]) if match else 0.0


def leftovers(site: Site) -> list[str]:
    """Return what is left on the node once the pilot has gone."""
    deadline = time.monotonic() + LEAVE_LIMIT_S
    while (left := site.leftovers()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return left


if __name__ == "__main__":
    sys.exit(main())
