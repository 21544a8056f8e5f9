"""What a site may say about its links: limits by time and by link, ports, addresses, encryption, peer exchange."""

from __future__ import annotations

import datetime
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import libtorrent as lt
import pytest

from jobagent.errors import ConfigurationError, SupplyError
from jobagent_swarm.limits import Limits, Schedule, networks
from jobagent_swarm.options import Options, Role
from jobagent_swarm.session import Session, load
from jobagent_swarm.settings import Encryption, SwarmSettings
from jobagent_swarm.slots import MERE_TAKERS, first_slots, slots_by_givers, usual_slots
from tests.swarm_field import Agent, Published, address, agents, central, wait_until

SIZE = 1_500_000
MONDAY = datetime.datetime(2026, 11, 23)


def at(day: int, text: str) -> datetime.datetime:
    """A time in the week of that Monday."""
    return datetime.datetime.combine(MONDAY + datetime.timedelta(days=day), datetime.time.fromisoformat(text))


@pytest.mark.parametrize(
    ("entry", "inside", "outside"),
    [
        ("08:00-18:00 upload=7", [(0, "08:00"), (6, "17:59")], [(0, "07:59"), (6, "18:00")]),
        ("Mon-Fri 08:00-18:00 upload=7", [(0, "12:00"), (4, "12:00")], [(5, "12:00"), (6, "12:00")]),
        ("Sat,Sun 00:00-23:59 upload=7", [(5, "12:00"), (6, "00:00")], [(4, "23:59"), (0, "00:00")]),
        ("Fri-Mon 10:00-11:00 upload=7", [(4, "10:30"), (6, "10:30"), (0, "10:30")], [(1, "10:30"), (3, "10:30")]),
        ("Fri 22:00-06:00 upload=7", [(4, "22:00"), (5, "05:59")], [(4, "05:59"), (5, "06:00"), (5, "22:00")]),
    ],
)
def test_period_holds_on_its_days_and_hours(
    entry: str, inside: list[tuple[int, str]], outside: list[tuple[int, str]]
) -> None:
    schedule = Schedule.of(SwarmSettings(upload_rate_bytes=1, schedule=(entry,)))
    assert {schedule.at(at(*when)).upload_bytes for when in inside} == {7}
    assert {schedule.at(at(*when)).upload_bytes for when in outside} == {1}


def test_first_period_that_fits_holds_and_what_it_leaves_out_stays() -> None:
    entries = ("12:00-13:00 download=5", "08:00-18:00 upload=7 download=9")
    schedule = Schedule.of(SwarmSettings(upload_rate_bytes=1, download_rate_bytes=2, schedule=entries))
    assert schedule.at(at(0, "12:30")) == Limits(1, 5)
    assert schedule.at(at(0, "13:30")) == Limits(7, 9)
    assert schedule.at(at(0, "18:30")) == Limits(1, 2)


@pytest.mark.parametrize("entry", ["", "8:00-18:00", "Mon-Foo 08:00-18:00", "25:00-26:00", "08:00-18:00 upload=-1"])
def test_bad_entry_of_a_schedule_is_named(entry: str) -> None:
    with pytest.raises(ConfigurationError, match="schedule has") as caught:
        Schedule.of(SwarmSettings(schedule=(entry,)))
    assert repr(entry) in str(caught.value)


def test_bad_network_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"local_networks has '10\.0\.0\.1/8'"):
        networks(["10.0.0.1/8"])


@pytest.mark.swarm
def test_running_session_follows_its_schedule() -> None:
    now = [at(0, "07:59")]
    settings = SwarmSettings(upload_rate_bytes=1000, schedule=("08:00-18:00 upload=50000 download=60000",))
    session = Session(Options(Role.AGENT, settings, (address(),)), now=lambda: now[0])
    try:
        assert session.native.get_settings()["upload_rate_limit"] == 1000
        now[0] = at(0, "08:00")
        wait_until(lambda: session.native.get_settings()["upload_rate_limit"] == 50000)
        assert session.native.get_settings()["download_rate_limit"] == 60000
        now[0] = at(0, "18:00")
        wait_until(lambda: session.native.get_settings()["upload_rate_limit"] == 1000)
        assert session.native.get_settings()["download_rate_limit"] == 0
    finally:
        session.close()


def test_slots_follow_pieces_limit_and_givers() -> None:
    assert [usual_slots(pieces) for pieces in (1, 59, 75, 1000)] == [4, 4, 5, 66]
    assert [first_slots(489, 32_768, limit) for limit in (0, 1, 30_000, 60_000, 1_000_000)] == [32, 2, 2, 3, 32]
    assert [slots_by_givers(24, givers) for givers in (0, 2, 7, 8, 30)] == [2, 4, 9, 24, 24]


