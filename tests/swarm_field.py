"""A real swarm on loopback for tests: packages with bytes, central services in this process, agents as they run."""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from jobagent.central.packaging import torrents
from jobagent.central.services.dealer import Mode
from jobagent.central.services.seeder import CatalogueSeeder
from jobagent.central.services.tracker import Policy, Sites, Tracker
from jobagent.central.services.watch import CatalogueWatch
from jobagent.central.services.web import Services, build
from jobagent.central.services.webserver import WebServer
from jobagent.config import Config
from jobagent.contracts import Context, Order
from jobagent.events import Events
from jobagent.model import Archive, Blob, Package, PackageId, Tree
from jobagent.testing.catalogue import FakeCatalogue
from jobagent_swarm.options import Role
from jobagent_swarm.settings import SwarmSettings
from jobagent_swarm.swarm import Swarm

_numbers = itertools.count(2)
_first = os.getpid() % 250  # test processes that run at the same time use different addresses


def address() -> str:
    """A loopback address that no other agent of this process has."""
    number = next(_numbers)
    return f"127.{100 + _first // 25}.{(_first % 25) * 10 + number // 250}.{number % 250 + 1}"


@dataclass(frozen=True, slots=True)
class Published:
    """A package, its torrent, and the file that the catalogue directory holds."""

    package: Package
    torrent: bytes
    path: Path


def publish(directory: Path, name: str = "A", *, size_bytes: int = 4_000_000, seed: int = 1) -> Published:
    """Put an archive of random bytes into a catalogue directory."""
    content = random.Random(f"{name} {seed}").randbytes(size_bytes)
    digest = hashlib.sha256(content).hexdigest()
    path = directory / "archives" / digest / f"{name}.tar.zst"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    torrent = torrents.create(path, path.name)
    (directory / "torrents").mkdir(exist_ok=True)
    (directory / "torrents" / f"{torrent.infohash_v2}.torrent").write_bytes(torrent.data)
    archive = Archive(path.name, "tar.zst", digest, size_bytes, torrent.infohash_v1, torrent.infohash_v2)
    package = Package(PackageId("alice", name, "1"), "Linux-x86_64", archive, Tree(Blob(digest, 1), 1, 1), 1)
    return Published(package, torrent.data, path)


class Central:
    """Catalogue files, tracker and seeder in this process, over a catalogue in memory."""

    def __init__(
        self,
        directory: Path,
        *,
        is_seeding: bool = True,
        sites: Sites | None = None,
        policy: Policy | None = None,
        swarm: dict[str, object] | None = None,
        port: int = 0,
        own_address: str = "",
        mode: Mode = Mode.DEFAULT,
    ) -> None:
        self.directory = directory
        self.address = own_address or address()
        self.catalogue = FakeCatalogue()
        self.watch = CatalogueWatch(self.catalogue, period_s=0.2, poll_s=0.05, with_legacy=True)
        self.seeder: CatalogueSeeder | None = None
        if is_seeding:
            config = configuration(self.address, "", **(swarm or {}))
            self.seeder = CatalogueSeeder(directory, config, mode=mode)
            self.seeder.follow(self.watch)
        self.tracker = Tracker(
            self.watch.tracked,
            clock=time.monotonic,
            choice=random.Random(1),
            sites=sites,
            policy=policy,
            home=lambda key: self.seeder.port_of(key) if self.seeder else 0,
        )
        self.services = Services(self.watch, self.tracker, self.seeder, directory=directory)
        self.web = WebServer(build(self.services), self.address, port)

    @property
    def url(self) -> str:
        """Base URL of the catalogue."""
        return self.web.url

    def publish(self, name: str = "A", *, size_bytes: int = 4_000_000) -> Published:
        """Publish a package and wait until tracker and seeder know it."""
        published = publish(self.directory, name, size_bytes=size_bytes)
        url = f"{self.url}/archives/{published.package.key}/{published.package.archive.file_name}"
        self.catalogue.add(published.package, torrent=published.torrent, urls=[url])
        if self.watch.snapshot() is not None:
            infohash = bytes.fromhex(published.package.archive.infohash_v1)
            self.wait_until(lambda: infohash in (self.watch.tracked() or {}))
            self.wait_until(lambda: self.seeder is None or published.package.key in self.seeder.seeded())
        return published

    def start(self) -> None:
        """Serve."""
        self.watch.start()
        self.web.start()

    def stop(self) -> None:
        """End all."""
        self.web.stop()
        self.watch.stop()
        if self.seeder is not None:
            self.seeder.close()

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
        """Wait for something that the services do by themselves."""
        wait_until(condition, timeout_s)


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait for a condition without an event of its own; fails the test when it does not come."""
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        pause.wait(0.02)


@contextlib.contextmanager
def central(directory: Path, **options: object) -> Iterator[Central]:
    """Run central services."""
    services = Central(directory, **options)  # type: ignore[arg-type]
    services.start()
    try:
        yield services
    finally:
        services.stop()


def configuration(own_address: str, tracker: str, **swarm: object) -> Config:
    """The configuration of one node with its own address."""
    trackers = [tracker] if tracker else []
    config = Config({"site": {"address": own_address}, "swarm": {"trackers": trackers, **swarm}})
    config.declare("swarm", SwarmSettings)
    return config


class Agent:
    """One worker node's swarm, with an address and a directory of its own."""

    def __init__(
        self, directory: Path, url: str = "", *, own_address: str = "", role: Role = Role.AGENT, **swarm: object
    ) -> None:
        self.address = own_address or address()
        self.directory = directory / f"{self.address}-{next(_numbers)}"
        self.directory.mkdir()
        self.warnings: list[str] = []
        events = Events()
        events.subscribe(lambda e: self.warnings.append(str(e.fields["message"])) if e.name == "warning" else None)
        config = configuration(self.address, f"{url}/announce" if url else "", **swarm)
        self.swarm = Swarm(Context(config, self.directory, events, "Linux-x86_64"), role=role)

    def order(self, published: Published, *, timeout_s: float = 30.0, urls: tuple[str, ...] = ()) -> Order:
        """An order for the archive into this node's directory."""
        target = self.directory / published.package.archive.file_name
        return Order(published.package, published.torrent, urls, target, time.monotonic() + timeout_s)

    def has(self, published: Published) -> bool:
        """Whether the fetched file is what was published."""
        path = self.directory / published.package.archive.file_name
        return hashlib.sha256(path.read_bytes()).hexdigest() == published.package.key


@contextlib.contextmanager
def agents(directory: Path, count: int, url: str = "", **swarm: object) -> Iterator[list[Agent]]:
    """Run so many agents."""
    all_agents = [Agent(directory, url, **swarm) for _ in range(count)]
    try:
        yield all_agents
    finally:
        closers = [threading.Thread(target=agent.swarm.close) for agent in all_agents]
        for closer in closers:
            closer.start()
        for closer in closers:
            closer.join()


def networks(**sites: str) -> Sites:
    """Sites of one network each."""
    return Sites({name: [ipaddress.ip_network(network)] for name, network in sites.items()})
