"""What a node gives to its neighbours: offered once, forgotten with the package, and a reason not to end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from jobagent.contracts import Order
from jobagent.job.kit import Kit
from jobagent.model import Archive, Package, Traffic
from jobagent.node.janitor import Seeding
from jobagent.node.service import NodeService
from tests.node_field import DirectoryCatalogue, Field
from tests.swarm_field import wait_until


class Neighbourly:
    """A seeder that notes what it is asked for."""

    name = "neighbourly"
    rank = 99
    is_seeding = True

    def __init__(self) -> None:
        self.offered: list[str] = []
        self.upload_bytes = 0.0

    def can_fetch(self, order: Order) -> bool:
        return False

    def fetch(self, order: Order) -> Traffic:
        raise NotImplementedError

    def seed(self, package: Package, archive: Path, torrent: bytes) -> None:
        assert archive.stat().st_size == package.archive.size_bytes
        self.offered.append(package.key)

    def unseed(self, key: str) -> None:
        pass

    def status(self) -> Mapping[str, float]:
        return {"upload_bytes": self.upload_bytes}

    def close(self) -> None:
        pass


class WithTorrents(DirectoryCatalogue):
    """The field's catalogue, with torrents that nobody reads; counts how often it is asked for one."""

    asked = 0

    def torrent(self, archive: Archive) -> bytes:
        self.asked += 1
        return b"torrent"


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    field = Field(tmp_path / "field")
    field.make(node="idle_exit_s = 1.0\nsweep_interval_s = 0.2\n")
    field.publish("One", {"bin/one": b"1"})
    field.publish("Two", {"bin/two": b"2"})
    kit = field.kit()
    catalogue = WithTorrents(field.directory)
    catalogue.refresh()
    yield replace(kit, catalogues=[catalogue], transports=[*kit.transports, Neighbourly()])
    kit.close()


@contextlib.contextmanager
def serving(kit: Kit, directory: Path) -> Iterator[NodeService]:
    service = NodeService(kit, directory / "field" / "node.sock")
    with contextlib.closing(service):
        service.start()
        yield service


def installed(kit: Kit, directory: Path) -> Neighbourly:
    """Install both packages; return the seeder, with an empty memory as after a restart."""
    field, seeder = Field(directory / "field"), kit.transports[-1]
    assert isinstance(seeder, Neighbourly)
    with serving(kit, directory):
        field.ask("prewarm", packages=["One", "Two"])
    seeder.offered.clear()
    return seeder


def test_what_is_cached_is_offered_once_and_its_torrent_read_once(kit: Kit, tmp_path: Path) -> None:
    seeder, catalogue = installed(kit, tmp_path), kit.catalogues[0]
    assert isinstance(catalogue, WithTorrents)
    seeding, asked = Seeding(kit), catalogue.asked
    for _ in range(5):
        seeding.seed_all()
    assert len(seeder.offered) == len(set(seeder.offered)) == 2
    assert catalogue.asked == asked + 2


def test_a_package_that_was_evicted_and_came_again_is_offered_again(kit: Kit, tmp_path: Path) -> None:
    seeder = installed(kit, tmp_path)
    seeding = Seeding(kit)
    seeding.seed_all()
    (first, *_) = seeder.offered
    assert kit.cache.evict(first)
    seeding.seed_all()
    assert seeder.offered.count(first) == 1
    with serving(kit, tmp_path):
        Field(tmp_path / "field").ask("prewarm", packages=["One", "Two"])
    seeding.seed_all()
    assert seeder.offered.count(first) >= 2


def test_giving_to_neighbours_counts_as_being_needed(kit: Kit) -> None:
    now = [100.0]
    seeding, seeder = Seeding(kit, clock=lambda: now[0]), kit.transports[-1]
    assert isinstance(seeder, Neighbourly)
    now[0] += 30
    assert seeding.unneeded_s() == 30
    seeder.upload_bytes = 1e6
    assert seeding.unneeded_s() == 0
    now[0] += 5
    assert seeding.unneeded_s() == 5


def test_an_idle_service_stays_while_neighbours_fetch_from_it_and_then_ends(kit: Kit, tmp_path: Path) -> None:
    seeder = installed(kit, tmp_path)
    with serving(kit, tmp_path) as service:

        def is_over(grown: float) -> bool:
            seeder.upload_bytes += 1000
            return seeder.upload_bytes > grown

        wait_until(lambda: is_over(100_000), 10)  # for two seconds, twice the time after which it would end
        assert not service._stopping.is_set()
        wait_until(service._stopping.is_set, 10)
