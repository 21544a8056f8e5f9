"""The swarm as a transport: real peers on loopback, each with an address of its own."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobagent import bencode
from jobagent.contracts import Order
from jobagent.errors import DigestMismatch, HostileArchive, NoFreePort, ScratchUnusable, SupplyError
from jobagent.model import Archive, Blob, Package, PackageId, Traffic, Tree
from tests.swarm_field import Agent, Published, agents, central, publish, wait_until

pytestmark = pytest.mark.swarm


def test_archive_arrives_complete_and_from_the_seeder(tmp_path: Path) -> None:
    with central(tmp_path) as services, agents(tmp_path, 1, services.url) as (agent,):
        published = services.publish()
        seen: list[int] = []
        order = agent.order(published)
        order.progress = seen.append
        traffic = agent.swarm.fetch(order)
        assert agent.has(published)
        assert traffic == Traffic(seeder_bytes=published.package.archive.size_bytes)
        assert seen[-1] == published.package.archive.size_bytes
        assert [p.name for p in agent.directory.iterdir()] == ["A.tar.zst"]


@pytest.mark.acceptance(3)
def test_what_fetch_returns_is_on_disk_every_time(tmp_path: Path) -> None:
    """libtorrent says "seeding" before the data is written; `fetch` must not."""
    with central(tmp_path) as services:
        published = services.publish(size_bytes=20_000_000)
        for _ in range(8):
            with agents(tmp_path, 1, services.url) as (agent,):
                agent.swarm.fetch(agent.order(published))
                assert agent.has(published)
                shutil.rmtree(agent.directory)


def test_many_agents_give_to_each_other_and_every_byte_is_accounted(tmp_path: Path) -> None:
    with central(tmp_path, swarm={"upload_rate_bytes": 4_000_000}) as services:
        published = services.publish()
        size = published.package.archive.size_bytes
        with agents(tmp_path, 6, services.url) as nodes, ThreadPoolExecutor(6) as pool:
            traffic = list(pool.map(lambda a: a.swarm.fetch(a.order(published)), nodes))
            assert all(agent.has(published) for agent in nodes)
            assert all(t.total_bytes == size and t.web_bytes == 0 for t in traffic)
            assert services.seeder is not None
            sent = services.seeder.status()["upload_bytes"]
            from_seeder = sum(t.seeder_bytes for t in traffic)
            assert size <= from_seeder <= sent < 6 * size
            given = sum(agent.swarm.status()["upload_bytes"] for agent in nodes)
            assert sum(t.neighbour_bytes for t in traffic) <= given


def test_nobody_is_left_with_the_last_piece_missing(tmp_path: Path) -> None:
    with (
        central(tmp_path, swarm={"upload_rate_bytes": 250_000}) as services,
        agents(tmp_path, 1, services.url) as (elected,),
        agents(tmp_path, 3) as others,
    ):
        published = services.publish(size_bytes=800_000)
        nodes = [elected, *others]
        for node in nodes:
            node.swarm.open()

        def fetch(node: Agent) -> float:
            node.swarm.fetch(node.order(published))
            return time.monotonic()

        with ThreadPoolExecutor(len(nodes)) as pool:
            ended = pool.map(fetch, nodes)
            sessions = [node.swarm._open_session() for node in nodes]
            wait_until(lambda: all(session._torrents for session in sessions))
            (torrent,) = sessions[0]._torrents.values()
            for other in others:  # they know nobody else, so they have each piece just after it
                sessions[0].connect(torrent, other.address, other.swarm.port())
            first, *rest = ended
    # libtorrent would leave the one that completes, and come back to it after five seconds
    assert max(rest) - first < 3.0


def test_upload_limit_binds_on_local_peers(tmp_path: Path) -> None:
    rate = 1_000_000
    with (
        central(tmp_path, swarm={"upload_rate_bytes": rate}) as services,
        agents(tmp_path, 1, services.url) as (agent,),
    ):
        published = services.publish(size_bytes=1_500_000)
        start = time.monotonic()
        agent.swarm.fetch(agent.order(published))
        assert time.monotonic() - start > 0.7 * published.package.archive.size_bytes / rate


def test_download_limit_binds_on_local_peers(tmp_path: Path) -> None:
    rate = 1_000_000
    with central(tmp_path) as services, agents(tmp_path, 1, services.url, download_rate_bytes=rate) as (agent,):
        published = services.publish(size_bytes=1_500_000)
        start = time.monotonic()
        agent.swarm.fetch(agent.order(published))
        assert time.monotonic() - start > 0.7 * published.package.archive.size_bytes / rate


def fetch_half(agent_directory: Path, published: Published, url: str) -> Path:
    """Let an agent fetch about half of the archive and give up; return its directory."""
    with agents(agent_directory, 1, url, download_rate_bytes=2_000_000) as (agent,):
        order = agent.order(published)

        def half(done_bytes: int) -> None:
            if done_bytes > published.package.archive.size_bytes / 2:
                order.cancelled.set()

        order.progress = half
        with pytest.raises(SupplyError, match="cancelled"):
            agent.swarm.fetch(order)
        return agent.directory


@pytest.mark.acceptance(33)
def test_interrupted_download_goes_on_in_the_next_agent_from_what_was_verified(tmp_path: Path) -> None:
    with central(tmp_path) as services:
        published = services.publish(size_bytes=4_000_000)
        old = fetch_half(tmp_path, published, services.url)
        assert [p.name for p in old.iterdir()] == ["A.tar.zst.part"]
        with agents(tmp_path, 1, services.url) as (agent,):
            shutil.copy(old / "A.tar.zst.part", agent.directory)
            traffic = agent.swarm.fetch(agent.order(published))
            assert agent.has(published)
            assert traffic.total_bytes < 0.6 * published.package.archive.size_bytes


def test_damage_in_a_partial_file_is_found_and_repaired(tmp_path: Path) -> None:
    with central(tmp_path) as services:
        published = services.publish()
        with agents(tmp_path, 1, services.url) as (agent,):
            content = bytearray(published.path.read_bytes())
            content[1_000_000] ^= 1
            (agent.directory / "A.tar.zst.part").write_bytes(content)
            traffic = agent.swarm.fetch(agent.order(published))
            assert agent.has(published)
            assert 0 < traffic.total_bytes <= 65_536


def test_complete_partial_file_needs_no_peer(tmp_path: Path) -> None:
    with central(tmp_path, is_seeding=False) as services, agents(tmp_path, 1, services.url) as (agent,):
        published = services.publish()
        shutil.copy(published.path, agent.directory / "A.tar.zst.part")
        assert agent.swarm.fetch(agent.order(published)) == Traffic()
        assert agent.has(published)


def test_seeding_follows_a_file_that_the_cache_moved(tmp_path: Path) -> None:
    with central(tmp_path, is_seeding=False) as services, agents(tmp_path, 2, services.url) as (first, second):
        published = services.publish()
        staging, final = first.directory / "staging", first.directory / "final"
        staging.mkdir()
        archive = staging / "archive"
        shutil.copy(published.path, archive)
        first.swarm.seed(published.package, archive, published.torrent)
        staging.rename(final)
        first.swarm.seed(published.package, final / "archive", published.torrent)
        traffic = second.swarm.fetch(second.order(published))
        assert traffic == Traffic(neighbour_bytes=published.package.archive.size_bytes)
        assert second.has(published)


def test_fetched_file_is_given_on_after_it_was_moved_and_seeded(tmp_path: Path) -> None:
    with central(tmp_path) as services, agents(tmp_path, 2, services.url) as (first, second):
        published = services.publish()
        first.swarm.fetch(first.order(published))
        kept = first.directory / "kept"
        (first.directory / "A.tar.zst").rename(kept)
        first.swarm.seed(published.package, kept, published.torrent)
        assert services.seeder is not None
        services.seeder.close()
        traffic = second.swarm.fetch(second.order(published))
        assert traffic.neighbour_bytes == published.package.archive.size_bytes
        assert second.has(published)


def test_who_reads_from_us_notices_nothing_when_the_cache_moves_what_we_have(tmp_path: Path) -> None:
    size, rate = 2_000_000, 500_000
    with central(tmp_path) as services, agents(tmp_path, 1, services.url) as (second,):
        giver = Agent(tmp_path, services.url, upload_rate_bytes=rate)
        try:
            published = services.publish(size_bytes=size)
            giver.swarm.fetch(giver.order(published))
            assert services.seeder is not None
            services.seeder.close()
            with ThreadPoolExecutor(1) as pool:
                begun = time.monotonic()
                fetching = pool.submit(second.swarm.fetch, second.order(published))
                wait_until(lambda: giver.swarm.status()["upload_bytes"] > size / 4)
                moved = giver.directory.rename(tmp_path / "moved")
                wait_until(lambda: giver.swarm.status()["upload_bytes"] > size / 2)
                giver.swarm.seed(published.package, moved / "A.tar.zst", published.torrent)
                assert fetching.result() == Traffic(neighbour_bytes=size)
                # a refused block is asked for again only after a reconnection
                assert time.monotonic() - begun < size / rate + 3.0
        finally:
            giver.swarm.close()


def is_announced(agent: Agent) -> bool:
    """Whether the tracker answered for v1 and v2: libtorrent says "stopped" of nothing that it may not have begun."""
    (torrent,) = agent.swarm._open_session().native.get_torrents()
    return all(each["start_sent"] for t in torrent.trackers() for e in t["endpoints"] for each in e["info_hashes"])


def test_unseeded_archive_is_given_no_more(tmp_path: Path) -> None:
    with central(tmp_path, is_seeding=False) as services:
        published = services.publish()
        with agents(tmp_path, 2, services.url, no_peer_timeout_s=1.0, stall_timeout_s=1.0) as (first, second):
            copy = first.directory / "copy"
            shutil.copy(published.path, copy)
            first.swarm.seed(published.package, copy, published.torrent)
            assert first.swarm.status()["seeding"] == 1
            wait_until(lambda: is_announced(first))
            assert services.tracker.peer_count == 1
            first.swarm.unseed(published.package.key)
            first.swarm.unseed(published.package.key)
            assert first.swarm.status()["seeding"] == 0
            wait_until(lambda: services.tracker.peer_count == 0)  # else the next is sent there, in vain
            with pytest.raises(SupplyError, match="no peer"):
                second.swarm.fetch(second.order(published))


def test_fetched_file_that_nobody_keeps_is_forgotten(tmp_path: Path) -> None:
    with central(tmp_path) as services, agents(tmp_path, 1, services.url) as (agent,):
        published = services.publish()
        agent.swarm.fetch(agent.order(published))
        assert agent.swarm.status()["seeding"] == 1
        (agent.directory / "A.tar.zst").unlink()
        wait_until(lambda: agent.swarm.status()["seeding"] == 0)


def test_a_node_that_may_not_seed_offers_nothing(tmp_path: Path) -> None:
    with central(tmp_path) as services, agents(tmp_path, 1, services.url, is_seeding=False) as (agent,):
        published = services.publish()
        agent.swarm.fetch(agent.order(published))
        agent.swarm.seed(published.package, agent.directory / "A.tar.zst", published.torrent)
        assert agent.swarm.status()["seeding"] == 0


def test_wrong_file_is_not_seeded(tmp_path: Path) -> None:
    with central(tmp_path, is_seeding=False) as services, agents(tmp_path, 1, services.url) as (agent,):
        published = services.publish()
        short = agent.directory / "short"
        short.write_bytes(b"x")
        with pytest.raises(ScratchUnusable, match="1 bytes"):
            agent.swarm.seed(published.package, short, published.torrent)
        with pytest.raises(ScratchUnusable, match="No such file"):
            agent.swarm.seed(published.package, agent.directory / "absent", published.torrent)


def test_eight_slots_of_one_process_make_one_download(tmp_path: Path) -> None:
    with central(tmp_path) as services, agents(tmp_path, 1, services.url) as (agent,):
        published = services.publish()
        orders = [agent.order(published) for _ in range(8)]
        for number, order in enumerate(orders):
            order.target = agent.directory / f"slot{number}"
        with ThreadPoolExecutor(8) as pool:
            traffic = list(pool.map(agent.swarm.fetch, orders))
        assert sum(t.total_bytes for t in traffic) == published.package.archive.size_bytes
        assert all(o.target.read_bytes() == published.path.read_bytes() for o in orders)


def test_cancelled_fetch_returns_at_once_and_leaves_nothing_worthless(tmp_path: Path) -> None:
    with central(tmp_path, is_seeding=False) as services, agents(tmp_path, 1, services.url) as (agent,):
        published = services.publish()
        order = agent.order(published)
        threading.Timer(0.3, order.cancelled.set).start()
        start = time.monotonic()
        with pytest.raises(SupplyError, match="cancelled"):
            agent.swarm.fetch(order)
        assert time.monotonic() - start < 2
        assert list(agent.directory.iterdir()) == []


def test_deadline_ends_a_fetch_with_what_is_known_of_it(tmp_path: Path) -> None:
    with central(tmp_path, is_seeding=False) as services, agents(tmp_path, 1, services.url) as (agent,):
        published = services.publish()
        with pytest.raises(SupplyError, match=r"in time: 0 of 4000000 bytes, 0 peers"):
            agent.swarm.fetch(agent.order(published, timeout_s=0.5))


@pytest.mark.acceptance(26)
def test_torrent_that_was_not_signed_is_refused(tmp_path: Path) -> None:
    with central(tmp_path) as services, agents(tmp_path, 1, services.url) as (agent,):
        first, other = services.publish("A"), services.publish("B")
        order = agent.order(first)
        order.torrent = other.torrent
        with pytest.raises(DigestMismatch, match="signed is"):
            agent.swarm.fetch(order)
        order.torrent = b"nonsense"
        with pytest.raises(HostileArchive, match="refused"):
            agent.swarm.fetch(order)
        assert list(agent.directory.iterdir()) == []


@pytest.mark.acceptance(26)
@pytest.mark.parametrize("digest", [hashlib.sha256, hashlib.sha1], ids=["by its v2 infohash", "by its v1 infohash"])
def test_outside_torrents_are_refused_or_made_safe_even_where_they_are_signed(
    tmp_path: Path, material: Path, digest: Callable[[bytes], hashlib._Hash]
) -> None:
    """Each as if a manager had signed it blindly: in bounded time and memory, and nothing but one file is made."""
    files = sorted((material / "torrents").rglob("*.torrent"))
    assert len(files) > 60
    outcomes: Counter[str] = Counter()
    memory, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with agents(tmp_path, 1, no_peer_timeout_s=0.05, web_seed_after_s=0.0) as (agent,):
        for path in files:
            data = path.read_bytes()
            try:
                infohash = digest(bencode.raw_member(data, b"info")).hexdigest()
            except ValueError:
                infohash = digest(data).hexdigest()
            archive = Archive("a.tar.zst", "tar.zst", "0" * 64, 100_000, "", infohash)
            package = Package(PackageId("alice", "A", "1"), "any", archive, Tree(Blob("0" * 64, 1), 1, 1), 1)
            order = Order(package, data, (), agent.directory / "a.tar.zst", time.monotonic() + 5)
            with pytest.raises((HostileArchive, DigestMismatch, SupplyError)) as caught:
                agent.swarm.fetch(order)
            assert "\n" not in str(caught.value)
            outcomes[type(caught.value).__name__] += 1
        assert list(agent.directory.iterdir()) == []
    assert [p.name for p in tmp_path.iterdir()] == [agent.directory.name]
    assert outcomes["HostileArchive"] > 20 and outcomes["SupplyError"] >= 1
    assert time.monotonic() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 100 << 10  # kB


def test_trackers_and_web_seeds_inside_a_torrent_are_never_asked(tmp_path: Path) -> None:
    with central(tmp_path, is_seeding=False) as services, central(tmp_path, is_seeding=False) as trap:
        published = services.publish()
        top = bencode.decode(published.torrent)
        assert isinstance(top, dict)
        hostile = bencode.encode(
            {**top, b"announce": f"{trap.url}/announce", b"url-list": f"{trap.url}/archives/{published.package.key}/"}
        )
        with agents(tmp_path, 1, services.url, no_peer_timeout_s=1.5, stall_timeout_s=1.5) as (agent,):
            order = agent.order(published)
            order.torrent = hostile
            with pytest.raises(SupplyError, match="no peer"):
                agent.swarm.fetch(order)
        assert trap.tracker.announces == 0
        assert trap.services.http_bytes == 0
        assert services.tracker.announces > 0


@pytest.mark.acceptance(34)
def test_without_a_free_port_a_node_still_downloads(tmp_path: Path) -> None:
    with central(tmp_path) as services, agents(tmp_path, 1, services.url) as (first,):
        published = services.publish()
        first.swarm.fetch(first.order(published))
        port = first.swarm.port()
        with agents(tmp_path, 1, services.url, ports=f"{port}", own_address=first.address) as (second,):
            second.swarm.fetch(second.order(published))
            assert second.swarm.port() not in {0, port}
            assert second.has(published)
            assert any("may be unable to connect" in w for w in second.warnings)


def test_address_that_is_not_of_this_machine_is_a_clear_error(tmp_path: Path) -> None:
    with central(tmp_path) as services:
        published = services.publish()
        with (
            agents(tmp_path, 1, services.url, own_address="192.0.2.1") as (agent,),
            pytest.raises(NoFreePort, match="cannot listen"),
        ):
            agent.swarm.fetch(agent.order(published))


def test_leaving_is_quick_and_the_tracker_hears_of_it(tmp_path: Path) -> None:
    with central(tmp_path) as services, agents(tmp_path, 1, services.url) as (agent,):
        published = services.publish()
        agent.swarm.fetch(agent.order(published))
        wait_until(lambda: services.tracker.counts(published.package.key).by_site == {"": (1, 0)})
        start = time.monotonic()
        agent.swarm.close()
        agent.swarm.close()
        assert time.monotonic() - start < 3
        wait_until(lambda: services.tracker.counts(published.package.key).by_site == {})


def test_an_agent_that_fetches_nothing_opens_no_session(tmp_path: Path) -> None:
    with agents(tmp_path, 1) as (agent,):
        threads = threading.active_count()
        assert agent.swarm.status() == dict.fromkeys(agent.swarm.status(), 0.0)
        assert agent.swarm.port() == 0
        assert threading.active_count() == threads


def test_idle_seeds_cost_no_descriptors_each(tmp_path: Path) -> None:
    with agents(tmp_path, 1) as (agent,):
        for number in range(30):
            published = publish(tmp_path, f"P{number}", size_bytes=50_000)
            agent.swarm.seed(published.package, published.path, published.torrent)
            if not number:
                before = len(os.listdir("/proc/self/fd"))
        assert len(os.listdir("/proc/self/fd")) <= before + 3
