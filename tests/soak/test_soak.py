"""`make soak`: a thousand kills at random instants, and a fault at every single step."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest

from jobagent.testing.faults import KINDS
from tests.soak.agents import quick_disk, soaking
from tests.soak.steps import strike

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

KILLS = int(os.environ.get("JOBAGENT_SOAK_KILLS", "1200"))
SEED = int(os.environ.get("JOBAGENT_SOAK_SEED", "0")) or random.SystemRandom().getrandbits(32)


@pytest.mark.acceptance(4, 8)
def test_a_thousand_kills_break_no_promise(tmp_path: Path) -> None:
    print(f"seed {SEED}: JOBAGENT_SOAK_SEED={SEED} make soak runs the same")
    with quick_disk(tmp_path) as disk, soaking(disk / "soak", seed=SEED, agents=8) as referee:
        for _ in range(KILLS):
            referee.kill_one(longest_wait_s=0.06)
    assert referee.kills == KILLS >= 1000


@pytest.mark.acceptance(2, 4)
@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_at_every_step_leaves_a_cache_that_works(tmp_path: Path, kind: str) -> None:
    at = 1
    with quick_disk(tmp_path) as disk:
        while (code := strike(disk / str(at), kind, at)) is not None:
            assert code == -signal.SIGKILL or kind != "kill"
            at += 1
    assert at > 50
