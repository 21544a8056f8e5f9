"""Pilots on bare worker nodes: through a compute element, told to end, without their master, with a bad token.

All parts are real; the compute element is collector, schedd and job router in front of a batch system.  Other ways to
end take longer: `tests/soak/test_glidein.py`.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from jobagent.condor.pilots.elements import Element
from jobagent.testing import joblog
from jobagent.testing.barenode import BareNode, is_possible
from jobagent.testing.element import Site
from jobagent.testing.grid import Grid, User
from tests.glidein_field import LONG_JOB, ended, master_of, put_script, shell_of, wait_for, written

pytestmark = [
    pytest.mark.condor,
    pytest.mark.netns,
    pytest.mark.slow,
    pytest.mark.timeout(900),  # with the making of the bundle, on a busy machine
    pytest.mark.skipif(bool(is_possible()) and not os.environ.get("CI"), reason=is_possible() or "possible"),
]
JOB = (
    "executable = /bin/sh\narguments = \"-c 'tool; sleep 1'\"\ntransfer_executable = false\n"
    'MY.Packages = { "VO_ALICE@Tool::1" }\nqueue 3\n'
)


@pytest.fixture(scope="module")
def grid() -> Iterator[Grid]:
    with Grid(settings={"glidein": {"idle_s": 6}}) as made:
        made.world.publish("Tool", {"bin/tool": "#!/bin/sh\nenv | grep -c JOBAGENT_\n"})
        yield made


@pytest.fixture(scope="module")
def site(grid: Grid) -> Iterator[Site]:
    with Site(grid) as made:
        yield made


@pytest.fixture(scope="module")
def user(grid: Grid) -> User:
    return grid.user()


def words(grid: Grid, user: User, element: Element, token: str = "") -> list[str | Path]:
    keys = ("name", "resource", "site", "cpus", "memory_mb", "wall_s", "max_pilots", "backoff_s")
    lines = "".join(f"{key} = {json.dumps(getattr(element, key))}\n" for key in keys)
    elements = user.write("elements.toml", f"[[element]]\n{lines}")
    file = user.write("pool.token", token or grid.token())
    script = grid.directory / "bundle" / "pilot.sh"
    return ["--elements", elements, "--script", script, "--token", file, "--logs", user.home / "pilots"]


def status(user: User) -> list[dict[str, object]]:
    return list(json.loads(user.call("pilots", "status", "--json")))


def test_the_factory_sends_a_pilot_for_jobs_that_wait_and_none_for_nothing(
    grid: Grid, site: Site, user: User
) -> None:
    arguments = words(grid, user, site.element)
    once = ("pilots", "factory", "--once", "--json", *arguments)
    assert json.loads(user.call(*once))["count"] == 0
    cluster = grid.pool.submit(JOB)
    assert json.loads(user.call(*once))["count"] == 2  # three cores are wanted, a pilot has two
    decision = json.loads(user.call(*once))
    assert (decision["count"], decision["reason"]) == (0, "no demand")  # those that wait count
    grid.pool.jobs.wait(cluster, {joblog.EXECUTING}, timeout_s=300)
    rows = {str(row["pilot"]): row for row in status(user)}
    assert any(row["state"] == "serving" and row["cores"] == 2 for row in rows.values()), rows
    assert all(name.startswith("site-a/") for name in rows)
    events = grid.pool.jobs.wait(cluster, timeout_s=180)
    assert {event.kind for event in events} == {joblog.TERMINATED}
    # nothing of the pilot is in the payload's environment
    assert [(grid.pool.sandbox(cluster) / f"out.{n}").read_text() for n in range(3)] == ["0\n"] * 3
    grid.pool.wait_until(lambda: site.leftovers() == [], 180)


def test_failing_pilots_stop_the_factory_for_a_while(grid: Grid, site: Site, user: User) -> None:
    # a slot that is shorter than the pilot needs to clean up
    element = replace(site.element, name="site-b", max_pilots=1, backoff_s=1000.0, wall_s=10)
    arguments = words(grid, user, element)
    cluster = grid.pool.submit(JOB)
    user.call("pilots", "submit", "--ce", "site-b", *arguments)
    decision = {"reason": ""}

    def is_seen() -> bool:
        decision.update(json.loads(user.call("pilots", "factory", "--once", "--dry-run", "--json", *arguments)))
        return "failed in a row" in decision["reason"]

    grid.pool.wait_until(is_seen, 300)
    grid.pool.central.try_tool("condor_rm", str(cluster))
    logs = [
        path for path in (user.home / "pilots").glob("site-b.*.err") if "leaves no time beyond" in path.read_text()
    ]
    assert logs


def test_no_pilot_is_sent_with_an_expired_token(grid: Grid, site: Site, user: User) -> None:
    arguments = words(grid, user, site.element, token=grid.token(lifetime_s=1))
    time.sleep(1.5)
    with pytest.raises(RuntimeError, match=r"ended with 245: .*the pool's token expired"):
        user.call("pilots", "submit", "--ce", "site-a", *arguments)


def test_sigterm_sends_jobs_back_and_leaves_nothing(grid: Grid) -> None:
    with BareNode(grid.lan, "bullseye") as node:  # glibc 2.31, older than the one of the build
        cluster = grid.pool.submit(f"{LONG_JOB}queue\n")
        pilot = node.start(*put_script(grid, node), environment=grid.equip(node))
        wait_for("condor_master started", pilot)
        grid.pool.jobs.wait(cluster, {joblog.EXECUTING}, timeout_s=180)
        os.kill(shell_of(node), signal.SIGTERM)
        ended(pilot)
        assert pilot.returncode == 143
        assert grid.pool.jobs.wait(cluster, {joblog.EVICTED}, timeout_s=60)
        grid.pool.central.tool("condor_rm", str(cluster))
        assert written(node) == []


def test_kill_9_of_the_master_ends_the_pilot_with_a_site_error(grid: Grid) -> None:
    with BareNode(grid.lan) as node:
        pilot = node.start(*grid.land(), environment=grid.equip(node))
        wait_for("condor_master started", pilot)
        os.kill(master_of(node), signal.SIGKILL)
        log = ended(pilot)
        assert pilot.returncode == 220
        assert "condor_master ended with -9" in log
        assert written(node) == []


def test_expired_token_ends_the_pilot_before_it_fetches_packages(grid: Grid) -> None:
    with BareNode(grid.lan) as node:
        environment = grid.equip(node, grid.token(lifetime_s=1))
        time.sleep(2)
        done = node.run(*grid.land(), environment=environment)
        assert done.returncode == 245
        assert "the pool's token expired" in done.stderr and "INFO packages" not in done.stderr
        assert written(node) == []
