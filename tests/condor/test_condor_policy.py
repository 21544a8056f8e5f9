"""The expressions of the settings, as HTCondor itself expands and evaluates them."""

from __future__ import annotations

import time

import classad2
import pytest
from condor_site import Site

pytestmark = pytest.mark.condor


def holds(expression: str, mine: dict[str, object], target: dict[str, object]) -> bool:
    """Evaluate an expression of `mine` against `target`."""
    ad, other = classad2.ClassAd(mine), classad2.ClassAd(target)
    ad["Question"] = classad2.ExprTree(expression)
    return ad["Question"].eval(ad, other) is True


@pytest.mark.parametrize(
    ("machine", "job", "is_welcome"),
    [
        ({"JobAgentReady": True}, {"Packages": "x"}, True),
        ({"JobAgentReady": False}, {"Packages": "x"}, False),
        ({}, {"Packages": "x"}, False),
        ({}, {}, True),
        ({"JobAgentReady": False}, {}, True),
    ],
)
def test_a_machine_takes_jobs_with_packages_only_while_it_is_ready(
    site: Site, machine: dict[str, object], job: dict[str, object], is_welcome: bool
) -> None:
    start = site.points[0].point.tool("condor_config_val", "JOBAGENT_START").strip()
    assert holds(start, machine, job) is is_welcome


@pytest.mark.parametrize(
    ("starts", "seconds_ago", "is_welcome"),
    [(1, 0, False), (1, 2, True), (4, 2, False), (4, 10, True), (40, 800, False), (40, 1000, True)],
)
def test_a_job_that_was_sent_back_waits_twice_as_long_each_time(
    site: Site, starts: int, seconds_ago: int, is_welcome: bool
) -> None:
    """The test's machines begin with one second."""
    start = site.points[0].point.tool("condor_config_val", "JOBAGENT_START").strip()
    job: dict[str, object] = {"Packages": "x", "VacateReasonCode": 1007, "NumShadowStarts": starts}
    job["LastVacateTime"] = int(time.time()) - seconds_ago
    assert holds(start, {"JobAgentReady": True}, job) is is_welcome


def test_containers_see_the_packages_read_only(site: Site) -> None:
    point = site.points[0]
    bound = f"{point.cache}:{point.cache}:ro"
    assert point.point.tool("condor_config_val", "SINGULARITY_BIND_EXPR").strip() == f'"{bound}"'
    assert point.point.tool("condor_config_val", "DOCKER_VOLUME_DIR_JOBAGENT").strip() == bound
    assert "JOBAGENT" in point.point.tool("condor_config_val", "DOCKER_MOUNT_VOLUMES")


@pytest.mark.parametrize(
    ("code", "sub_code", "number", "is_released"),
    [(13, 232, 1, True), (13, 211, 1, False), (13, 242, 1, False), (13, 232, 6, False), (19, 232, 1, False)],
)
def test_only_transfers_that_failed_by_site_or_supply_are_tried_again(
    site: Site, code: int, sub_code: int, number: int, is_released: bool
) -> None:
    release = site.pool.central.tool("condor_config_val", "SYSTEM_PERIODIC_RELEASE_JobAgent").strip()
    held: dict[str, object] = {"HoldReasonCode": code, "HoldReasonSubCode": sub_code * 256, "NumHolds": number}
    assert holds(release, held | {"EnteredCurrentStatus": int(time.time()) - 61}, {}) is is_released
    assert not holds(release, held | {"EnteredCurrentStatus": int(time.time())}, {})
