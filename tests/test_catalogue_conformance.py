"""The real catalogue and the one for tests keep the same promises."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jobagent.central.catalogue.keys import KeyStore
from jobagent.central.catalogue.repository import Draft, Repository
from jobagent.central.packaging import torrents
from jobagent.contracts import Catalogue
from jobagent.events import Events
from jobagent.testing.catalogue import FakeCatalogue
from jobagent.testing.catalogue_conformance import CatalogueConformance, Shelf
from jobagent_catalogue.client import SignedCatalogue
from jobagent_catalogue.settings import CatalogueSettings
from tests.catalogue_field import make_catalogue, no_passphrase


def fill_signed(directory: Path, shelves: Sequence[Shelf]) -> Catalogue:
    if not (directory / "catalogue").exists():
        make_catalogue(directory)
    repository = Repository(directory / "catalogue", KeyStore(directory / "keys", passphrase=no_passphrase))
    drafts = []
    for item in shelves:
        path = directory / item.package.archive.sha256
        path.write_bytes(item.content)
        torrent = torrents.create(path, item.package.archive.file_name)
        archive = replace(item.package.archive, infohash_v1=torrent.infohash_v1, infohash_v2=torrent.infohash_v2)
        drafts.append(Draft(replace(item.package, archive=archive), path, torrent.data, item.objects))
    repository.publish(drafts)
    root = directory / "catalogue" / "metadata" / "1.root.json"
    settings = CatalogueSettings(urls=((directory / "catalogue").as_uri(),), root=root)
    return SignedCatalogue(settings, directory / "state", Events())


@functools.cache
def fake_in(directory: Path) -> FakeCatalogue:
    return FakeCatalogue()


def fill_fake(directory: Path, shelves: Sequence[Shelf]) -> Catalogue:
    catalogue = fake_in(directory)
    for item in shelves:
        catalogue.add(item.package, torrent=b"d4:infodee", objects=item.objects)
    return catalogue


class TestSignedCatalogue(CatalogueConformance):
    fill = staticmethod(fill_signed)


class TestFakeCatalogue(CatalogueConformance):
    fill = staticmethod(fill_fake)
