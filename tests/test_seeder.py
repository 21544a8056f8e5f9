"""The seeder follows the catalogue, and offers nothing that was not signed."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from jobagent.central.services.announcer import Announcer
from jobagent.central.services.seeder import CatalogueSeeder
from jobagent.central.services.watch import Snapshot
from jobagent.contracts import Freshness
from jobagent.errors import SupplyError
from jobagent.model import PackageState
from tests.swarm_field import address, agents, central, configuration, publish, wait_until
from tests.swarm_hostile import tracker_answering

pytestmark = pytest.mark.swarm


def test_published_archive_is_seeded_within_seconds_and_withdrawn_one_still(tmp_path: Path) -> None:
    with central(tmp_path) as services:
        published = services.publish()
        assert services.seeder is not None
        wait_until(lambda: published.package.key in services.seeder.seeded())
        services.catalogue.add(dataclasses.replace(published.package, state=PackageState.WITHDRAWN))
        other = services.publish("B")
        wait_until(lambda: other.package.key in services.seeder.seeded())
        assert published.package.key in services.seeder.seeded()


def test_banned_archive_is_seeded_no_more(tmp_path: Path) -> None:
    with central(tmp_path) as services:
        published = services.publish()
        assert services.seeder is not None
        wait_until(lambda: services.seeder.status()["seeding"] == 1)
        services.catalogue.add(dataclasses.replace(published.package, state=PackageState.BANNED))
        wait_until(lambda: services.seeder.status()["seeding"] == 0)
        with agents(tmp_path, 1, services.url, no_peer_timeout_s=1.0) as (agent,), pytest.raises(SupplyError):
            agent.swarm.fetch(agent.order(published))


def test_archive_that_differs_from_what_was_signed_is_not_seeded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with central(tmp_path) as services:
        bad = publish(tmp_path, "B")
        bad.path.write_bytes(b"x" * bad.package.archive.size_bytes)
        services.catalogue.add(bad.package, torrent=bad.torrent)
        good = services.publish("A")
        assert services.seeder is not None
        wait_until(lambda: good.package.key in services.seeder.seeded())
        assert bad.package.key not in services.seeder.seeded()
        assert "not what was signed" in caplog.text


def test_unreachable_catalogue_takes_no_seed_away(tmp_path: Path) -> None:
    with central(tmp_path) as services:
        published = services.publish()
        assert services.seeder is not None
        wait_until(lambda: published.package.key in services.seeder.seeded())
        services.catalogue.is_reachable = False
        wait_until(lambda: bool(services.watch.last_error))
        assert published.package.key in services.seeder.seeded()


def test_seeder_alone_announces_itself_and_says_goodbye(tmp_path: Path) -> None:
    with central(tmp_path, is_seeding=False) as services, agents(tmp_path, 1, services.url) as (agent,):
        published = services.publish()
        config = configuration(address(), f"{services.url}/announce")
        seeder = CatalogueSeeder(tmp_path, config, announces=True)
        try:
            seeder.update(services.watch.snapshot(), services.catalogue)
            wait_until(lambda: services.tracker.counts(published.package.key).complete == 1)
            traffic = agent.swarm.fetch(agent.order(published))
            assert traffic.seeder_bytes == published.package.archive.size_bytes
            assert agent.has(published)
            agent.swarm.close()
            seeder.update(Snapshot(Freshness(2, 5e9, ""), ()), services.catalogue)
            wait_until(lambda: services.tracker.counts(published.package.key).complete == 0)
            seeder.update(services.watch.snapshot(), services.catalogue)
            wait_until(lambda: services.tracker.counts(published.package.key).complete == 1)
        finally:
            seeder.close()
        wait_until(lambda: services.tracker.counts(published.package.key).complete == 0)


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 302 Found\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\nd14:failure reason2:noe"]
)
def test_announcer_outlives_trackers_that_talk_nonsense(answer: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with tracker_answering(answer, address()) as bad, central_tracker() as (good, seen):
        announcer = Announcer([bad, good], peer_id=b"-JS0100-" + b"x" * 12, port=7)
        announcer.offer([b"i" * 20], 10)
        wait_until(lambda: bool(seen) and "tracker" in caplog.text)
        announcer.close()
        assert b"event=started" in seen[0] and b"event=stopped" in seen[-1]


@contextlib.contextmanager
def central_tracker() -> Iterator[tuple[str, list[bytes]]]:
    """A tracker that notes the queries."""
    seen: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path.encode())
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"d8:intervali5ee")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer((address(), 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://{server.server_address[0]}:{server.server_port}/announce?k=token", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def run_command(*words: str | Path, **environment: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "jobagent", *map(str, words)]
    return subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_announces_its_url_and_ends_cleanly_on_a_signal(tmp_path: Path, number: int) -> None:
    catalogue, keys, port_file = tmp_path / "catalogue", tmp_path / "keys", tmp_path / "port"
    made = run_command("catalogue", "init", catalogue, "--keys", keys, JOBAGENT_PASSPHRASE="x")
    assert made.communicate(timeout=60) and made.returncode == 0
    service = run_command(
        "serve", catalogue, "--host", "127.0.0.1", "--port", "0", "--keys", keys, "--port-file", port_file,
        JOBAGENT_PASSPHRASE="x",
    )  # fmt: skip
    try:
        assert service.stdout is not None
        url = service.stdout.readline().strip()
        with urllib.request.urlopen(f"{url}/metadata/timestamp.json", timeout=10) as response:
            assert response.status == 200
        wait_until(port_file.exists)
        assert url.endswith(f":{port_file.read_text().strip()}")
        service.send_signal(number)
        _, errors = service.communicate(timeout=15)
        assert (service.returncode, errors) == (0, "")
    finally:
        service.kill()
        service.communicate()


def test_serve_without_a_catalogue_is_one_line(tmp_path: Path) -> None:
    service = run_command("serve", tmp_path)
    _, errors = service.communicate(timeout=30)
    assert service.returncode != 0 and errors.count("\n") == 1 and "jobagent catalogue init" in errors
