"""A network cut of a minute, with the patience that a node has by default."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import network
from jobagent_swarm.settings import SwarmSettings
from tests.test_swarm_partition import cut_for_longer_than_an_agent_waits

pytestmark = [pytest.mark.soak, pytest.mark.netns]


def test_cut_of_a_minute_costs_no_byte_that_was_there(tmp_path: Path) -> None:
    if not network.is_possible():
        pytest.skip("network namespaces need root")
    cut_for_longer_than_an_agent_waits(tmp_path, cut_s=60.0, patience_s=SwarmSettings().stall_timeout_s)
