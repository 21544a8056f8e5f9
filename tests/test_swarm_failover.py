"""Nothing of the swarm is there only once: trackers, seeders, web servers and peers stand in for each other."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobagent.central.services.tracker import Policy
from jobagent.contracts import Context
from jobagent.errors import SupplyError
from jobagent.events import Events
from jobagent_swarm.swarm import Swarm
from tests.swarm_field import Agent, Central, Published, address, agents, central, configuration, wait_until

pytestmark = pytest.mark.swarm
SIZE = 4_000_000


def also(services: Central, published: Published) -> None:
    """Let a second centre over the same directory have the package too."""
    url = f"{services.url}/archives/{published.package.key}/{published.package.archive.file_name}"
    services.catalogue.add(published.package, torrent=published.torrent, urls=[url])
    infohash = bytes.fromhex(published.package.archive.infohash_v1)
    wait_until(lambda: infohash in (services.watch.tracked() or {}))
    wait_until(lambda: services.seeder is None or published.package.key in services.seeder.seeded())


def end(services: Central) -> None:
    """Be gone, as a machine that lost power."""
    services.web.stop()
    if services.seeder is not None:
        services.seeder.close()


@pytest.mark.acceptance(9, 10)
def test_second_centre_carries_on_when_the_first_dies_at_half(tmp_path: Path) -> None:
    limited = {"upload_rate_bytes": 2_000_000}
    with central(tmp_path, swarm=limited) as first, central(tmp_path, swarm=limited) as second:
        published = first.publish(size_bytes=SIZE)
        also(second, published)
        trackers = [f"{first.url}/announce", f"{second.url}/announce"]
        with agents(tmp_path, 3, trackers=trackers) as nodes, ThreadPoolExecutor(3) as pool:
            orders = [agent.order(published) for agent in nodes]
            once = threading.Event()

            def progress(done_bytes: int) -> None:
                if done_bytes > SIZE / 2 and not once.is_set():
                    once.set()
                    end(first)

            orders[0].progress = progress
            traffic = list(pool.map(lambda a, o: a.swarm.fetch(o), nodes, orders))
            assert once.is_set()
            assert all(agent.has(published) for agent in nodes)
            assert all(t.total_bytes < 1.2 * SIZE for t in traffic)


def silent_tracker() -> tuple[socket.socket, str]:
    """A tracker that takes connections and never answers."""
    listener = socket.create_server((address(), 0))
    host, port = listener.getsockname()
    return listener, f"http://{host}:{port}/announce"


@pytest.mark.acceptance(11)
def test_dead_and_silent_trackers_in_the_list_cost_no_time(tmp_path: Path) -> None:
    listener, silent = silent_tracker()
    with listener, central(tmp_path) as services:
        published = services.publish(size_bytes=SIZE)
        dead = f"http://{address()}:9/announce"
        with agents(tmp_path, 1, trackers=[dead, silent, f"{services.url}/announce"]) as (agent,):
            start = time.monotonic()
            agent.swarm.fetch(agent.order(published))
            assert agent.has(published)
            assert time.monotonic() - start < 4


def test_restarted_tracker_knows_the_swarm_within_a_short_interval(tmp_path: Path) -> None:
    """A new process with an empty memory on the same port, while a download runs."""
    quick = Policy(busy_interval_s=2, seeding_interval_s=2, idle_interval_s=2, min_interval_s=1)
    slow = {"upload_rate_bytes": 300_000}
    with central(tmp_path, swarm=slow, policy=quick) as first:
        published = first.publish(size_bytes=SIZE)
        with agents(tmp_path, 2, first.url) as nodes, ThreadPoolExecutor(2) as pool:
            fetches = [pool.submit(agent.swarm.fetch, agent.order(published, timeout_s=60)) for agent in nodes]
            wait_until(lambda: first.tracker.peer_count == 2)
            first.web.stop()
            with central(
                tmp_path, policy=quick, port=first.web.port, own_address=first.address, is_seeding=False
            ) as again:
                also(again, published)
                assert again.tracker.peer_count == 0
                start = time.monotonic()
                wait_until(lambda: again.tracker.peer_count == 2, 15)
                assert time.monotonic() - start < 10
                assert not any(f.done() for f in fetches), "the swarm was to be under way"
                with agents(tmp_path, 1, again.url) as (late,):  # and tells newcomers of those who were there
                    late.swarm.fetch(late.order(published, timeout_s=60))
                    assert late.has(published)
                assert all(f.result().total_bytes >= SIZE for f in fetches)


def introduce(one: Agent, other: Agent, published: Published) -> None:
    """Let one agent know of the other, as if a tracker had told it."""
    one.swarm.open()
    session = one.swarm._session
    assert session is not None
    wait_until(lambda: bool(session._torrents))
    session.connect(next(iter(session._torrents.values())), other.address, other.swarm.port())


def test_peers_tell_each_other_of_peers_while_no_tracker_answers(tmp_path: Path) -> None:
    """Two who know only a third stay a swarm when that one leaves."""
    with central(tmp_path, is_seeding=False) as services:
        published = services.publish(size_bytes=SIZE)
    gone = services.url
    with agents(tmp_path, 3, gone, upload_rate_bytes=400_000, no_peer_timeout_s=60.0) as (seed, middle, end_of_line):
        seed.swarm.seed(published.package, published.path, published.torrent)
        leaving = middle.order(published)
        with ThreadPoolExecutor(2) as pool:
            pool.submit(_until_cancelled, middle, leaving)
            wanted = pool.submit(end_of_line.swarm.fetch, end_of_line.order(published, timeout_s=90))
            introduce(middle, seed, published)
            introduce(end_of_line, middle, published)
            wait_until(lambda: end_of_line.swarm.status()["peers"] == 2, 80)
            leaving.cancelled.set()
            middle.swarm.close()
            wanted.result()
        assert end_of_line.has(published)


def _until_cancelled(agent: Agent, order: object) -> None:
    with pytest.raises(SupplyError, match="cancelled"):
        agent.swarm.fetch(order)  # type: ignore[arg-type]


def test_a_swarm_lives_on_ipv6_alone(tmp_path: Path) -> None:
    """BEP 7: peers are listed in `peers6`, and give to each other when the seeder is gone."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no ::1")
    with central(tmp_path, own_address="::1") as services:
        published = services.publish()
        assert services.url.startswith("http://[::1]")
        with agents(tmp_path, 2, services.url, own_address="::1") as (first, second):
            first.swarm.fetch(first.order(published))
            assert services.seeder is not None
            services.seeder.close()
            traffic = second.swarm.fetch(second.order(published))
            assert traffic.neighbour_bytes == published.package.archive.size_bytes
            assert second.has(published)


