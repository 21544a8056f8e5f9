"""The central services over real HTTP: announces, scrapes, catalogue files, status, metrics."""

from __future__ import annotations

import dataclasses
import hashlib
import http.client
import json
import socket
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from jobagent import bencode
from jobagent.central.services import tokens
from jobagent.central.services.tracker import Policy
from jobagent.central.services.web import Services, build
from jobagent.central.services.webserver import WebServer
from jobagent.errors import ConfigurationError, NoFreePort
from jobagent.model import PackageState
from tests.swarm_field import Central, Published, address, central, wait_until


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Central]:
    with central(tmp_path_factory.mktemp("central"), is_seeding=False) as running:
        yield running


@pytest.fixture(scope="module")
def published(services: Central) -> Published:
    return services.publish("Web", size_bytes=100_000)


def get(
    services: Central, path: str, *, source: str = "", method: str = "GET", **headers: str
) -> tuple[int, bytes, dict]:
    host = urllib.parse.urlsplit(services.url)
    origin = (source, 0) if source else None
    connection = http.client.HTTPConnection(host.hostname or "", host.port, timeout=10, source_address=origin)
    try:
        connection.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})
        response = connection.getresponse()
        return response.status, response.read(), {k.lower(): v for k, v in response.getheaders()}
    finally:
        connection.close()


def announce(services: Central, published: Published, *, source: str = "", **values: str) -> dict:
    infohash = bytes.fromhex(published.package.archive.infohash_v2)[:20]
    fields = {"info_hash": infohash, "peer_id": b"-JA0100-" + source.encode().rjust(12)[-12:], "port": 1, "left": 1}
    query = urllib.parse.urlencode(fields | values)
    status, body, headers = get(services, f"/announce?{query}", source=source)
    assert status == 200 and int(headers["content-length"]) == len(body)
    return bencode.decode(body)  # type: ignore[return-value]


def test_peers_are_listed_under_the_address_they_came_from(services: Central, published: Published) -> None:
    first, second = address(), address()
    announce(services, published, source=first, ip="6.6.6.6")
    reply = announce(services, published, source=second)
    assert socket.inet_ntoa(reply[b"peers"][:4]) == first
    assert socket.inet_ntoa(reply[b"external ip"]) == second


def test_forwarding_headers_do_not_change_an_address(services: Central, published: Published) -> None:
    first, second = address(), address()
    query = urllib.parse.urlencode(
        {"info_hash": bytes.fromhex(published.package.archive.infohash_v1), "peer_id": "f" * 20, "port": 1, "left": 1}
    )
    get(services, f"/announce?{query}", source=first, X_Forwarded_For="6.6.6.6", Forwarded="for=6.6.6.6")
    peers = announce(services, published, source=second)[b"peers"]
    listed = {socket.inet_ntoa(peers[i : i + 4]) for i in range(0, len(peers), 6)}
    assert first in listed and "6.6.6.6" not in listed


@pytest.mark.parametrize("query", ["", "?info_hash=x", "?" + "a=b&" * 2000, "?info_hash=%zz&peer_id=%", "?port=-1"])
def test_nonsense_gets_a_failure_reason(services: Central, query: str) -> None:
    status, body, _ = get(services, f"/announce{query}")
    assert status == 200 and b"failure reason" in bencode.decode(body)


def test_endless_request_is_cut_off(services: Central) -> None:
    host = urllib.parse.urlsplit(services.url)
    with socket.create_connection((host.hostname, host.port), timeout=10) as stream:
        stream.sendall(b"GET /announce?")
        with pytest.raises(OSError):
            stream.sendall(b"a" * 20_000_000)
    assert get(services, "/status.json")[0] == 200


def test_unknown_torrent_is_refused(services: Central) -> None:
    query = urllib.parse.urlencode({"info_hash": "x" * 20, "peer_id": "y" * 20, "port": 1, "left": 1})
    reply = bencode.decode(get(services, f"/announce?{query}")[1])
    assert reply[b"failure reason"] == b"this torrent is not in the catalogue"


def test_scrape_tells_the_numbers(services: Central) -> None:
    published = services.publish("Scraped", size_bytes=20_000)
    announce(services, published, source=address(), left="0")
    infohash = bytes.fromhex(published.package.archive.infohash_v1)
    reply = bencode.decode(get(services, "/scrape?" + urllib.parse.urlencode({"info_hash": infohash}))[1])
    assert reply == {b"files": {infohash: {b"complete": 1, b"downloaded": 0, b"incomplete": 0}}}


def test_archive_is_served_whole_by_range_and_by_head(services: Central, published: Published) -> None:
    path = f"/archives/{published.package.key}/{published.package.archive.file_name}"
    content = published.path.read_bytes()
    before = services.services.http_bytes
    assert get(services, path)[:2] == (200, content)
    assert services.services.http_bytes - before == len(content)
    status, body, headers = get(services, path, Range="bytes=99990-")
    assert (status, body, headers["content-range"]) == (206, content[99990:], "bytes 99990-99999/100000")
    status, body, headers = get(services, path, method="HEAD")
    assert (status, body, headers["content-length"]) == (200, b"", "100000") and "date" in headers


