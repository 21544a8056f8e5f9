"""The catalogue as agents read it: current, quick, and usable where the network is not."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from jobagent.central.catalogue.repository import Validity
from jobagent.config import Config
from jobagent.contracts import Context
from jobagent.errors import (
    CatalogueExpired,
    CatalogueUnreachable,
    ConfigurationError,
    DigestMismatch,
    JobAgentError,
    SiteError,
    SupplyError,
)
from jobagent.events import Events
from jobagent.model import PackageState
from jobagent.pluginmanager import load
from jobagent_catalogue.client import SignedCatalogue
from jobagent_catalogue.settings import CatalogueSettings
from jobagent_catalogue.verifier import DigestVerifier
from tests.catalogue_field import Server, draft, entry_for, field_in, tuf_time

DAY_S = 86400


@pytest.fixture
def place(tmp_path):
    """A catalogue with nothing in it, served."""
    with field_in(tmp_path) as made:
        yield made


def names_of(packages):
    return [str(p.id) for p in packages]


def test_packages_are_found_by_namespace_name_and_version(place):
    first, second = entry_for("ROOT", "v6"), entry_for("ROOT", "v7", state=PackageState.BANNED, reason="broken")
    place.repository.register([first, second, entry_for("Pythia"), entry_for("ROOT", namespace="bob")])
    client = place.client()
    assert client.namespaces() == ["alice", "bob"]
    assert client.names("alice") == ["Pythia", "ROOT"]
    assert sorted(client.versions("alice", "ROOT"), key=str) == sorted([first, second], key=str)
    assert names_of(client.versions("bob", "ROOT")) == ["VO_BOB@ROOT::1"]


@pytest.mark.parametrize(
    ("namespace", "name"), [("carol", "ROOT"), ("alice", "Root"), ("alice", "../x"), ("", ""), ("root", "x")]
)
def test_what_is_not_there_is_nothing_and_no_error(place, namespace, name):
    place.repository.register([entry_for("ROOT")])
    assert list(place.client().versions(namespace, name)) == []


@pytest.mark.parametrize("namespace", ["carol", "", "root", "targets", "alice--3"])
def test_an_unknown_vo_has_no_names(place, namespace):
    place.repository.register([entry_for("ROOT")])
    assert list(place.client().names(namespace)) == []


def test_a_vo_that_has_not_published_has_no_packages(place):
    assert place.client().names("bob") == []


def test_a_new_publication_is_seen_at_the_next_refresh(place):
    client = place.client()
    before = client.refresh()
    place.repository.register([entry_for("ROOT")])
    after = client.refresh()
    assert after.version == before.version + 1
    assert names_of(client.versions("alice", "ROOT")) == ["VO_ALICE@ROOT::1"]


def test_only_the_role_of_the_vo_and_the_bin_of_the_name_are_fetched(place):
    place.repository.register([entry_for(f"P{n}") for n in range(450)])
    client = place.client()
    client.refresh()
    place.server.requests.clear()
    assert len(client.versions("alice", "P7")) == 1
    assert len(place.server.requests) == 2
    assert not any("bob" in path for path in place.server.requests)


def test_all_names_are_found_across_bins(place):
    place.repository.register([entry_for(f"P{n}") for n in range(450)])
    client = place.client()
    assert len(client.names("alice")) == 450


def test_a_warm_agent_asks_nobody_and_imports_no_cryptography(place):
    place.repository.register([entry_for("ROOT")])
    place.client(refresh_interval_s=60.0).versions("alice", "ROOT")
    place.server.requests.clear()
    program = f"""