@pytest.mark.swarm
def test_few_are_served_at_once_while_no_package_has_many_pieces(tmp_path: Path) -> None:
    slots: list[int] = []
    with central(tmp_path, is_seeding=False) as services:
        small, large = (services.publish(name, size_bytes=size) for name, size in (("s", 300_000), ("l", 6_000_000)))
        giver = Agent(tmp_path, services.url)
        try:
            for act in (
                lambda: giver.swarm.seed(small.package, small.path, small.torrent),
                lambda: giver.swarm.seed(large.package, large.path, large.torrent),
                lambda: giver.swarm.unseed(large.package.key),
            ):
                act()
                slots.append(giver.swarm._open_session().native.get_settings()["unchoke_slots_limit"])
        finally:
            giver.swarm.close()
    assert slots == [4, 6_000_000 // 32_768 // 15, 4]


@pytest.mark.swarm
@pytest.mark.parametrize("upload_rate_bytes", [20_000, 0])
def test_who_has_few_pieces_and_a_low_limit_serves_fewer_at_once(tmp_path: Path, upload_rate_bytes: int) -> None:
    slots: list[int] = []
    with central(tmp_path, swarm={"upload_rate_bytes": 400_000}) as services:
        published = services.publish(size_bytes=3_000_000)
        with (
            agents(tmp_path, 1, services.url, upload_rate_bytes=upload_rate_bytes) as (taker,),
            ThreadPoolExecutor() as pool,
        ):
            session = taker.swarm._open_session().native
            fetched = pool.submit(taker.swarm.fetch, taker.order(published))
            wait_until(lambda: session.get_settings()["unchoke_slots_limit"] != 24)
            while not fetched.done():
                if (now := session.get_settings()["unchoke_slots_limit"]) not in slots:
                    slots.append(now)
                time.sleep(0.02)
            fetched.result()
        assert taker.has(published)
    assert slots[0] == (2 if upload_rate_bytes else 3_000_000 // 32_768 // 15)


@pytest.mark.swarm
def test_who_gets_something_from_few_serves_those_and_two_who_only_take(tmp_path: Path) -> None:
    with central(tmp_path, swarm={"upload_rate_bytes": 1_000_000}) as services:
        published = services.publish(size_bytes=6_000_000)
        with agents(tmp_path, 2, services.url) as takers, ThreadPoolExecutor() as pool:
            fetches = [pool.submit(t.swarm.fetch, t.order(published)) for t in takers]
            sessions = [t.swarm._open_session().native for t in takers]
            given = 2  # by the seeder and the other
            wait_until(lambda: all(s.get_settings()["unchoke_slots_limit"] == given + MERE_TAKERS for s in sessions))
            assert not any(fetch.done() for fetch in fetches)
            for fetch in fetches:
                fetch.result()
            usual = 6_000_000 // 32_768 // 15
            wait_until(lambda: all(s.get_settings()["unchoke_slots_limit"] == usual for s in sessions))


@pytest.mark.swarm
def test_dealing_seeder_follows_its_schedule(tmp_path: Path) -> None:
    always = {"schedule": ["00:00-23:59 upload=300000", "23:59-00:00 upload=300000"]}
    with central(tmp_path, swarm=always) as services, agents(tmp_path, 1, services.url) as (agent,):
        published = services.publish(size_bytes=SIZE)
        begun = time.monotonic()
        agent.swarm.fetch(agent.order(published))
        assert time.monotonic() - begun > 0.8 * SIZE / 300_000


def seconds(giver: Agent, taker: Agent, published: Published) -> float:
    """How long a fetch from one peer takes."""
    giver.swarm.seed(published.package, published.path, published.torrent)
    begun = time.monotonic()
    taker.swarm.fetch(taker.order(published))
    assert taker.has(published)
    return time.monotonic() - begun


@pytest.mark.swarm
def test_limit_is_for_peers_elsewhere_where_the_site_has_networks(tmp_path: Path) -> None:
    with central(tmp_path, is_seeding=False) as services, agents(tmp_path, 2, services.url) as (near, far):
        published = services.publish(size_bytes=SIZE)
        giver = Agent(tmp_path, services.url, upload_rate_bytes=250_000, local_networks=[f"{near.address}/32"])
        try:
            unhindered = seconds(giver, near, published)
            near.swarm.close()  # the other one shall have the limited giver only
            wait_until(lambda: services.tracker.peer_count == 1)
            limited = seconds(giver, far, published)
        finally:
            giver.swarm.close()
    assert limited > 0.8 * SIZE / 250_000 > unhindered


@pytest.mark.swarm
def test_own_site_has_a_limit_of_its_own(tmp_path: Path) -> None:
    with central(tmp_path, is_seeding=False) as services, agents(tmp_path, 1, services.url) as (taker,):
        published = services.publish(size_bytes=SIZE)
        networks = [f"{taker.address}/32"]
        giver = Agent(tmp_path, services.url, local_networks=networks, local_upload_rate_bytes=500_000)
        try:
            assert seconds(giver, taker, published) > 0.8 * SIZE / 500_000
        finally:
            giver.swarm.close()


@pytest.mark.swarm
def test_swarm_over_ipv6(tmp_path: Path) -> None:
    with central(tmp_path, own_address="::1") as services:
        published = services.publish(size_bytes=SIZE)
        agent = Agent(tmp_path, services.url, own_address="::1")
        try:
            traffic = agent.swarm.fetch(agent.order(published))
            assert agent.has(published) and traffic.seeder_bytes == SIZE
        finally:
            agent.swarm.close()


@pytest.mark.swarm
@pytest.mark.parametrize(
    ("giver_says", "taker_says", "works"),
    [
        (Encryption.REQUIRE, Encryption.REQUIRE, True),
        (Encryption.ACCEPT, Encryption.REQUIRE, True),
        (Encryption.ACCEPT, Encryption.OFF, True),
        (Encryption.REQUIRE, Encryption.OFF, False),
        (Encryption.OFF, Encryption.REQUIRE, False),
    ],
)
def test_encryption_policies_meet(tmp_path: Path, giver_says: str, taker_says: str, works: bool) -> None:
    with central(tmp_path, is_seeding=False) as services:
        published = services.publish(size_bytes=200_000)
        patience_s = 30.0 if works else 2.0
        giver = Agent(tmp_path, services.url, encryption=giver_says)
        taker = Agent(
            tmp_path,
            services.url,
            encryption=taker_says,
            stall_timeout_s=patience_s,
            no_peer_timeout_s=patience_s,
        )
        try:
            if works:
                seconds(giver, taker, published)
            else:
                with pytest.raises(SupplyError):
                    seconds(giver, taker, published)
        finally:
            taker.swarm.close()
            giver.swarm.close()


@pytest.mark.swarm
def test_sessions_of_one_address_share_a_port_range_and_listen_nowhere_else(tmp_path: Path) -> None:
    own = address()
    with socket.create_server((own, 0)) as probe:
        first = probe.getsockname()[1]
    if first > 65000:
        first -= 1000
    options = [Options(Role.AGENT, SwarmSettings(ports=f"{first}-{first + 9}"), (own,)) for _ in range(2)]
    sessions = [Session(o) for o in options]
    try:
        ports = [session.port(5.0) for session in sessions]
        assert len(set(ports)) == 2 and all(first <= port <= first + 9 for port in ports)
        for port in ports:
            socket.create_connection((own, port), timeout=5).close()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((address(), port), timeout=5)
    finally:
        for session in sessions:
            session.close()


@pytest.mark.swarm
@pytest.mark.parametrize(("has_tracker", "has_dead_one", "is_told"), [(1, 1, False), (0, 1, True), (0, 0, True)])
def test_peers_tell_of_peers_only_while_no_tracker_answers(
    tmp_path: Path, has_tracker: bool, has_dead_one: bool, is_told: bool
) -> None:
    heard: set[str] = set()

    def watch(alert: lt.alert) -> None:
        if isinstance(alert, lt.tracker_reply_alert | lt.tracker_error_alert):
            heard.add(alert.url)

    with central(tmp_path) as services:
        published = services.publish(size_bytes=SIZE)
        trackers = [f"{services.url}/announce"] * has_tracker + [f"http://{address()}:9/announce"] * has_dead_one
        session = Session(Options(Role.AGENT, SwarmSettings(), (address(),), tuple(trackers)))
        try:
            parameters = load(published.torrent, published.package.archive.infohash_v2)
            torrent = session.add(parameters, tmp_path / "part", watch)
            wait_until(lambda: heard == set(trackers))
            wait_until(lambda: bool(torrent.handle.flags() & lt.torrent_flags.disable_pex) is not is_told)
        finally:
            session.close()