def test_torrent_for_old_clients_names_our_tracker_and_is_tracked(services: Central, published: Published) -> None:
    path = f"/torrents/v1/{published.package.archive.infohash_v2}.torrent"
    status, body, headers = get(services, path)
    assert status == 200 and headers["content-type"] == "application/x-bittorrent"
    top = bencode.decode(body)
    assert top[b"announce"] == f"{services.url}/announce".encode()
    infohash = hashlib.sha1(bencode.encode(top[b"info"])).digest()
    assert b"interval" in announce(services, published, source=address(), info_hash=infohash)
    for wrong in ("0" * 64, "..%2f..%2fkeys", published.package.key):
        assert get(services, f"/torrents/v1/{wrong}.torrent")[0] == 404


@pytest.mark.parametrize(
    "path",
    [
        "/keys/root-1.pem",
        "/archives/../keys/root-1.pem",
        "/archives/%2e%2e/keys/root-1.pem",
        "/archives/",
        "/metadata",
    ],
)
def test_nothing_but_the_catalogue_is_served(services: Central, path: str) -> None:
    (services.directory / "keys").mkdir(exist_ok=True)
    (services.directory / "keys" / "root-1.pem").write_text("secret")
    status, body, _ = get(services, path)
    assert status in {307, 404} and b"secret" not in body


def test_status_page_and_metrics_show_the_swarm(services: Central, published: Published) -> None:
    announce(services, published, source=address(), left="0", downloaded="100000")
    status = json.loads(get(services, "/status.json")[1])
    (entry,) = [p for p in status["packages"] if p["sha256"] == published.package.key]
    assert entry["complete"] >= 1 and entry["transferred_bytes"] >= 100_000 and status["catalogue"]["is_verified"]
    text = get(services, "/metrics")[1].decode()
    labels = f'package="VO_ALICE@Web::1",platform="Linux-x86_64",digest="{published.package.key[:12]}"'
    assert f"jobagent_swarm_complete{{{labels}}}" in text
    assert f"jobagent_swarm_sent_bytes_total{{{labels}}}" in text
    assert all(line.startswith(("#", "jobagent_")) for line in text.splitlines())
    code, page, headers = get(services, "/")
    assert code == 200 and b"status.json" in page and headers["content-type"].startswith("text/html")


def test_banned_package_is_tracked_no_more_within_a_second(services: Central) -> None:
    published = services.publish("Banned", size_bytes=20_000)
    announce(services, published, source=address())
    services.catalogue.add(dataclasses.replace(published.package, state=PackageState.BANNED))
    start = time.monotonic()
    wait_until(lambda: b"failure reason" in announce(services, published, source=address()))
    assert time.monotonic() - start < 2


@pytest.mark.acceptance(36)
def test_unverifiable_catalogue_closes_the_tracker_and_says_so(tmp_path: Path) -> None:
    with central(tmp_path, is_seeding=False) as services:
        published = services.publish(size_bytes=20_000)
        announce(services, published, source=address())
        services.catalogue.is_reachable = False
        announce(services, published, source=address())  # unreachable is not unverified: the last list is still valid
        services.watch._clock = lambda: 5e9  # past its expiry
        reply = announce(services, published, source=address())
        assert reply[b"failure reason"] == b"the catalogue cannot be verified now"
        assert json.loads(get(services, "/status.json")[1])["catalogue"]["is_verified"] is False


@pytest.mark.acceptance(36)
def test_emptied_catalogue_tracks_nothing(tmp_path: Path) -> None:
    with central(tmp_path, is_seeding=False) as services:
        published = services.publish(size_bytes=20_000)
        services.catalogue._packages.clear()
        wait_until(lambda: b"failure reason" in announce(services, published, source=address()))


@pytest.mark.acceptance(37)
def test_tokens_are_asked_for_where_the_vo_wants_them(tmp_path: Path) -> None:
    key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    soon = int(time.time()) + 600
    with central(tmp_path, is_seeding=False, policy=Policy(needs_token=True)) as services:
        services.services.token_keys = {"alice": key.public_key(), "atlas": other.public_key()}
        published = services.publish(size_bytes=20_000)
        good = tokens.issue(tokens.Claims("alice", soon, "CERN"), key)
        assert b"interval" in announce(services, published, source=address(), k=good)
        refused = {
            "": b"announce token is missing",
            "forged": b"announce token is malformed",
            tokens.issue(tokens.Claims("alice", soon), other): b"announce token is not signed by its VO",
            tokens.issue(tokens.Claims("alice", 1), key): b"announce token has expired",
            tokens.issue(
                tokens.Claims("atlas", soon), other
            ): b"the token is for VO atlas, the package belongs to alice",
        }
        for token, reason in refused.items():
            assert announce(services, published, source=address(), k=token)[b"failure reason"] == reason
        assert services.tracker.peer_count == 1
        assert services.tracker.counts(published.package.key).by_site == {"CERN": (0, 1)}


def test_taken_port_and_foreign_address_are_clear_errors(services: Central) -> None:
    app = build(Services(services.watch))
    with pytest.raises(NoFreePort, match="Address already in use"):
        WebServer(app, services.address, services.web.port)
    with pytest.raises(ConfigurationError, match="cannot listen on"):
        WebServer(app, "192.0.2.1", 0)
    with pytest.raises(ConfigurationError, match="not an address"):
        WebServer(app, "example", 0)
