"""Stock clients take part in our swarms: aria2c, transmission, libtorrent without our settings, opentracker."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import libtorrent as lt
import pytest

from jobagent.central.services.watch import LEGACY_SUFFIX
from tests.conftest import need
from tests.swarm_field import Central, Published, address, agents, central, wait_until

pytestmark = [pytest.mark.outsider, pytest.mark.swarm]
ROOT = Path(__file__).resolve().parents[1]


def torrent_for_anybody(services: Central, published: Published, path: Path) -> Path:
    """Download the torrent that the status page offers for any client."""
    url = f"{services.url}/torrents/v1/{published.package.archive.infohash_v2}.torrent"
    with urllib.request.urlopen(url, timeout=10) as response:
        path.write_bytes(response.read())
    return path


def aria2c(torrent: Path, into: Path, *options: str) -> list[str]:
    own = address()
    return [
        need("aria2c"),
        f"--dir={into}",
        f"--interface={own}",
        "--enable-dht=false",
        "--enable-dht6=false",
        "--bt-enable-lpd=false",
        "--enable-peer-exchange=false",
        "--disable-ipv6=true",
        "--listen-port=20000-60000",
        "--file-allocation=none",
        "--console-log-level=warn",
        "--no-conf=true",
        *options,
        str(torrent),
    ]


def test_aria2c_fetches_from_our_tracker_and_seeder_and_gives_to_another(tmp_path: Path) -> None:
    with central(tmp_path) as services:
        published = services.publish()
        torrent = torrent_for_anybody(services, published, tmp_path / "t.torrent")
        first, second = tmp_path / "first", tmp_path / "second"
        client = subprocess.Popen(aria2c(torrent, first, "--seed-ratio=0"), stdout=subprocess.DEVNULL)
        try:
            wait_until(lambda: services.tracker.counts(published.package.key + LEGACY_SUFFIX).downloaded == 1, 30)
            assert services.seeder is not None
            services.seeder.close()
            done = subprocess.run(
                aria2c(torrent, second, "--seed-time=0"), timeout=60, check=False, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stdout + done.stderr
        finally:
            client.terminate()
            client.wait(20)
        for directory in (first, second):
            assert (directory / published.path.name).read_bytes() == published.path.read_bytes()


def test_libtorrent_without_our_settings_fetches_from_our_seeder(tmp_path: Path) -> None:
    with central(tmp_path) as services:
        published = services.publish()
        session = lt.session({"listen_interfaces": f"{address()}:0", "enable_dht": False, "enable_upnp": False})
        parameters = lt.load_torrent_buffer(published.torrent)
        parameters.trackers = [f"{services.url}/announce"]
        parameters.save_path = str(tmp_path / "into")
        handle = session.add_torrent(parameters)
        wait_until(lambda: handle.status().is_seeding, 30)
        handle.flush_cache()
        target = tmp_path / "into" / published.path.name
        wait_until(lambda: target.read_bytes() == published.path.read_bytes())
        session.pause()


def test_libtorrent_scrapes_our_tracker(tmp_path: Path) -> None:
    """BEP 48, as a stock client reads it."""
    with central(tmp_path) as services:
        published, own = services.publish(size_bytes=100_000), address()
        session = lt.session(
            {
                "listen_interfaces": f"{own}:0",
                "outgoing_interfaces": own,
                "enable_dht": False,
                "enable_upnp": False,
                "alert_mask": int(lt.alert_category.tracker),
                "ssrf_mitigation": False,  # it forbids paths but /announce on loopback
            }
        )
        parameters = lt.load_torrent_buffer(published.torrent)
        parameters.trackers = [f"{services.url}/announce"]
        parameters.save_path = str(tmp_path / "into")
        handle = session.add_torrent(parameters)
        seen: list[tuple[int, int]] = []

        def is_scraped() -> bool:
            found = [a for a in session.pop_alerts() if isinstance(a, lt.scrape_reply_alert)]
            seen.extend((a.complete, a.incomplete) for a in found)
            return bool(seen)

        wait_until(lambda: services.tracker.peer_count == 1, 30)
        handle.scrape_tracker()
        wait_until(is_scraped, 20)
        assert set(seen) <= {(1, 1), (2, 0)}  # the seeder, and this client on its way or there
        session.pause()


@pytest.mark.netns
def test_transmission_fetches_from_our_tracker_and_seeder(tmp_path: Path) -> None:
    client = need("transmission-daemon")
    if os.geteuid() != 0:
        pytest.skip("a network namespace needs root")
    settings = {
        "bind-address-ipv4": "10.99.0.2",
        "dht-enabled": False,
        "lpd-enabled": False,
        "pex-enabled": False,
        "port-forwarding-enabled": False,
        "rpc-bind-address": "10.99.0.2",
        "utp-enabled": False,
        "watch-dir": str(tmp_path / "watch"),
        "watch-dir-enabled": True,
    }
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    (tmp_path / "watch").mkdir()
    start = 'cp "$1" "$2/watch/" && exec "$3" -f -g "$2" -w "$4"'
    command = ["sh", "-c", start, "sh", "{torrent}", "{directory}", client, "{into}"]
    script = [sys.executable, str(ROOT / "tests" / "swarm_netns.py"), str(tmp_path), *command]
    done = subprocess.run(
        ["unshare", "--net", *script],
        timeout=120,
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    if "unshare failed" in done.stderr:
        pytest.skip(f"no network namespace here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def opentracker(published: Published) -> Iterator[str]:
    """Run opentracker with a white list; yield its base URL."""
    program, own = need("opentracker"), address()
    port = 30_000 + os.getpid() % 20_000
    archive = published.package.archive
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)  # it drops to nobody
        allowed, config = directory / "allowed", directory / "opentracker.conf"
        allowed.write_text(f"{archive.infohash_v1}\n{archive.infohash_v2[:40]}\n")
        config.write_text(f"listen.tcp {own}:{port}\naccess.whitelist {allowed}\ntracker.user nobody\n")
        process = subprocess.Popen([program, "-f", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: is_open(own, port))
            yield f"http://{own}:{port}"
        finally:
            process.terminate()
            process.wait(10)


def is_open(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def test_opentracker_is_a_drop_in_for_our_tracker(tmp_path: Path) -> None:
    with central(tmp_path, is_seeding=False) as services:
        published = services.publish()
    with opentracker(published) as url, agents(tmp_path, 2, url) as (seed, peer):
        seed.swarm.seed(published.package, published.path, published.torrent)
        peer.swarm.fetch(peer.order(published))
        assert peer.has(published)