import json, sys
from pathlib import Path
from jobagent.events import Events
from jobagent_catalogue.client import SignedCatalogue
from jobagent_catalogue.settings import CatalogueSettings
settings = CatalogueSettings(urls=({place.server.url!r},), root=Path({str(place.root)!r}))
client = SignedCatalogue(settings, Path({str(place.base / "state")!r}), Events())
client.refresh()
found = len(client.versions("alice", "ROOT"))
heavy = [m for m in ("tuf", "securesystemslib", "cryptography", "urllib3", "requests") if m in sys.modules]
print(json.dumps([found, heavy]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert json.loads(done.stdout) == [1, []]
    assert place.server.requests == []


def test_a_missing_package_is_looked_for_at_the_mirror_before_it_is_called_missing(place):
    now = [time.time()]
    client = place.client(refresh_interval_s=3600.0, clock=lambda: now[0])
    client.refresh()
    place.repository.register([entry_for("ROOT")])
    now[0] += 10
    assert names_of(client.versions("alice", "ROOT")) == ["VO_ALICE@ROOT::1"]


def test_a_ban_is_seen_after_the_refresh_interval(place):
    now = [time.time()]
    client = place.client(refresh_interval_s=60.0, clock=lambda: now[0])
    package = entry_for("ROOT")
    place.repository.register([package])
    client.versions("alice", "ROOT")
    place.repository.set_state(package.id, PackageState.BANNED, reason="crashes")
    now[0] += 61
    (found,) = client.versions("alice", "ROOT")
    assert (found.state, found.reason) == (PackageState.BANNED, "crashes")


@pytest.mark.parametrize("name", ["metadata/targets.json", "roles/alice.json", "metadata/snapshot.json"])
def test_a_kept_file_that_was_edited_is_not_believed(place, name):
    place.repository.register([entry_for("ROOT")])
    place.client(refresh_interval_s=60.0).versions("alice", "ROOT")
    (kept,) = (place.base / "state").glob(f"*/{name}")
    kept.write_bytes(kept.read_bytes().replace(b"alice", b"mallo"))
    client = place.client(refresh_interval_s=60.0)
    assert names_of(client.versions("alice", "ROOT")) == ["VO_ALICE@ROOT::1"]
    assert client.namespaces() == ["alice", "bob"]


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"format": 99}', b"\xff" * 10])
def test_a_damaged_receipt_is_no_receipt(place, content):
    place.repository.register([entry_for("ROOT")])
    place.client(refresh_interval_s=60.0).versions("alice", "ROOT")
    (kept,) = (place.base / "state").glob("*/receipt.json")
    kept.write_bytes(content)
    assert names_of(place.client(refresh_interval_s=60.0).versions("alice", "ROOT")) == ["VO_ALICE@ROOT::1"]


def test_a_receipt_in_a_directory_that_others_may_write_does_not_count(place):
    place.repository.register([entry_for("ROOT")])
    place.client(refresh_interval_s=60.0).versions("alice", "ROOT")
    (directory,) = (place.base / "state").iterdir()
    directory.chmod(0o777)
    place.server.requests.clear()
    place.client(refresh_interval_s=60.0).versions("alice", "ROOT")
    assert "metadata/timestamp.json" in place.server.requests


@pytest.mark.acceptance(17)
def test_with_the_server_down_valid_cached_metadata_are_used(place):
    place.repository.register([entry_for("ROOT")])
    place.client().versions("alice", "ROOT")
    place.server.stop()
    client = place.client()
    assert client.refresh().is_stale
    assert names_of(client.versions("alice", "ROOT")) == ["VO_ALICE@ROOT::1"]
    assert any("no mirror of the catalogue answers" in w for w in place.warnings())


@pytest.mark.acceptance(17)
def test_with_the_server_down_expired_metadata_are_refused_without_a_grace(place):
    place.repository.register([entry_for("ROOT")])
    place.client().versions("alice", "ROOT")
    place.server.stop()
    later = time.time() + 1.5 * DAY_S
    with tuf_time(later), pytest.raises(CatalogueExpired, match=r"timestamp expired at .* UTC, here it is .* UTC"):
        place.client(clock=lambda: later).refresh()


@pytest.mark.acceptance(17)
def test_with_the_server_down_a_configured_grace_extends_the_expiry_and_ends(place):
    place.repository.register([entry_for("ROOT")])
    place.client().versions("alice", "ROOT")
    place.server.stop()
    later = time.time() + 1.5 * DAY_S
    with tuf_time(later):
        client = place.client(grace_s=DAY_S, clock=lambda: later)
        assert names_of(client.versions("alice", "ROOT")) == ["VO_ALICE@ROOT::1"]
        assert client.refresh().is_stale
    much_later = time.time() + 2.5 * DAY_S
    with tuf_time(much_later), pytest.raises(CatalogueExpired):
        place.client(grace_s=DAY_S, clock=lambda: much_later).refresh()


def test_nothing_cached_and_no_server_is_one_clear_line(place):
    place.server.stop()
    with pytest.raises(CatalogueUnreachable, match=r"does not deliver.*Connection refused"):
        place.client().refresh()


def test_a_mirror_that_is_down_is_left_for_the_next(place):
    place.repository.register([entry_for("ROOT")])
    client = place.client(mirrors=("http://127.0.0.1:9/", place.server.url))
    assert client.refresh().source == place.server.url
    assert names_of(client.versions("alice", "ROOT")) == ["VO_ALICE@ROOT::1"]
    assert any("a mirror was left out" in w for w in place.warnings())


def test_a_mirror_that_is_behind_is_left_for_the_next(place, tmp_path):
    old = {"metadata/timestamp.json": place.metadata("timestamp.json")}
    place.repository.register([entry_for("ROOT")])
    behind = Server(place.catalogue, answers=old)
    behind.start()
    try:
        place.client().refresh()
        client = place.client(mirrors=(behind.url, place.server.url))
        assert client.refresh().source == place.server.url
    finally:
        behind.stop()


def test_a_catalogue_in_a_directory_needs_no_server(place):
    place.repository.register([entry_for("ROOT")])
    client = place.client(mirrors=(place.catalogue.as_uri(),))
    assert names_of(client.versions("alice", "ROOT")) == ["VO_ALICE@ROOT::1"]


def test_a_directory_is_not_trusted_for_its_own_root(place):
    settings = CatalogueSettings(urls=(place.catalogue.as_uri(),))
    with pytest.raises(ConfigurationError, match="no root of trust"):
        SignedCatalogue(settings, place.base / "other", Events()).refresh()


@pytest.mark.parametrize("url", ["ftp://x/", "http://x/?token=1", "alice"])
def test_a_url_that_cannot_be_used_is_refused_at_start(place, url):
    with pytest.raises(ConfigurationError, match="urls"):
        place.client(mirrors=(url,))


@pytest.mark.acceptance(18)
def test_a_clock_two_days_slow_is_refused_with_both_times(place):
    place.server.clock = lambda: time.time() + 2 * DAY_S
    with pytest.raises(SiteError, match=r"clock is 2\.0 days behind: here it is .* UTC, at .* UTC; set the clock"):
        place.client().refresh()


@pytest.mark.acceptance(18)
def test_a_clock_two_days_fast_makes_the_catalogue_expired_and_shows_the_clock(place):
    later = time.time() + 2 * DAY_S
    with tuf_time(later), pytest.raises(CatalogueExpired, match="here it is"):
        place.client(clock=lambda: later).refresh()
    assert any("clock is 2.0 days ahead" in w for w in place.warnings())


def test_the_age_that_a_proxy_adds_is_part_of_the_servers_clock(place):
    place.server.clock = lambda: time.time() - 3 * DAY_S
    place.server.headers["Age"] = str(3 * DAY_S)
    place.client().refresh()
    assert not any("clock" in w for w in place.warnings())


def test_torrents_and_objects_are_delivered_checked_and_torrents_kept(place):
    made = draft(place.base, "ROOT")
    place.repository.publish([made])
    client = place.client()
    assert client.torrent(made.package.archive) == made.torrent
    assert client.blob(made.package.tree.manifest) == made.objects[0]
    place.server.stop()
    assert client.torrent(made.package.archive) == made.torrent


def test_a_wrong_torrent_is_refused_and_the_next_mirror_asked(place):
    made = draft(place.base, "ROOT")
    place.repository.publish([made])
    evil = Server(place.catalogue, answers={f"torrents/{made.package.archive.infohash_v2}.torrent": b"d4:infodee"})
    evil.start()
    try:
        with pytest.raises(DigestMismatch, match="another sha256"):
            place.client(mirrors=(evil.url,)).torrent(made.package.archive)
        client = place.client(mirrors=(evil.url, place.server.url))
        assert client.torrent(made.package.archive) == made.torrent
    finally:
        evil.stop()


def test_a_wrong_object_is_refused_even_of_the_right_length(place):
    made = draft(place.base, "ROOT")
    place.repository.publish([made])
    wanted = made.package.tree.manifest
    place.server.answers[f"objects/{wanted.sha256}"] = b"x" * wanted.size_bytes
    with pytest.raises(DigestMismatch, match="another digest"):
        place.client().blob(wanted)


def test_a_missing_object_is_a_matter_of_supply(place):
    made = draft(place.base, "ROOT")
    with pytest.raises(SupplyError, match="404"):
        place.client().blob(made.package.tree.manifest)
    with pytest.raises(SupplyError, match="at most 5 are read"):
        place.client(max_object_bytes=5).blob(made.package.tree.manifest)


def test_urls_are_the_signed_ones_then_the_mirrors(place):
    package = entry_for("ROOT", pfns=("https://grid.example/r",))
    urls = place.client().urls(package)
    assert urls == ("https://grid.example/r", f"{place.server.url}archives/{'a' * 64}/ROOT-1.tar.zst")


def test_many_threads_share_one_client(place):
    place.repository.register([entry_for(f"P{n}") for n in range(40)])
    client = place.client(refresh_interval_s=60.0)
    barrier = threading.Barrier(16)

    def look(number):
        barrier.wait(10)
        return len(client.versions("alice", f"P{number}"))

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(look, range(16))) == [1] * 16
    assert place.server.requests.count("metadata/timestamp.json") == 1


