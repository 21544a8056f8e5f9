"""The short version of `make soak`."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobagent.testing.faults import KINDS
from tests.soak.agents import quick_disk, soaking
from tests.soak.steps import strike

KILLS = 60
STRIDE = 23  # every so many steps; make soak takes all


@pytest.mark.acceptance(4, 8)
def test_sixty_kills_at_random_instants_break_no_promise(tmp_path: Path) -> None:
    with quick_disk(tmp_path) as disk, soaking(disk / "soak", seed=20240607, agents=4) as referee:
        for _ in range(KILLS):
            referee.kill_one(longest_wait_s=0.06)
    assert referee.kills == KILLS


@pytest.mark.acceptance(2, 4)
@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_at_any_step_leaves_a_cache_that_works(tmp_path: Path, kind: str) -> None:
    at = 1
    with quick_disk(tmp_path) as disk:
        while strike(disk / str(at), kind, at) is not None:
            at += STRIDE
    assert at > 5 * STRIDE
