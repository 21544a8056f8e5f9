"""The site seeder: brings what its site uses, keeps it within its quota, and holds no trust."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import http.server
import ipaddress
import json
import os
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobagent.central.services.demand import Demand
from jobagent.central.services.siteseeder import SiteSeeder
from jobagent.central.services.siteshelf import SiteShelf
from jobagent.central.services.tracker import Sites
from jobagent.central.services.watch import CatalogueWatch
from jobagent.errors import ConfigurationError, DiskFull
from jobagent.model import Archive, PackageState
from tests.swarm_field import Agent, Central, address, agents, central, configuration, networks, wait_until

SIZE = 2_000_000
HERE = networks(HERE="127.0.0.0/8")


@contextlib.contextmanager
def site_seeder(
    directory: Path, services: Central, *, quota_bytes: int = 10 * SIZE, poll_s: float = 0.1
) -> Iterator[SiteSeeder]:
    """Run one for the site of all loopback addresses."""
    shelf = SiteShelf(directory, quota_bytes)
    watch = CatalogueWatch(services.catalogue, period_s=0.2, poll_s=0.05)
    seeder = SiteSeeder(shelf, watch, configuration(address(), f"{services.url}/announce"), poll_s=poll_s)
    seeder.start()
    watch.start()
    try:
        yield seeder
    finally:
        watch.stop()
        seeder.close()
        shelf.close()


@pytest.mark.swarm
def test_what_a_node_uses_is_kept_for_the_next_when_center_and_first_node_are_gone(tmp_path: Path) -> None:
    with central(tmp_path, sites=HERE) as services, site_seeder(tmp_path / "site", services) as seeder:
        published = services.publish(size_bytes=SIZE)
        services.publish("Unused", size_bytes=SIZE)
        with agents(tmp_path, 1, services.url) as (first,):
            first.swarm.fetch(first.order(published))
            wait_until(lambda: published.package.key in seeder.seeded())
        assert services.seeder is not None
        services.seeder.close()
        with agents(tmp_path, 1, services.url) as (second,):
            traffic = second.swarm.fetch(second.order(published))
            assert second.has(published)
        assert traffic.seeder_bytes == SIZE
        assert list(seeder.seeded()) == [published.package.key]
        assert seeder.status()["kept_bytes"] < 1.1 * SIZE


@pytest.mark.swarm
def test_longest_unused_goes_for_what_is_used_now(tmp_path: Path) -> None:
    with (
        central(tmp_path, sites=HERE) as services,
        site_seeder(tmp_path / "site", services, quota_bytes=int(2.5 * SIZE)) as seeder,
    ):
        packages = [services.publish(name, size_bytes=SIZE) for name in "ABC"]
        for published in packages:
            with agents(tmp_path, 1, services.url) as (agent,):
                agent.swarm.fetch(agent.order(published))
                wait_until(lambda key=published.package.key: key in seeder.seeded())  # type: ignore[misc]
        assert set(seeder.seeded()) == {p.package.key for p in packages[1:]}
        assert {p.name for p in (tmp_path / "site" / "archives").iterdir()} == set(seeder.seeded())


@pytest.mark.swarm
def test_what_is_used_now_is_never_dropped_and_too_small_a_quota_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        central(tmp_path, sites=HERE) as services,
        site_seeder(tmp_path / "site", services, quota_bytes=int(1.5 * SIZE)) as seeder,
        agents(tmp_path, 2, services.url) as (first, second),
    ):
        used, other = (services.publish(name, size_bytes=SIZE) for name in "AB")
        first.swarm.fetch(first.order(used))
        wait_until(lambda: used.package.key in seeder.seeded())
        second.swarm.fetch(second.order(other))
        wait_until(lambda: "give --quota more" in caplog.text)
        assert list(seeder.seeded()) == [used.package.key]


@pytest.mark.swarm
def test_banned_and_damaged_archives_leave_the_site(tmp_path: Path) -> None:
    with central(tmp_path, sites=HERE) as services, agents(tmp_path, 1, services.url) as (agent,):
        good, bad = (services.publish(name, size_bytes=SIZE) for name in "AB")
        kept = [tmp_path / "site" / "archives" / p.package.key / p.path.name for p in (good, bad)]
        with site_seeder(tmp_path / "site", services) as seeder:
            for published in (good, bad):
                agent.swarm.fetch(agent.order(published))
            wait_until(lambda: len(seeder.seeded()) == 2)
        kept[0].write_bytes(b"x" * SIZE)  # while it does not run
        services.catalogue.add(dataclasses.replace(bad.package, state=PackageState.BANNED))
        with site_seeder(tmp_path / "site", services) as seeder:
            wait_until(lambda: not kept[1].parent.exists())
            wait_until(lambda: kept[0].exists() is False or kept[0].read_bytes() == good.path.read_bytes())
            assert bad.package.key not in seeder.seeded()


def archive(name: str, size_bytes: int) -> Archive:
    return Archive(f"{name}.tar.zst", "tar.zst", name * 64, size_bytes, "", "")


def test_shelf_drops_the_longest_unused_first_and_nothing_that_is_needed(tmp_path: Path) -> None:
    shelf = SiteShelf(tmp_path, 300_000)
    for at, name in enumerate("abc"):
        shelf.used(name * 64)
        shelf.path_of(archive(name, 0)).write_bytes(bytes(90_000))
        os.utime(shelf.path_of(archive(name, 0)).parent, (at, at))
    new = archive("d", 100_000)
    assert shelf.plan(archive("d", 10_000), ()) == []
    assert shelf.plan(new, ()) == ["a" * 64]
    assert shelf.plan(new, {"a" * 64}) == ["b" * 64]
    with pytest.raises(DiskFull, match="give --quota more"):
        shelf.plan(new, {"a" * 64, "b" * 64, "c" * 64})
    shelf.close()


def test_two_seeders_do_not_share_a_directory(tmp_path: Path) -> None:
    shelf = SiteShelf(tmp_path, 1)
    with pytest.raises(ConfigurationError, match="another site seeder"):
        SiteShelf(tmp_path, 1)
    shelf.close()
    SiteShelf(tmp_path, 1).close()


def wanted(url: str, own_address: str) -> object:
    """What the tracker says at once to who asks from an address."""
    place = url.removeprefix("http://")
    with contextlib.closing(http.client.HTTPConnection(place, timeout=5, source_address=(own_address, 0))) as asking:
        asking.request("GET", "/wanted")
        return json.load(asking.getresponse())


@pytest.mark.swarm
def test_tracker_tells_a_site_what_it_wants_and_nobody_else(tmp_path: Path) -> None:
    own = address()
    sites = Sites({"HERE": [ipaddress.ip_network(f"{own}/32")]})
    with central(tmp_path, sites=sites) as services:
        published = services.publish(size_bytes=SIZE)
        agent = Agent(tmp_path, services.url, own_address=own)
        try:
            assert wanted(services.url, own) == {"swarms": []}
            agent.swarm.fetch(agent.order(published))
            assert wanted(services.url, own) == {"swarms": [published.package.key]}
            assert "no site of 127.0.0.1 is known" in str(wanted(services.url, "127.0.0.1"))
            said: list[str] = []
            stranger = Demand(
                [f"{services.url}/announce"],
                "127.0.0.1",
                retry_s=0.1,
                say=lambda about, message: said.append(message),
            )
            stranger.start()
            try:
                wait_until(lambda: any("no site of 127.0.0.1 is known" in message for message in said))
                assert stranger.wanted() == []
            finally:
                stranger.close()
        finally:
            agent.swarm.close()
        assert wanted(services.url, own) == {"swarms": []}
        with urllib.request.urlopen(f"{services.url}/wanted?k={'x' * 3000}") as answer:
            assert "more than" in json.load(answer)["failure"]


@pytest.mark.swarm
def test_a_seeder_that_listens_fetches_at_once_and_its_site_takes_nothing_else(tmp_path: Path) -> None:
    with central(tmp_path, sites=HERE) as services:
        published = services.publish(size_bytes=SIZE)
        with (
            site_seeder(tmp_path / "site", services, poll_s=600.0) as seeder,
            agents(tmp_path, 2, services.url) as nodes,
        ):
            wait_until(lambda: services.tracker.listens("HERE"))
            for node in nodes:
                node.swarm.fetch(node.order(published))
            wait_until(lambda: published.package.key in seeder.seeded())
        assert services.seeder is not None
        assert sum(services.seeder.sent().values()) < 1.2 * SIZE


@pytest.mark.swarm
def test_an_answer_is_held_back_until_the_site_wants_more(tmp_path: Path) -> None:
    with central(tmp_path, sites=HERE) as services:
        published = services.publish(size_bytes=SIZE)

        def ask(tag: str, hold_s: int) -> tuple[float, dict[str, object]]:
            start = time.monotonic()
            with urllib.request.urlopen(f"{services.url}/wanted?tag={tag}&hold={hold_s}", timeout=30) as answer:
                return time.monotonic() - start, json.load(answer)

        seconds, first = ask("", 10)
        assert seconds < 1 and first["swarms"] == []
        seconds, same = ask(str(first["tag"]), 1)
        assert seconds >= 1 and same == first
        with agents(tmp_path, 1, services.url) as (agent,), ThreadPoolExecutor(1) as pool:
            held = pool.submit(ask, str(first["tag"]), 15)
            wait_until(lambda: services.tracker.listens("HERE"))
            agent.swarm.fetch(agent.order(published))
            seconds, answer = held.result(20)
            assert seconds < 10 and answer["swarms"] == [published.package.key] and answer["tag"] != first["tag"]
            held = pool.submit(ask, str(answer["tag"]), 15)
            time.sleep(0.5)
            start = time.monotonic()
            services.web.stop()
            held.result(20)
            assert time.monotonic() - start < 1.5  # nobody is kept waiting by an answer that is held back


def test_a_tracker_that_holds_nothing_back_is_asked_now_and_then(tmp_path: Path) -> None:
    asked = []

    class Plain(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"swarms": ["a" * 64]}).encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Plain) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        said: list[str] = []
        tracker = f"http://127.0.0.1:{server.server_address[1]}/announce?k=token"
        demand = Demand([tracker], "", retry_s=0.5, say=lambda about, message: said.append(message))
        demand.start()
        try:
            wait_until(lambda: len(asked) >= 3)
            assert demand.wanted() == ["a" * 64]
        finally:
            demand.close()
            server.shutdown()
        assert asked[0].startswith("/wanted?k=token&") and not any(said)
