"""Glide-ins on bare worker nodes: many jobs, every way to end, nothing left.

All parts are real: minimal Debians with a network and processes of their own, an unprivileged user, the VO's pool,
catalogue, tracker and seeder.  The shortest of these tests are in `tests/test_pilots_landing.py`, which adds
a compute element in front.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from jobagent.testing import joblog
from jobagent.testing.barenode import BareNode, is_possible
from jobagent.testing.grid import Grid
from tests.glidein_field import LONG_JOB, cmdline, ended, put_script, shell_of, wait_for, written

pytestmark = [
    pytest.mark.condor,
    pytest.mark.netns,
    pytest.mark.slow,
    pytest.mark.timeout(420),  # with the making of the bundle, on a busy machine
    pytest.mark.soak,
    pytest.mark.skipif(bool(is_possible()) and not os.environ.get("CI"), reason=is_possible() or "possible"),
]
IDLE_S = 8
SHORT_JOB = (
    "executable = /bin/sh\narguments = \"-c 'tool && sleep 1'\"\ntransfer_executable = false\n"
    'MY.Packages = { "VO_ALICE@Tool::1" }\n'
)


@pytest.fixture(scope="module")
def grid() -> Iterator[Grid]:
    settings = {"glidein": {"idle_s": IDLE_S, "cpus": 2, "memory_mb": 1000}}
    with Grid(settings=settings) as made:
        made.world.publish("Tool", {"bin/tool": "#!/bin/sh\necho tool on $(cat /etc/debian_version)\n"})
        yield made


@pytest.fixture
def node(grid: Grid) -> Iterator[BareNode]:
    with BareNode(grid.lan) as made:
        yield made


@pytest.fixture
def queue(grid: Grid) -> Iterator[Callable[[str], int]]:
    """Submits jobs that are gone when the test is over."""
    clusters: list[int] = []

    def submit(text: str) -> int:
        clusters.append(grid.pool.submit(text))
        return clusters[-1]

    yield submit
    for cluster in clusters:
        grid.pool.central.try_tool("condor_rm", str(cluster))


def machine_of(grid: Grid, site: str) -> dict[str, object]:
    """Return the ad of the one glide-in of that site, once it is there."""
    found: list[dict[str, object]] = []

    def is_there() -> bool:
        ads = grid.pool.machines("GlideinReason", "GlideinSite", "GlideinEnds")
        found[:] = [ad for ad in ads if ad.get("GlideinSite") == site]
        return bool(found)

    grid.pool.wait_until(is_there)
    return found[0]


def test_jobs_run_side_by_side_and_the_node_is_left_clean(grid: Grid, queue: Callable[[str], int]) -> None:
    cluster = queue(f"{SHORT_JOB}queue 4\n")
    with BareNode(grid.lan, "bullseye") as node:  # glibc 2.31, older than the one of the build
        done = node.run(*grid.land(), environment=grid.equip(node))
        assert done.returncode == 0, done.stderr
        assert written(node) == []
    ads = grid.pool.history(cluster, "ExitCode", "JobAgentPackages", "LastRemoteHost")
    assert [ad["ExitCode"] for ad in ads] == [0, 0, 0, 0]
    assert {str(ad["LastRemoteHost"]).partition("@")[0] for ad in ads} == {"slot1_1", "slot1_2"}
    assert (grid.pool.sandbox(cluster) / "out.0").read_text() == "tool on 11.11\n"
    assert "condor_master has ended" in done.stderr  # because it was idle


def test_the_next_pilot_finds_everything_in_place(grid: Grid, node: BareNode, queue: Callable[[str], int]) -> None:
    node.directory("/var/lib/site-cache")
    environment = grid.equip(node) | {"JOBAGENT_CACHE": "/var/lib/site-cache"}
    seconds, sent_bytes = [], []
    for _ in range(2):
        cluster = queue(f"{SHORT_JOB}queue\n")
        before = grid.lan.sent_bytes()
        done = node.run(*grid.land(), environment=environment)
        assert done.returncode == 0, done.stderr
        assert grid.pool.history(cluster, "ExitCode")[0]["ExitCode"] == 0
        sent_bytes.append(grid.lan.sent_bytes() - before)
        found = re.search(r"\+([0-9.]+) INFO condor_master started", done.stderr)
        assert found is not None
        seconds.append(float(found[1]))
    assert "runtime found in" in done.stderr and done.stderr.count("cache_hit=True") == 2
    assert "seeder_bytes=0 neighbour_bytes=0 web_bytes=0" in done.stderr
    assert sent_bytes[0] > grid.bundle_bytes
    assert sent_bytes[1] < 400_000  # script, metadata, HTCondor's own words; no file of any size
    assert seconds[1] < seconds[0]
    left = {path.split("/")[4] for path in written(node)}
    assert left == {"pilot", "packages"}


def test_token_of_another_pool_is_refused_with_its_reason(grid: Grid, node: BareNode) -> None:
    header, claims, signature = grid.token().split(".")
    forged = ".".join((header, claims, signature[:-4] + "AAAA"))
    done = node.run(*grid.land(), environment=grid.equip(node, forged))
    assert done.returncode == 245, done.stderr
    assert "refuses the pilot's token" in done.stderr
    assert written(node) == []


def test_kill_9_of_the_pilot_takes_everything_and_the_next_one_sweeps(grid: Grid, node: BareNode) -> None:
    environment = grid.equip(node)
    command = put_script(grid, node)
    keeper = node.start("sh", "-c", f"{' '.join(command)}; exec sleep 100", environment=environment)
    wait_for("condor_master started", keeper)
    os.kill(shell_of(node), signal.SIGKILL)
    deadline = time.monotonic() + 20
    while any(b"/jobagent-pilot." in cmdline(pid) for pid in node.pids()):
        assert time.monotonic() < deadline, [cmdline(pid) for pid in node.pids()]
        time.sleep(0.1)
    keeper.kill()
    keeper.communicate(timeout=20)
    assert any("jobagent-pilot." in path for path in written(node))  # it could not clean up any more
    done = node.run(*command, environment=environment)
    assert done.returncode == 0 and "which is gone" in done.stderr
    assert written(node) == []


def test_node_service_that_dies_is_started_again(grid: Grid, node: BareNode, queue: Callable[[str], int]) -> None:
    pilot = node.start(*grid.land(), environment=grid.equip(node))
    wait_for("condor_master started", pilot)
    (service,) = [pid for pid in node.pids() if b"\0node\0" in cmdline(pid)]
    os.kill(service, signal.SIGKILL)
    wait_for("restart 1", pilot)
    cluster = queue(f"{SHORT_JOB}queue\n")
    grid.pool.jobs.wait(cluster, timeout_s=40)
    ended(pilot)
    assert pilot.returncode == 0
    assert grid.pool.history(cluster, "ExitCode")[0]["ExitCode"] == 0
    assert written(node) == []


def test_a_job_longer_than_the_slot_is_not_started_there(
    grid: Grid, node: BareNode, queue: Callable[[str], int]
) -> None:
    cluster = queue(f"{LONG_JOB}allowed_execute_duration = 3600\nqueue\n")
    environment = grid.equip(node) | {"JOBAGENT_WALL_S": "3000", "JOBAGENT_SITE": "short"}
    pilot = node.start(*grid.land(), environment=environment)
    wait_for("condor_master started", pilot)
    ad = machine_of(grid, "short")
    assert abs(float(str(ad["GlideinEnds"])) - time.time() - 3000) < 60
    ended(pilot)
    assert pilot.returncode == 0
    assert not [e for e in grid.pool.jobs.events(cluster) if e.kind == joblog.EXECUTING]


def test_a_node_that_fails_its_check_says_why_and_takes_no_jobs(
    grid: Grid, node: BareNode, queue: Callable[[str], int]
) -> None:
    cluster = queue(f"{SHORT_JOB}queue\n")
    # jobs are taken up to 600 s before the end
    environment = grid.equip(node) | {"JOBAGENT_WALL_S": "300", "JOBAGENT_SITE": "unfit"}
    pilot = node.start(*grid.land(), environment=environment)
    wait_for("condor_master started", pilot)
    ad = machine_of(grid, "unfit")
    assert "no job is taken in its last 600 s" in str(ad["GlideinReason"])
    ended(pilot)
    assert pilot.returncode == 0
    assert not [e for e in grid.pool.jobs.events(cluster) if e.kind == joblog.EXECUTING]


def test_pool_that_is_down_is_a_supply_error(grid: Grid, node: BareNode) -> None:
    def change(pool: str) -> str:
        return f"wget -qO- {grid.script_url} | sed 's/{re.escape(grid.pool.address)}/{pool}/' | sh"

    done = node.run("sh", "-c", change(f"{grid.lan.address}:9"), environment=grid.equip(node))
    assert done.returncode == 230, done.stderr
    assert f"the pool {grid.lan.address}:9 cannot be reached" in done.stderr
    assert written(node) == []
