"""A glide-in on a bare worker node ends when it is told, when its master dies, and when its token is no longer good.

The other ways to end take longer: `tests/soak/test_glidein.py`.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from jobagent.testing import joblog
from jobagent.testing.barenode import BareNode, is_possible
from jobagent.testing.grid import Grid
from tests.glidein_field import LONG_JOB, ended, master_of, put_script, shell_of, wait_for, written

pytestmark = [
    pytest.mark.condor,
    pytest.mark.netns,
    pytest.mark.slow,
    pytest.mark.skipif(bool(is_possible()) and not os.environ.get("CI"), reason=is_possible() or "possible"),
]


@pytest.fixture(scope="module")
def grid() -> Iterator[Grid]:
    with Grid() as made:
        yield made


def test_sigterm_sends_jobs_back_and_leaves_nothing(grid: Grid) -> None:
    with BareNode(grid.lan, "bullseye") as node:  # glibc 2.31, older than the one of the build
        cluster = grid.pool.submit(f"{LONG_JOB}queue\n")
        pilot = node.start(*put_script(grid, node), environment=grid.equip(node))
        wait_for("condor_master started", pilot)
        grid.pool.jobs.wait(cluster, {joblog.EXECUTING}, timeout_s=40)
        os.kill(shell_of(node), signal.SIGTERM)
        ended(pilot)
        assert pilot.returncode == 143
        assert grid.pool.jobs.wait(cluster, {joblog.EVICTED}, timeout_s=20)
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
