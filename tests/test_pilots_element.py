"""Pilots through a compute element: collector, schedd and job router in front of a batch system of bare nodes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from jobagent.condor.pilots.elements import Element
from jobagent.testing import joblog
from jobagent.testing.barenode import is_possible
from jobagent.testing.element import Site
from jobagent.testing.grid import Grid, User

pytestmark = [
    pytest.mark.condor,
    pytest.mark.netns,
    pytest.mark.slow,
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
    grid.pool.jobs.wait(cluster, {joblog.EXECUTING}, timeout_s=120)
    rows = {str(row["pilot"]): row for row in status(user)}
    assert any(row["state"] == "serving" and row["cores"] == 2 for row in rows.values()), rows
    assert all(name.startswith("site-a/") for name in rows)
    events = grid.pool.jobs.wait(cluster, timeout_s=60)
    assert {event.kind for event in events} == {joblog.TERMINATED}
    # nothing of the pilot is in the payload's environment
    assert [(grid.pool.sandbox(cluster) / f"out.{n}").read_text() for n in range(3)] == ["0\n"] * 3
    grid.pool.wait_until(lambda: site.leftovers() == [], 60)


def test_failing_pilots_stop_the_factory_for_a_while(grid: Grid, site: Site, user: User) -> None:
    element = replace(site.element, name="site-b", max_pilots=1, backoff_s=1000.0)
    expired = grid.token(lifetime_s=1)
    time.sleep(1.5)
    arguments = words(grid, user, element, token=expired)
    cluster = grid.pool.submit(JOB)
    user.call("pilots", "submit", "--ce", "site-b", *arguments)
    decision = {"reason": ""}

    def is_seen() -> bool:
        decision.update(json.loads(user.call("pilots", "factory", "--once", "--dry-run", "--json", *arguments)))
        return "failed in a row" in decision["reason"]

    grid.pool.wait_until(is_seen, 120)
    grid.pool.central.try_tool("condor_rm", str(cluster))
    logs = [
        path for path in (user.home / "pilots").glob("site-b.*.err") if "the pool's token expired" in path.read_text()
    ]
    assert logs
