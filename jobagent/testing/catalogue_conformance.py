"""The promises of a catalogue, as tests: derive, say how to fill one, and pytest runs them.

    from jobagent.testing.catalogue_conformance import CatalogueConformance, Shelf

    def fill_mine(directory: Path, shelves: Sequence[Shelf]) -> Catalogue:
        return MyCatalogue(publish(shelves, directory))

    class TestMyCatalogue(CatalogueConformance):
        fill = staticmethod(fill_mine)

`fill` makes a catalogue of the namespaces alice and bob with these packages, which may be called again with more of
them and the same directory.  Needs pytest, and nothing of the network.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from jobagent.contracts import Catalogue
from jobagent.errors import SupplyError, TrustError
from jobagent.model import (
    Archive,
    Blob,
    EnvironmentAction,
    EnvironmentChange,
    Package,
    PackageId,
    PackageState,
    Tree,
)


@dataclass(frozen=True, slots=True)
class Shelf:
    """A package with the files that its catalogue serves."""

    package: Package
    content: bytes
    objects: tuple[bytes, ...]


Fill = Callable[[Path, Sequence[Shelf]], Catalogue]


def shelf(name: str, version: str = "1", *, namespace: str = "alice", platform: str = "Linux-x86_64") -> Shelf:
    """Return a package with a manifest and an SBOM; infohashes are made up, the catalogue may replace them."""
    content = f"{namespace} {name} {version} {platform}".encode() * 20
    objects = (f"manifest of {name}".encode(), f"bill of {name}".encode())
    manifest, bill = (Blob(hashlib.sha256(o).hexdigest(), len(o)) for o in objects)
    digest = hashlib.sha256(content).hexdigest()
    package = Package(
        id=PackageId(namespace, name, version),
        platform=platform,
        archive=Archive(f"{name}-{version}.tar.zst", "tar.zst", digest, len(content), digest[:40], digest),
        tree=Tree(manifest, 100, 3),
        published_s=1_700_000_000,
        dependencies=(PackageId(namespace, "Base", "1"),),
        environment=(EnvironmentChange(EnvironmentAction.PREPEND, "PATH", "{root}/bin"),),
        pfns=("https://mirror.example/archive",),
        provenance=bill,
    )
    return Shelf(package, content, objects)


class CatalogueConformance:
    """Derive from it; see the module's docstring."""

    fill: Fill

    @pytest.fixture
    def shelves(self) -> list[Shelf]:
        """What is in the catalogue of these tests."""
        banned = shelf("ROOT", "v5")
        banned = replace(banned, package=replace(banned.package, state=PackageState.BANNED, reason="crashes"))
        return [
            banned,
            shelf("ROOT", "v6"),
            shelf("ROOT", "v6", platform="Linux-aarch64"),
            shelf("Pythia"),
            shelf("ROOT", "v7", namespace="bob"),
        ]

    @pytest.fixture
    def catalogue(self, tmp_path: Path, shelves: list[Shelf]) -> Catalogue:
        """A catalogue of them."""
        return type(self).fill(tmp_path, shelves)

    def test_refresh_says_how_current_it_is(self, catalogue: Catalogue) -> None:
        freshness = catalogue.refresh(is_forced=True)
        assert freshness.expires_s > 0
        assert not freshness.is_stale
        assert catalogue.refresh().version >= freshness.version

    def test_all_vos_and_names_are_listed(self, catalogue: Catalogue) -> None:
        assert set(catalogue.namespaces()) == {"alice", "bob"}
        assert set(catalogue.names("alice")) == {"ROOT", "Pythia"}
        assert set(catalogue.names("bob")) == {"ROOT"}

    def test_versions_come_on_all_platforms_in_every_state_with_all_their_fields(
        self, catalogue: Catalogue, shelves: list[Shelf]
    ) -> None:
        wanted = {(s.package.id.version, s.package.platform): s.package for s in shelves[:3]}
        found = {(p.id.version, p.platform): p for p in catalogue.versions("alice", "ROOT")}
        assert found.keys() == wanted.keys()
        for key, package in found.items():
            # A catalogue makes the torrents of its archives, so it may have infohashes of its own.
            archive = replace(
                package.archive,
                infohash_v1=wanted[key].archive.infohash_v1,
                infohash_v2=wanted[key].archive.infohash_v2,
            )
            assert replace(package, archive=archive) == wanted[key]

    def test_vos_do_not_see_each_others_packages(self, catalogue: Catalogue) -> None:
        assert [p.id.version for p in catalogue.versions("bob", "ROOT")] == ["v7"]
        assert catalogue.versions("bob", "Pythia") in ((), [])

    @pytest.mark.parametrize(
        ("namespace", "name"), [("alice", "Rot"), ("carol", "ROOT"), ("alice", "../ROOT"), ("", ""), ("alice", "\0")]
    )
    def test_what_is_not_there_is_empty_and_no_error(self, catalogue: Catalogue, namespace: str, name: str) -> None:
        assert list(catalogue.versions(namespace, name)) == []

    def test_an_unknown_vo_has_no_names(self, catalogue: Catalogue) -> None:
        assert list(catalogue.names("carol")) == []

    def test_torrents_are_delivered_by_archive(self, catalogue: Catalogue) -> None:
        for package in catalogue.versions("alice", "Pythia"):
            torrent = catalogue.torrent(package.archive)
            assert torrent.startswith(b"d")
            assert catalogue.torrent(package.archive) == torrent

    def test_objects_are_delivered_and_are_what_was_signed(self, catalogue: Catalogue, shelves: list[Shelf]) -> None:
        (package,) = catalogue.versions("alice", "Pythia")
        assert package.provenance is not None
        assert catalogue.blob(package.tree.manifest) == shelves[3].objects[0]
        assert catalogue.blob(package.provenance) == shelves[3].objects[1]

    def test_an_object_of_another_length_than_signed_is_refused(self, catalogue: Catalogue) -> None:
        (package,) = catalogue.versions("alice", "Pythia")
        wrong = replace(package.tree.manifest, size_bytes=package.tree.manifest.size_bytes + 1)
        with pytest.raises((TrustError, SupplyError)):
            catalogue.blob(wrong)

    def test_what_nobody_has_is_a_matter_of_supply(self, catalogue: Catalogue) -> None:
        with pytest.raises(SupplyError):
            catalogue.blob(Blob("0" * 64, 5))
        with pytest.raises(SupplyError):
            catalogue.torrent(Archive("x", "tar.zst", "0" * 64, 5, "", "0" * 64))

    def test_the_signed_pfns_come_first_among_the_urls(self, catalogue: Catalogue) -> None:
        (package,) = catalogue.versions("alice", "Pythia")
        assert catalogue.urls(package)[: len(package.pfns)] == package.pfns

    def test_threads_may_use_it_at_once(self, catalogue: Catalogue) -> None:
        barrier = threading.Barrier(8)

        def look(number: int) -> int:
            barrier.wait(30)
            catalogue.refresh()
            return len(catalogue.versions("alice", "ROOT")) + len(catalogue.names("bob"))

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(look, range(8))) == {4}

    def test_what_is_published_later_is_seen_after_a_refresh(self, tmp_path: Path, shelves: list[Shelf]) -> None:
        catalogue = type(self).fill(tmp_path, shelves)
        assert list(catalogue.versions("alice", "Geant")) == []
        catalogue = type(self).fill(tmp_path, [shelf("Geant")])
        catalogue.refresh(is_forced=True)
        assert [p.id.name for p in catalogue.versions("alice", "Geant")] == ["Geant"]
