"""`make pilot-demo`: from jobs in the VO's queue, through a compute element, to bare worker nodes and back.

Real parts: the VO's pool and catalogue; a site with collector, schedd and job router in front of its batch system;
worker nodes that are minimal Debians with wget, one with an older and one with a newer C library than this machine,
each in a network of its own.  Pilots land there as an unprivileged user, bring everything by swarm, run the main job
and leave the nodes as they were.  Needs root, for the nodes' namespaces only.
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from demo.main_job import JOB, PACKAGES, PASSPHRASE, ROOT, publish
from jobagent.central.landing import bundletree
from jobagent.errors import SiteError
from jobagent.testing import joblog
from jobagent.testing.barenode import SUITES, is_possible
from jobagent.testing.element import Site
from jobagent.testing.grid import Grid, Sent, User

SELF_CONTAINED = (["--interpreter", "--with-libc"], *PACKAGES[1:])
OUTPUTS = ("histograms.root", "multiplicity.png")
JOB_LIMIT_S = 400.0
LEAVE_LIMIT_S = 120.0
_X11 = ("libSM.so.6", "libXext.so.6", "libXrender.so.1", "libexpat.so.1", "libz.so.1")
_LIBRARY_DIRECTORIES = [Path(d) / f"{platform.machine()}-linux-gnu" for d in ("/lib", "/usr/lib")] + [
    Path("/usr/lib64")
]
_OF_EVERY_LINUX = ("ld-linux", "libc.so", "libm.so", "libdl.so", "libpthread.so", "librt.so", "linux-vdso")
_ONE_PILOT_A_NODE = "NUM_CPUS = 1\nMEMORY = 8000\n"
_LINE = re.compile(r"\S+ (?:pilot|glidein) \S+ \+(?P<at>[0-9.]+) \S+ (?P<what>.*)")
_PILOT = re.compile(r" pilot ((?P<started_s>\d+)-\d+-\w+) ")
_LIBC = re.compile(r"libc='([^']*)'")
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
class Landing:
    """What one pilot's log tells: who it was, where, and how many seconds after the script's start each step came."""

    pilot: str
    started_s: float
    libc: str
    steps: Mapping[str, float]


def main() -> int:
    """Run the demo and return 0 where all jobs were valid and the nodes are clean."""
    parser = argparse.ArgumentParser(prog="make pilot-demo", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument(
        "--suite", action="append", choices=SUITES, help="Debian of a worker node; default: bullseye and trixie"
    )
    parser.add_argument("--events", type=int, default=200, help="pp events (default 200)")
    parser.add_argument(
        "--directory", type=Path, default=ROOT / "build" / "pilot-demo", help="where the catalogue is"
    )
    options = parser.parse_args()
    suites = options.suite or ["bullseye", "trixie"]
    if why := is_possible():
        sys.exit(f"make pilot-demo: {why}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console = Console()
    directory = options.directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    publish(directory, console, SELF_CONTAINED)
    settings = {"glidein": {"idle_s": 10}}
    with console.status("bundle, pool and services"):
        grid = Grid(store=directory, passphrase=PASSPHRASE, effort=4, settings=settings)
        grid.__enter__()
    try:
        console.print(
            f"bundle: {grid.bundle_bytes / 1e6:.1f} MB; pool at {grid.pool.address}, catalogue {grid.world.url}"
        )
        publish_libraries(grid)
        with Site(grid, suites=suites, node_config=_ONE_PILOT_A_NODE) as site:
            return run(grid, site, options.events, console)
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


def run(grid: Grid, site: Site, events: int, console: Console) -> int:
    """Submit a job for each node, let the factory send pilots, wait, and tell."""
    user = grid.user()
    console.rule(f"a compute element with {len(site.nodes)} bare nodes behind it")
    console.print(f"resource: {site.element.resource}")
    jobs = {submit(grid, user, number, events): number for number in range(1, len(site.nodes) + 1)}
    console.print(f"jobagent submit {JOB.name}: clusters {', '.join(map(str, jobs))}")
    before = grid.sent()
    console.print("jobagent pilots factory: pilots for what waits")
    factory = user.start("pilots", "factory", "--interval", "3", *pilot_words(grid, site, user))
    try:
        with console.status("pilots land, jobs run"):
            for cluster in jobs:
                grid.pool.jobs.wait(cluster, timeout_s=JOB_LIMIT_S)
    except SiteError as error:
        console.print(f"{error}\n{''.join(pilot_logs(site, user))[-6000:]}", soft_wrap=True)
        return 1
    finally:
        factory.terminate()
        console.print(told(factory.communicate(timeout=30)[1]), soft_wrap=True)
    for cluster in jobs:
        user.call("jobs", str(cluster), "--fetch")  # as its user does
    with console.status("the pilots leave"):
        left = leftovers(site, user)
    landings = [landing_of(text) for text in pilot_logs(site, user)]
    show_timeline(grid, list(jobs), landings, console)
    show_traffic(grid.sent().since(before), "".join(pilot_logs(site, user)), len(landings), console)
    console.print(f"left on the nodes: {left or 'nothing'}")
    is_valid = [judge(grid, cluster, user.home / f"job{number}", console) for cluster, number in jobs.items()]
    return 0 if all(is_valid) and not left else 1


def submit(grid: Grid, user: User, number: int, events: int) -> int:
    """Submit the main job from a directory of its own; return its cluster."""
    job = user.home / f"job{number}"
    shutil.copytree(JOB.parent, job)
    description = job / JOB.name
    description.write_text(
        description.read_text().replace("Packages = {", 'Packages = { "VO_ALICE@X11-libraries",', 1)
    )
    for path in (job, *job.iterdir()):
        shutil.chown(path, grid.pool.user.uid, grid.pool.user.gid)
    return int(json.loads(user.call("submit", description, str(events), str(number), "--json"))["cluster"])


def judge(grid: Grid, cluster: int, job: Path, console: Console) -> bool:
    """Tell what came back of a job; return whether it is all."""
    ad = (grid.pool.queue(cluster) or grid.pool.history(cluster))[0]
    outputs = [name for name in OUTPUTS if (job / name).is_file()]
    console.print(f"job {cluster}: exit code {ad.get('ExitCode')}, brought back: {', '.join(outputs) or 'nothing'}")
    for path in sorted(job.glob("*out*")):
        console.print(path.read_text(errors="replace")[-300:].rstrip())
    if ad.get("ExitCode") != 0:
        for path in sorted(job.glob("*err*")):
            console.print(path.read_text(errors="replace")[-3000:])
    return ad.get("ExitCode") == 0 and len(outputs) == len(OUTPUTS)


def told(log: str) -> str:
    """Return the decisions in the factory's log, each once."""
    lines = [line.partition("jobagent.factory: ")[2] for line in log.splitlines()]
    return "\n".join(dict.fromkeys(line for line in lines if line))