def test_many_processes_share_one_state_directory(place):
    place.repository.register([entry_for(f"P{n}") for n in range(450)])
    program = f"""
import sys
from pathlib import Path
from jobagent.events import Events
from jobagent_catalogue.client import SignedCatalogue
from jobagent_catalogue.settings import CatalogueSettings
settings = CatalogueSettings(urls=({place.server.url!r},), root=Path({str(place.root)!r}))
client = SignedCatalogue(settings, Path({str(place.base / "state")!r}), Events())
print(sum(len(client.versions("alice", f"P{{n}}")) for n in range(0, 450, 9)))
"""
    running = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(5)
    ]
    outputs = [process.communicate(timeout=60) for process in running]
    assert [out for out, _ in outputs] == ["50\n"] * 5, outputs
    assert place.server.requests.count("metadata/timestamp.json") == 1


def test_readers_follow_while_publishers_publish(place):
    stop = threading.Event()
    failures: list[Exception] = []
    seen: list[int] = []

    def read(number):
        client = place.client(state=f"reader{number}")
        while not stop.is_set():
            try:
                client.refresh()
                seen.append(len(client.names("alice")))
            except JobAgentError as error:
                failures.append(error)

    readers = [threading.Thread(target=read, args=(n,)) for n in range(2)]
    for reader in readers:
        reader.start()
    for number in range(25):
        place.repository.register([entry_for(f"P{number}")])
    stop.set()
    for reader in readers:
        reader.join(20)
    assert failures == []
    assert seen