# Web servers by policy


def test_racing_web_server_gives_its_share_and_no_more(tmp_path: Path) -> None:
    with central(tmp_path, swarm={"upload_rate_bytes": 1_500_000}) as services:
        published = services.publish(size_bytes=4 * SIZE)
        urls = tuple(services.catalogue.urls(published.package))
        with agents(tmp_path, 1, services.url, web_seeds="race", web_seed_share=0.25) as (agent,):
            traffic = agent.swarm.fetch(agent.order(published, urls=urls, timeout_s=60))
            assert agent.has(published)
            assert 0.2 * 4 * SIZE < traffic.web_bytes < 0.55 * 4 * SIZE, traffic  # one request may be on its way
            assert traffic.seeder_bytes > 0.4 * 4 * SIZE
            assert agent.warnings == []


def test_web_server_that_never_helps_is_not_asked(tmp_path: Path) -> None:
    with central(tmp_path, is_seeding=False) as services:
        published = services.publish(size_bytes=SIZE)
        urls = tuple(services.catalogue.urls(published.package))
        options = {"web_seeds": "never", "web_seed_after_s": 0.2, "no_peer_timeout_s": 1.5}
        with agents(tmp_path, 1, services.url, **options) as (agent,):
            with pytest.raises(SupplyError, match="no peer within"):
                agent.swarm.fetch(agent.order(published, urls=urls))
            assert services.services.http_bytes == 0


@pytest.mark.acceptance(33)
def test_same_agent_goes_on_from_what_was_verified(tmp_path: Path) -> None:
    """Its network is cut for longer than it waits; the next attempt of the same agent takes up the rest."""
    with central(tmp_path, swarm={"upload_rate_bytes": 2_000_000}) as services:
        published = services.publish(size_bytes=SIZE)
        with agents(tmp_path, 1) as (agent,):
            config = configuration(agent.address, f"{services.url}/announce", stall_timeout_s=1.5)
            swarm = Swarm(Context(config, tmp_path, Events(), ""))
            cut = agent.order(published)

            def progress(done_bytes: int) -> None:
                if done_bytes > SIZE / 2 and services.seeder is not None:
                    end(services)

            cut.progress = progress
            try:
                with pytest.raises(SupplyError, match="no progress for"):
                    swarm.fetch(cut)
                with central(tmp_path, port=services.web.port, own_address=services.address) as again:
                    also(again, published)
                    traffic = swarm.fetch(agent.order(published))
                assert agent.has(published)
                assert traffic.total_bytes < 0.55 * SIZE
            finally:
                swarm.close()
