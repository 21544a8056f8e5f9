"""Networks that fail, in namespaces of their own: what was fetched before a cut is not fetched again."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench import network
from bench.swarm import Client
from bench.swarm_field import Field
from bench.swarm_servers import Server, describe, serving
from tests.swarm_field import wait_until

pytestmark = [pytest.mark.netns, pytest.mark.swarm]
SIZE, RATE = 6_000_000, 1_500_000


@pytest.fixture(autouse=True)
def needs_namespaces() -> None:
    if not network.is_possible():
        pytest.skip("network namespaces need root")


def client(
    directory: Path, server: Server, host: network.Host, number: int, delay_s: float = 0.0, **swarm: float
) -> Client:
    """An agent on a host."""
    spec = {
        "id": number,
        "address": host.address,
        "directory": str(directory / f"client{number}"),
        "upload_rate_bytes": 0,
        "delay_s": delay_s,
    }
    plan: dict[str, Any] = {
        "kind": "agent",
        "package": {"archive": describe(server.archive)},
        "torrent": str(server.torrent),
        "tracker": server.tracker,
        "swarm": swarm,
        "timeout_s": 150.0,
        "clients": [spec],
    }
    return Client(host.argv(sys.executable, "-m", "bench.swarm_client"), plan, 1)


def link(host: network.Host, state: str) -> None:
    subprocess.run(["ip", "-n", host.namespace, "link", "set", "eth0", state], check=True)


@pytest.mark.acceptance(33)
@pytest.mark.parametrize("cut_s", [5.0, pytest.param(60.0, marks=pytest.mark.soak)])
def test_download_goes_on_after_a_network_cut_and_not_from_zero(tmp_path: Path, cut_s: float) -> None:
    with (
        network.hosts([8 * 4 * RATE, 8 * RATE]) as (center, node),
        serving(Field(package_bytes=SIZE, is_shaped=True), tmp_path, center) as server,
        client(tmp_path, server, node, 1) as agent,
    ):
        agent.wait_ready()
        agent.go()
        part = tmp_path / "client1" / "archive.part"
        wait_until(lambda: center.sent_bytes() > SIZE / 2, 30)
        assert part.exists()
        link(node, "down")
        time.sleep(cut_s)
        sent = center.sent_bytes()
        link(node, "up")
        wait_until(lambda: not agent.is_busy(), 60)
        (record,) = agent.records
        assert "error" not in record, record
        assert record["seeder_bytes"] < 1.15 * SIZE
        assert center.sent_bytes() - sent < 0.8 * SIZE


def test_half_of_a_partitioned_swarm_goes_on_without_the_center(tmp_path: Path) -> None:
    with (
        network.hosts([8 * 2 * RATE, 8 * RATE, 8 * RATE]) as (center, first, second),
        serving(Field(package_bytes=SIZE, is_shaped=True), tmp_path, center) as server,
        client(tmp_path, server, first, 1) as early,
        client(tmp_path, server, second, 2) as late,
    ):
        for agent in (early, late):
            agent.wait_ready()
        early.go()
        time.sleep(1.0)
        late.go()
        wait_until(lambda: not early.is_busy(), 40)
        link(center, "down")
        wait_until(lambda: not late.is_busy(), 40)
        assert "error" not in late.records[0], late.records


@pytest.mark.acceptance(33)
@pytest.mark.parametrize(("cut_s", "patience_s"), [(4.0, 1.5), pytest.param(60.0, 30.0, marks=pytest.mark.soak)])
def test_what_was_given_up_in_a_long_cut_is_taken_up_by_the_next_agent(
    tmp_path: Path, cut_s: float, patience_s: float
) -> None:
    """The first agent says that nothing comes and ends; the next one on the node fetches only the rest."""
    with (
        network.hosts([8 * 4 * RATE, 8 * RATE]) as (center, node),
        serving(Field(package_bytes=SIZE, is_shaped=True), tmp_path, center) as server,
    ):
        with client(tmp_path, server, node, 1, stall_timeout_s=patience_s) as first:
            first.wait_ready()
            first.go()
            wait_until(lambda: center.sent_bytes() > SIZE / 2, 30)
            link(node, "down")
            begun = time.monotonic()
            wait_until(lambda: not first.is_busy(), 2 * patience_s + 20)
            (record,) = first.records
            assert "no progress" in record["error"], record
        time.sleep(max(0.0, begun + cut_s - time.monotonic()))  # the rest of the cut
        link(node, "up")
        with client(tmp_path, server, node, 2) as second:
            second.wait_ready()
            shutil.move(tmp_path / "client1" / "archive.part", tmp_path / "client2")
            second.go()
            wait_until(lambda: not second.is_busy(), 60)
            (record,) = second.records
            assert "error" not in record, record
            assert 0 < record["seeder_bytes"] < 0.75 * SIZE
