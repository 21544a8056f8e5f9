"""Whatever dies, no lease outlives its job, no node becomes a black hole, and jobs that can go on do."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from condor_site import Site, wanting

from jobagent import processes
from jobagent.testing import equipped, joblog
from jobagent.testing.equipped import EquippedPoint
from jobagent.testing.instance import Instance
from jobagent.testing.interpreter import Interpreter

pytestmark = pytest.mark.condor


@pytest.fixture(scope="module")
def machine(site: Site, python: Interpreter) -> Callable[..., EquippedPoint]:
    """Make further machines in the shared pool, each only for jobs that ask for it with `MY.WantPoint`."""

    def make(name: str, *, config: str = "", catalogue: str = "", **sections: str) -> EquippedPoint:
        gate = f'START = TARGET.WantPoint =?= "{name}"\n{config}'
        point = equipped.add(site.pool, name, site.world, python, config=gate, sections=sections, catalogue=catalogue)
        point.ask("hello")
        return point

    return make


NARROW = "download_rate_bytes = 400000\n"


def for_point(name: str, *, only_once: bool = False) -> str:
    """Lines of a job for that machine; one that runs only once does not hide what was left of its first start."""
    limit = " && (MY.NumShadowStarts ?: 0) < 1" if only_once else ""
    return f'MY.WantPoint = "{name}"\nrequirements = TARGET.EPName == "{name}"{limit}'


def daemon(instance: Instance, name: str) -> int:
    """Return the process of an instance that runs the program `name`, when there is just one."""
    deadline = time.monotonic() + 10
    while len(found := [pid for pid in processes.descendants(instance.pid) if command_of(pid) == name]) != 1:
        assert time.monotonic() < deadline, f"{name}: {found}"
        time.sleep(0.05)
    return found[0]


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def leases(point: EquippedPoint) -> int:
    return int(point.ask("status")["leases"])


def downloaded_bytes(point: EquippedPoint) -> float:
    return float(point.ask("status")["swarm"]["download_bytes"])


@pytest.fixture(scope="module")
def fragile(machine: Callable[..., EquippedPoint]) -> EquippedPoint:
    """A machine whose processes are killed."""
    return machine("fragile")


@pytest.mark.parametrize("end", ["condor_rm", "condor_vacate_job -fast", "kill starter", "kill startd"])
def test_a_lease_ends_with_its_starter_however_that_ends(site: Site, fragile: EquippedPoint, end: str) -> None:
    cluster = site.submit(
        for_point("fragile", only_once=True), packages=wanting(site.packages.tool), shell="sleep 600"
    )
    site.pool.jobs.wait(cluster, {joblog.EXECUTING})
    assert leases(fragile) == 2
    if end.startswith("condor_"):
        site.pool.central.tool(*end.split(), str(cluster))
    else:
        kill(daemon(fragile.point, f"condor_{end.split()[1]}"))
    site.pool.wait_until(lambda: leases(fragile) == 0)
    site.pool.central.try_tool("condor_rm", str(cluster))


@pytest.mark.parametrize("how", ["node --stop", "condor_reconfig"])
def test_an_admin_may_end_the_service_and_running_jobs_keep_their_packages(
    site: Site, fragile: EquippedPoint, how: str
) -> None:
    """An upgrade, or other settings: the master starts the next service, which takes over the leases."""
    cluster = site.submit(for_point("fragile"), packages=wanting(site.packages.tool), shell="sleep 600")
    site.pool.jobs.wait(cluster, {joblog.EXECUTING})
    first = fragile.service_pid
    before = leases(fragile)
    if how == "condor_reconfig":
        fragile.point.tool("condor_reconfig")
    else:
        fragile.ask("shutdown")
    site.pool.wait_until(lambda: not Path(f"/proc/{first}").exists())
    assert leases(fragile) == before == 2
    assert fragile.service_pid != first
    site.pool.central.tool("condor_rm", str(cluster))


@pytest.fixture(scope="module")
def slow(machine: Callable[..., EquippedPoint]) -> EquippedPoint:
    """A machine with so little bandwidth that downloads can be interrupted."""
    return machine("slow", swarm=NARROW)


def test_a_download_survives_its_job_and_its_service(site: Site, slow: EquippedPoint) -> None:
    """condor_rm and kill -9 of the starter in prepare hold nothing; kill -9 of the service only delays the job."""
    big = site.publish("Big", {"noise": os.urandom(12_000_000)})
    job = for_point("slow", only_once=True)
    removed = site.submit(job, packages=wanting(big), shell="true")
    begun = 200_000
    site.pool.wait_until(lambda: downloaded_bytes(slow) > begun)
    site.pool.central.tool("condor_rm", str(removed))
    site.pool.jobs.wait(removed, {joblog.REMOVED})

    orphaned = site.submit(job, packages=wanting(big), shell="true")
    begun = 600_000 + int(downloaded_bytes(slow))  # more than a removed job's download still takes
    site.pool.wait_until(lambda: downloaded_bytes(slow) > begun)
    kill(daemon(slow.point, "condor_starter"))
    site.pool.jobs.wait(orphaned, {joblog.EVICTED, joblog.SHADOW_EXCEPTION, joblog.RECONNECT_FAILED})
    assert leases(slow) == 0
    assert big not in slow.ask("status")["packages"]
    site.pool.central.try_tool("condor_rm", str(orphaned))

    patient = site.submit(job, packages=wanting(big), shell="test -s $BIG_ROOT/noise")
    begun = 200_000 + int(downloaded_bytes(slow))
    site.pool.wait_until(lambda: downloaded_bytes(slow) > begun)
    slow.settings.write_text(slow.settings.read_text().replace(NARROW, ""))  # the next service need not be slow
    first = slow.service_pid
    kill(first)
    (event,) = site.pool.jobs.wait(patient)
    assert event.fields.get("ReturnValue") == 0, event.reason
    assert slow.service_pid != first
    assert site.pool.history(patient)[0]["JobAgentPackages"] == [big]


def test_a_node_that_fails_jobs_says_so_and_gets_no_more_of_them(
    site: Site, machine: Callable[..., EquippedPoint]
) -> None:
    """Nobody listens on port 9 (discard): this machine has no catalogue and nothing cached."""
    cutoff = machine("cutoff", catalogue="http://127.0.0.1:9", node="failures_before_pause = 1\n")
    cluster = site.submit(for_point("cutoff"), packages=wanting(site.packages.tool), shell="true")
    site.pool.wait_until(lambda: cutoff.ask("status")["failures"] > 0)
    site.pool.wait_until(lambda: _reasons(site, "cutoff") != [])
    assert "catalogue" in _reasons(site, "cutoff")[0]
    site.pool.jobs.wait(cluster, {joblog.EVICTED, joblog.HELD, joblog.TERMINATED})
    job = site.pool.queue(cluster)[0]
    assert job["JobStatus"] == 1, "the job is not Idle"
    assert "331" in job["VacateReason"]
    assert job["NumShadowStarts"] == 1
    plain = site.submit(for_point("cutoff"), shell="true")
    assert site.pool.jobs.wait(plain)[0].kind == joblog.TERMINATED, "jobs without packages still run there"
    cutoff.settings.write_text(cutoff.settings.read_text().replace("http://127.0.0.1:9", site.world.url))
    kill(cutoff.service_pid)
    (event,) = site.pool.jobs.wait(cluster)
    assert event.kind == joblog.TERMINATED, "the job does not run once the catalogue is back"


def _reasons(site: Site, name: str) -> list[str]:
    """Why a machine is not ready, by its ad; empty while it is."""
    ads = site.pool.machines("EPName", "JobAgentReady", "JobAgentReason")
    return [ad["JobAgentReason"] for ad in ads if ad["EPName"] == name and ad["JobAgentReady"] is False]


@pytest.mark.slow
def test_sixty_four_jobs_at_once_on_one_node_share_one_download(
    site: Site, machine: Callable[..., EquippedPoint], open_directory: Path
) -> None:
    wide = machine("wide", config="NUM_CPUS = 64\nMEMORY = 65536\n")
    go = open_directory / "go"
    wait = f"while [ ! -e {go} ]; do sleep 0.2; done; hello"
    cluster = site.submit(for_point("wide"), packages=wanting(site.packages.tool), shell=wait, queue=64)
    site.pool.wait_until(lambda: leases(wide) == 128, timeout_s=120)
    go.touch()
    events = site.pool.jobs.wait(cluster, timeout_s=120)
    assert [event.fields.get("ReturnValue") for event in events] == [0] * 64
    ads = site.pool.history(cluster, "JobAgentSeederBytes", "JobAgentNeighbourBytes", "JobAgentWebBytes")
    fetched = [ad["JobAgentSeederBytes"] + ad["JobAgentNeighbourBytes"] + ad["JobAgentWebBytes"] for ad in ads]
    assert sum(size > 0 for size in fetched) <= 2, "each of two packages is downloaded by one job"
    site.pool.wait_until(lambda: leases(wide) == 0)