def pilot_words(grid: Grid, site: Site, user: User) -> Sequence[str | Path]:
    """Return the factory's files: compute elements, script, token."""
    element = replace(site.element, cpus=1)
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


def show_timeline(grid: Grid, clusters: Sequence[int], landings: Sequence[Landing], console: Console) -> None:
    """Print what happened when on each node, from the pilots' own logs and the jobs' events."""
    table = Table(title="The landing, seconds from the script's start", title_justify="left", box=None)
    table.add_column("step")
    for landing in landings:
        table.add_column(landing.libc, justify="right")
    rows = [[landing.steps.get(name) for landing in landings] for _, name in _STEPS]
    names = [name for _, name in _STEPS]
    when = {pilot: kinds for cluster in clusters for pilot, kinds in pilot_of(grid, cluster).items()}
    for kind, name in ((joblog.EXECUTING, "payload runs, with its packages"), (joblog.TERMINATED, "output is back")):
        names.append(name)
        times = [when.get(landing.pilot, {}).get(kind) for landing in landings]
        rows.append([at and at - landing.started_s for at, landing in zip(times, landings, strict=True)])
    for name, row in zip(names, rows, strict=True):
        table.add_row(name, *("" if at is None else f"{at:.1f}" for at in row))
    console.print(table)


def pilot_of(grid: Grid, cluster: int) -> dict[str, dict[str, float]]:
    """Return the pilot that ran a job, and when each of the job's events was."""
    ad = (grid.pool.history(cluster) or grid.pool.queue(cluster))[0]
    pilot = str(ad.get("LastRemoteHost", "")).partition("@glidein-")[2].partition(".")[0]
    events = grid.pool.jobs.events(cluster)
    return {pilot: {e.kind: datetime.fromisoformat(e.fields["EventTime"]).timestamp() for e in events}}


def show_traffic(sent: Sent, logs: str, landings: int, console: Console) -> None:
    """Print what the central host sent: to land, and for the jobs' packages."""
    landing = sum(map(int, re.findall(r" seeder_bytes=(\d+)", logs)))
    near = sum(map(int, re.findall(r" neighbour_bytes=(\d+)", logs)))
    console.print(
        f"web server: {sent.web / 1e6:.1f} MB, {sent.web / landings / 1e6:.1f} MB a landing (first stage, signed"
        f" lists, tracker); the script came through the compute element"
    )
    console.print(
        f"seeder: {sent.seeder / 1e6:.1f} MB, of it {landing / 1e6:.1f} MB HTCondor and agent;"
        f" {near / 1e6:.1f} MB of these came from neighbours"
    )
    console.print(f"over the central host's wire: {sent.wire / 1e6:.1f} MB, the pool's and headers included")


def pilot_logs(site: Site, user: User) -> list[str]:
    """Return the pilots' logs: already with their owner, or still on the node."""
    logs = [path.read_text(errors="replace") for path in sorted((user.home / "pilots").glob("*.err"))]
    logs = [text for text in logs if _PILOT.search(text)]
    return logs or [path.read_text(errors="replace") for path in site.pilot_logs()]


def landing_of(log: str) -> Landing:
    """Return what a pilot's log tells, each step once."""
    steps: dict[str, float] = {}
    pending = list(_STEPS)
    for line in log.splitlines():
        match = _LINE.match(line)
        if match and pending and match["what"].startswith(pending[0][0]):
            steps[pending.pop(0)[1]] = float(match["at"])
    pilot, libc = _PILOT.search(log), _LIBC.search(log)
    assert pilot is not None, log
    return Landing(pilot[1], float(pilot["started_s"]), libc[1] if libc else "", steps)


def leftovers(site: Site, user: User) -> list[str]:
    """Return what is left on the nodes once the pilots have gone, and their logs are back."""
    deadline = time.monotonic() + LEAVE_LIMIT_S
    while json.loads(user.call("pilots", "status", "--json")) and time.monotonic() < deadline:
        time.sleep(1)
    while (left := site.leftovers()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return left


if __name__ == "__main__":
    sys.exit(main())