def test_an_entry_of_a_later_format_is_left_out_with_a_warning(place):
    place.repository.register([entry_for("ROOT", "1"), entry_for("ROOT", "2")])
    with place.repository.shelf.lock():
        ceremony = place.repository._ceremony()
        role = place.repository._open(ceremony, "alice")
        path = next(p for p in role.signed.targets if "/2/" in p)
        role.signed.targets[path].unrecognized_fields["custom"]["format"] = 99
        place.repository._submit({"alice": role})
    assert names_of(place.client().versions("alice", "ROOT")) == ["VO_ALICE@ROOT::1"]
    assert any("format 99" in w for w in place.warnings())


def test_the_plugin_is_found_and_provides_catalogue_and_verifier(place):
    config = Config({"catalogue": {"urls": [place.server.url], "root": str(place.root)}})
    plugins = load(config)
    context = Context(config, place.base / "agent", Events(), "Linux-x86_64")
    (catalogue,) = plugins.catalogues(context)
    assert catalogue.refresh().version >= 1
    assert [v.name for v in plugins.verifiers(context)] == ["digest"]
    bare = Config()
    assert load(bare).catalogues(Context(bare, place.base, Events(), "Linux-x86_64")) == []


def test_the_verifier_accepts_what_was_signed_and_nothing_else(place):
    made = draft(place.base, "ROOT")
    verifier = DigestVerifier()
    verifier.verify(made.package, made.archive)
    content = made.archive.read_bytes()
    made.archive.write_bytes(content[:-1] + b"X")
    with pytest.raises(DigestMismatch, match="sha256"):
        verifier.verify(made.package, made.archive)
    made.archive.write_bytes(content + b"X")
    with pytest.raises(DigestMismatch, match="bytes, signed are"):
        verifier.verify(made.package, made.archive)
    made.archive.unlink()
    with pytest.raises(SiteError):
        verifier.verify(made.package, made.archive)


def test_short_validity_is_kept_alive_by_refresh(tmp_path):
    validity = Validity(timestamp_s=3600, snapshot_s=7200)
    with field_in(tmp_path, validity=validity) as place:
        first = place.client().refresh()
        assert first.expires_s <= time.time() + 3600
