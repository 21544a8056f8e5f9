"""Faults of peers, trackers, disks and networks: the download ends well, or with one line that says why."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobagent.central.packaging import torrents
from jobagent.central.services.tracker import Policy
from jobagent.contracts import Context
from jobagent.errors import DiskFull, ScratchUnusable, SupplyError
from jobagent.events import Events
from jobagent_swarm.reservation import reserve
from jobagent_swarm.swarm import FORSAKEN_S, Swarm
from tests.swarm_field import Agent, Central, address, agents, central, configuration, wait_until
from tests.swarm_hostile import CorruptPeer, Turncoat, announce_at, tracker_answering

pytestmark = pytest.mark.swarm
SIZE = 4_000_000


def at_half(services: Central, agent: Agent, action: object) -> object:
    """A progress callback that calls `action` once when half of the archive is there."""
    done = threading.Event()

    def progress(done_bytes: int) -> None:
        if done_bytes > SIZE / 2 and not done.is_set():
            done.set()
            action()  # type: ignore[operator]

    return progress


@pytest.mark.acceptance(9)
def test_seeder_that_dies_at_half_is_replaced_by_the_web_server_and_progress_is_kept(tmp_path: Path) -> None:
    with (
        central(tmp_path, swarm={"upload_rate_bytes": 3_000_000}) as services,
        agents(tmp_path, 1, services.url, web_seed_after_s=2.0) as (agent,),
    ):
        published = services.publish(size_bytes=SIZE)
        order = agent.order(published, urls=tuple(services.catalogue.urls(published.package)))
        assert services.seeder is not None
        order.progress = at_half(services, agent, services.seeder.close)  # type: ignore[assignment]
        traffic = agent.swarm.fetch(order)
        assert agent.has(published)
        assert traffic.seeder_bytes > SIZE / 3 and 0 < traffic.web_bytes < 0.7 * SIZE
        assert traffic.total_bytes < 1.1 * SIZE
        assert len([w for w in agent.warnings if "no peer delivers" in w]) == 1


@pytest.mark.acceptance(9)
def test_seeder_that_dies_at_half_is_replaced_by_neighbours(tmp_path: Path) -> None:
    with central(tmp_path, swarm={"upload_rate_bytes": 4_000_000}) as services:
        published = services.publish(size_bytes=SIZE)
        with agents(tmp_path, 3, services.url) as nodes, ThreadPoolExecutor(3) as pool:
            assert services.seeder is not None
            nodes[0].swarm.fetch(nodes[0].order(published))
            orders = [agent.order(published) for agent in nodes]
            orders[1].progress = at_half(services, nodes[1], services.seeder.close)  # type: ignore[assignment]
            list(pool.map(lambda a, o: a.swarm.fetch(o), nodes[1:], orders[1:]))
            assert all(agent.has(published) for agent in nodes)


@pytest.mark.acceptance(10)
def test_dead_swarm_is_given_up_within_the_timeout_with_the_reasons(tmp_path: Path) -> None:
    with central(tmp_path, is_seeding=False) as services:
        published = services.publish(size_bytes=SIZE)
        url = services.url
    with agents(tmp_path, 1, url, no_peer_timeout_s=1.0, web_seed_after_s=0.2) as (agent,):
        start = time.monotonic()
        with pytest.raises(SupplyError, match=r"no peer within 1 s: 0 of 4000000 bytes, 0 peers.*Connection refused"):
            agent.swarm.fetch(agent.order(published, urls=(f"{url}/archives/x",)))
        assert time.monotonic() - start < 4
        assert len(agent.warnings) == 1
        assert list(agent.directory.iterdir()) == []


OK = b"HTTP/1.1 200 OK\r\n\r\n"
BAD_TRACKERS: dict[str, tuple[bytes, bool]] = {
    "garbage": (OK + b"\x00\xff garbage", False),
    "a lie about its length": (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nd8:intervali5e5:peers999999:", False),
    "a redirect to itself": (b"HTTP/1.1 302 Found\r\nLocation: /announce\r\n\r\n", False),
    "a redirect to a file": (b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n", False),
    "an endless body": (OK + b"d8:intervali5e5:peers9999999:", True),
    "peers that do not exist": (OK + b"d8:intervali5e5:peers12:" + bytes([127, 0, 0, 1, 0, 9] * 2) + b"e", False),
    "nothing": (b"", False),
}


@pytest.mark.acceptance(11)
@pytest.mark.parametrize("case", BAD_TRACKERS)
def test_bad_tracker_beside_a_good_one_does_no_harm(tmp_path: Path, case: str) -> None:
    answer, is_endless = BAD_TRACKERS[case]
    with (
        central(tmp_path) as services,
        tracker_answering(answer, address(), is_endless=is_endless) as bad,
        agents(tmp_path, 1) as (agent,),
    ):
        published = services.publish(size_bytes=200_000)
        config = configuration(agent.address, bad, trackers=[bad, f"{services.url}/announce"])
        swarm = Swarm(Context(config, tmp_path, Events(), ""))
        try:
            swarm.fetch(agent.order(published))
            assert agent.has(published)
        finally:
            swarm.close()


@pytest.mark.acceptance(11)
@pytest.mark.parametrize("case", ["garbage", "an endless body", "a redirect to itself"])
def test_bad_tracker_alone_is_given_up_in_bounded_time(tmp_path: Path, case: str) -> None:
    answer, is_endless = BAD_TRACKERS[case]
    with central(tmp_path, is_seeding=False) as services:
        published = services.publish(size_bytes=200_000)
        with tracker_answering(answer, address(), is_endless=is_endless) as bad, agents(tmp_path, 1) as (agent,):
            config = configuration(agent.address, bad, no_peer_timeout_s=1.5)
            swarm = Swarm(Context(config, tmp_path, Events(), ""))
            try:
                with pytest.raises(SupplyError, match="no peer within"):
                    swarm.fetch(agent.order(published))
            finally:
                swarm.close()


@pytest.mark.acceptance(12)
def test_corrupt_peer_is_banned_and_the_others_finish(tmp_path: Path) -> None:
    with central(tmp_path, swarm={"upload_rate_bytes": 2_000_000}) as services:
        published = services.publish(size_bytes=SIZE)
        corrupt = CorruptPeer(
            address(),
            pieces=-(-SIZE // torrents.piece_size_for(SIZE)),
            infohash_v2=published.package.archive.infohash_v2,
        )
        try:
            announce_at(services.url, published, corrupt.address)
            with agents(tmp_path, 2, services.url, encryption="off") as nodes, ThreadPoolExecutor(2) as pool:
                list(pool.map(lambda a: a.swarm.fetch(a.order(published)), nodes))
                assert all(agent.has(published) for agent in nodes)
                assert corrupt.blocks_sent > 0
                assert any(corrupt.address[0] in w for agent in nodes for w in agent.warnings)
        finally:
            corrupt.close()


@pytest.mark.acceptance(12)
def test_who_was_banned_is_asked_once_more_where_nobody_else_delivers(tmp_path: Path) -> None:
    """libtorrent may ban an honest peer together with a corrupt one, for pieces that both gave blocks of."""
    with central(tmp_path, is_seeding=False) as services:
        published = services.publish(size_bytes=SIZE)
        piece_bytes = torrents.piece_size_for(SIZE)
        peer = Turncoat(
            address(),
            published.path.read_bytes(),
            piece_bytes,
            published.package.archive.infohash_v2,
            honest_blocks=4 * piece_bytes // 16384,
        )
        try:
            announce_at(services.url, published, peer.address)
            with agents(tmp_path, 1, services.url, encryption="off") as (agent,):
                traffic = agent.swarm.fetch(agent.order(published))
                assert agent.has(published)
                assert traffic.total_bytes >= SIZE
                assert any("all are asked once more" in warning for warning in agent.warnings)
        finally:
            peer.close()


@pytest.mark.acceptance(12)
def test_a_ban_before_anything_came_shortens_nobodys_patience(tmp_path: Path) -> None:
    with central(tmp_path, is_seeding=False) as services:
        published = services.publish(size_bytes=SIZE)
        pieces = -(-SIZE // torrents.piece_size_for(SIZE))
        corrupt = CorruptPeer(address(), pieces, published.package.archive.infohash_v2)
        try:
            announce_at(services.url, published, corrupt.address)
            with agents(tmp_path, 2, services.url, encryption="off") as (early, late), ThreadPoolExecutor(1) as pool:
                fetch = pool.submit(early.swarm.fetch, early.order(published))
                wait_until(lambda: corrupt.blocks_sent > 0 or fetch.done())
                time.sleep(FORSAKEN_S + 2)
                late.swarm.seed(published.package, published.path, published.torrent)
                assert fetch.result(60).neighbour_bytes >= SIZE
                assert early.has(published)
        finally:
            corrupt.close()


@pytest.mark.acceptance(12)
def test_corrupt_peer_alone_delivers_nothing(tmp_path: Path) -> None:
    with central(tmp_path, is_seeding=False) as services:
        published = services.publish(size_bytes=200_000)
        corrupt = CorruptPeer(
            address(),
            pieces=-(-200_000 // torrents.piece_size_for(200_000)),
            infohash_v2=published.package.archive.infohash_v2,
        )
        try:
            announce_at(services.url, published, corrupt.address)
            with agents(tmp_path, 1, services.url, encryption="off", stall_timeout_s=2.0) as (agent,):
                with pytest.raises(SupplyError, match="banned for corrupt data: 127"):
                    agent.swarm.fetch(agent.order(published))
                assert not (agent.directory / "A.tar.zst").exists()
        finally:
            corrupt.close()


@pytest.mark.acceptance(13)
def test_slow_drip_is_given_up_and_its_bytes_are_kept(tmp_path: Path) -> None:
    with (
        central(tmp_path, swarm={"upload_rate_bytes": 40_000}) as services,
        agents(tmp_path, 1, services.url, minimum_rate_bytes=500_000, rate_window_s=2.0) as (agent,),
    ):
        published = services.publish(size_bytes=SIZE)
        with pytest.raises(SupplyError, match=r"bytes/s over 2 s, the minimum is 500000"):
            agent.swarm.fetch(agent.order(published))
        assert (agent.directory / "A.tar.zst.part").exists()


def test_tracker_that_restarts_mid_swarm_knows_its_peers_again(tmp_path: Path) -> None:
    quick = Policy(busy_interval_s=1, seeding_interval_s=1, idle_interval_s=1, min_interval_s=1)
    with central(tmp_path, policy=quick) as services:
        published = services.publish(size_bytes=SIZE)
        with agents(tmp_path, 1, services.url) as (agent,):
            agent.swarm.fetch(agent.order(published))
            wait_until(lambda: services.tracker.peer_count == 1)
            services.tracker._swarms.clear()
            services.tracker._peer_count = 0
            wait_until(lambda: services.tracker.peer_count == 1, timeout_s=15)


def test_peers_go_on_without_the_tracker(tmp_path: Path) -> None:
    with central(tmp_path, swarm={"upload_rate_bytes": 2_000_000}) as services:
        published = services.publish(size_bytes=SIZE)
        with agents(tmp_path, 3, services.url) as nodes, ThreadPoolExecutor(3) as pool:
            orders = [agent.order(published) for agent in nodes]
            orders[0].progress = at_half(services, nodes[0], services.web.stop)  # type: ignore[assignment]
            list(pool.map(lambda a, o: a.swarm.fetch(o), nodes, orders))
            assert all(agent.has(published) for agent in nodes)


# Disks


def test_reservation_allocates_every_block_and_keeps_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert reserve(path, 1_000_000) is False
    assert path.stat().st_size == 1_000_000 and path.stat().st_blocks * 512 >= 1_000_000
    path.write_bytes(b"abc" * 700_000)
    assert reserve(path, 1_500_000) is True
    assert path.read_bytes() == (b"abc" * 700_000)[:1_500_000]


@pytest.mark.acceptance(1)
def test_disk_without_room_is_found_before_the_download_with_both_numbers(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(DiskFull, match=r"need \d+ bytes for file, have \d+ in"):
        reserve(path, 1 << 60)
    assert not path.exists()
    path.write_bytes(b"partial")
    with pytest.raises(DiskFull):
        reserve(path, 1 << 60)
    assert path.read_bytes() == b"partial"


def test_target_directory_that_is_not_there_is_a_site_error(tmp_path: Path) -> None:
    with pytest.raises(ScratchUnusable, match="No such file"):
        reserve(tmp_path / "absent" / "file", 10)


def test_symlink_as_target_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    with pytest.raises(ScratchUnusable):
        reserve(tmp_path / "link", 10)
    assert not (tmp_path / "victim").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("mount is not permitted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.acceptance(1, 27)
def test_small_disk_is_found_before_anything_is_asked_of_the_swarm(tmp_path: Path, small_disk: Path) -> None:
    with central(tmp_path) as services, agents(tmp_path, 1, services.url) as (agent,):
        published = services.publish(size_bytes=SIZE)
        order = agent.order(published)
        order.target = small_disk / "archive"
        with pytest.raises(DiskFull, match=r"need \d+ bytes for archive.part, have \d+ in"):
            agent.swarm.fetch(order)
        assert list(small_disk.iterdir()) == []


@pytest.mark.acceptance(1)
def test_disk_that_fills_up_during_the_download_is_never_success(tmp_path: Path, small_disk: Path) -> None:
    """libtorrent itself says "finished" then; the only sign is its file error."""
    with central(tmp_path) as services, agents(tmp_path, 1, services.url) as (agent,):
        published = services.publish(size_bytes=SIZE)
        config = configuration(agent.address, f"{services.url}/announce")
        swarm = Swarm(Context(config, tmp_path, Events(), ""), make_room=lambda path, size: False)
        order = agent.order(published)
        order.target = small_disk / "archive"
        try:
            with pytest.raises(DiskFull, match=r"no room for A.tar.zst: No space left on device"):
                swarm.fetch(order)
            assert not order.target.exists()
            swarm._make_room = reserve
            order.target = agent.directory / "A.tar.zst"
            swarm.fetch(order)
            assert agent.has(published)
        finally:
            swarm.close()
