"""Clients of `bench.swarm` in one process: each with an address, a session and a directory of its own.

Reads one JSON object from standard input, says "ready", waits for a line "go", fetches, and prints one JSON line per
client as it completes; they give to others until standard input ends.  `kind` is `agent`, the project's transport as
jobs use it, or `libtorrent-default`, or
`command`, a stock program.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import libtorrent as lt

from jobagent.config import Config
from jobagent.contracts import Context, Order
from jobagent.errors import JobAgentError
from jobagent.events import Events
from jobagent.model import Archive, Package, PackageId, Tree
from jobagent_swarm.settings import SwarmSettings
from jobagent_swarm.swarm import Swarm

_print = threading.Lock()


def main() -> int:
    """Run the clients that standard input describes, or one seeder that the argument does."""
    if len(sys.argv) > 1:
        return seed(json.loads(sys.argv[1]))
    plan = json.loads(sys.stdin.readline())
    kinds: dict[str, Any] = {
        "agent": AgentClient,
        "libtorrent-default": DefaultClient,
        "command": CommandClient,
    }
    clients = [kinds[plan["kind"]](plan, spec) for spec in plan["clients"]]
    if plan.get("is_shared"):
        for client in clients[1:]:
            client.share(clients[0])
    say({"ready": len(clients)})
    sys.stdin.readline()
    start = time.monotonic()
    threads = [
        threading.Thread(target=run, args=(client, start, plan["timeout_s"]), daemon=True) for client in clients
    ]
    for thread in threads:
        thread.start()
    sys.stdin.read()  # until everybody is done
    for client in clients:
        say({"id": client.id, "sent": client.sent_bytes()})
    for client in clients:
        client.close()
    return 0


def run(client: Any, start: float, timeout_s: float) -> None:
    """Fetch with one client when its time has come."""
    time.sleep(max(0.0, start + client.delay_s - time.monotonic()))
    begun = time.monotonic()
    try:
        traffic = client.fetch(begun + timeout_s)
    except (JobAgentError, OSError, RuntimeError) as error:  # the run goes on and counts it as unfinished
        say({"id": client.id, "error": f"{type(error).__name__}: {error}"})
        return
    say({"id": client.id, "seconds": time.monotonic() - begun, "at": time.monotonic() - start, **traffic})


def say(record: dict[str, Any]) -> None:
    """Print one record."""
    with _print:
        print(json.dumps(record), flush=True)


class AgentClient:
    """The swarm plugin, configured as a site would."""

    def __init__(self, plan: dict[str, Any], spec: dict[str, Any]) -> None:
        self.id, self.delay_s = spec["id"], spec["delay_s"]
        self._package = package_of(**plan["package"])
        self._torrent = Path(plan["torrent"]).read_bytes()
        self._directory = Path(spec["directory"])
        self._directory.mkdir(parents=True)
        table = {"trackers": [plan["tracker"]], "upload_rate_bytes": spec["upload_rate_bytes"], **plan["swarm"]}
        patient = {
            "no_peer_timeout_s": 300.0,
            "stall_timeout_s": 300.0,
            "rate_window_s": 600.0,
            "web_seed_after_s": 0.0,
        }
        config = Config({"site": {"address": spec["address"]}, "swarm": {**patient, **table}})
        config.declare("swarm", SwarmSettings)
        self._swarm = Swarm(Context(config, self._directory, Events(), ""))
        self._swarm.open()

    def share(self, other: AgentClient) -> None:
        """Use the session of another slot of the node, as with a shared cache."""
        self._swarm.close()
        self._swarm = other._swarm

    def fetch(self, deadline: float) -> dict[str, Any]:
        """Fetch, check, and say where the bytes came from."""
        order = Order(self._package, self._torrent, (), self._directory / "archive", deadline)
        traffic = self._swarm.fetch(order)
        if traffic.seeder_bytes or traffic.neighbour_bytes:  # else another slot fetched it, and seeds
            self._swarm.seed(self._package, order.target, self._torrent)
        return {"seeder_bytes": traffic.seeder_bytes, "neighbour_bytes": traffic.neighbour_bytes}

    def close(self) -> None:
        """Leave the swarm."""
        self._swarm.close()

    def sent_bytes(self) -> float:
        """Payload bytes given to others."""
        return self._swarm.status()["upload_bytes"]


class DefaultClient:
    """libtorrent as it comes, with only its address and rate set and the outside world switched off."""

    def __init__(self, plan: dict[str, Any], spec: dict[str, Any]) -> None:
        self.id, self.delay_s = spec["id"], spec["delay_s"]
        self._directory = Path(spec["directory"])
        self._directory.mkdir(parents=True)
        self._session = default_session(spec["address"], spec["upload_rate_bytes"])
        self._parameters = lt.load_torrent_buffer(Path(plan["torrent"]).read_bytes())
        self._parameters.trackers = [plan["tracker"]]
        self._parameters.save_path = str(self._directory)
        self._handle: lt.torrent_handle | None = None

    def fetch(self, deadline: float) -> dict[str, Any]:
        """Fetch and wait until it is complete."""
        self._handle = handle = self._session.add_torrent(self._parameters)
        while not handle.status(0).is_seeding:
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(0.05)
        return {}

    def close(self) -> None:
        """Leave the swarm."""
        self._session.pause()

    def sent_bytes(self) -> float:
        """Payload bytes given to others."""
        return float(self._handle.status(0).total_payload_upload) if self._handle else 0.0


class CommandClient:
    """A stock program: complete when it ends, or writes its done file and goes on giving."""

    def __init__(self, plan: dict[str, Any], spec: dict[str, Any]) -> None:
        self.id, self.delay_s = spec["id"], spec["delay_s"]
        self._spec = spec
        Path(spec["directory"]).mkdir(parents=True)
        self._process: subprocess.Popen[bytes] | None = None

    def fetch(self, deadline: float) -> dict[str, Any]:
        """Start the program and wait until it has the file."""
        self._process = process = subprocess.Popen(self._spec["argv"], stdout=subprocess.DEVNULL)
        while not self._is_complete(process):
            if time.monotonic() > deadline:
                raise OSError("not complete in time")
            time.sleep(0.05)
        return {}

    def _is_complete(self, process: subprocess.Popen[bytes]) -> bool:
        if (code := process.poll()) is not None:
            if code:
                raise OSError(f"{self._spec['argv'][0]} ended with {code}")
            return True
        return "done_file" in self._spec and Path(self._spec["done_file"]).exists()

    def close(self) -> None:
        """End the program."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def sent_bytes(self) -> float:
        """Unknown."""
        return 0.0


def seed(plan: dict[str, Any]) -> int:
    """Seed with a default session until terminated; write down what was sent."""
    session = default_session(plan["address"], plan["upload_rate_bytes"])
    parameters = lt.load_torrent_buffer(Path(plan["torrent"]).read_bytes())
    parameters.trackers = [plan["tracker"]]
    parameters.save_path = str(Path(plan["file"]).parent)
    handle = session.add_torrent(parameters)
    while not handle.status(0).is_seeding:
        time.sleep(0.05)
    while True:
        Path(plan["count_file"]).write_text(str(handle.status(0).total_payload_upload))
        time.sleep(0.1)


def default_session(address: str, upload_rate_bytes: int) -> lt.session:
    """A session with libtorrent's defaults; the limit binds on loopback by the global peer class."""
    settings: Any = {
        "listen_interfaces": f"{address}:0",
        "outgoing_interfaces": address,
        "enable_dht": False,
        "enable_lsd": False,
        "enable_upnp": False,
        "enable_natpmp": False,
        "upload_rate_limit": upload_rate_bytes,
        "rate_limit_ip_overhead": False,  # on loopback; other programs' limits count no headers
    }
    session = lt.session(settings)
    everyone = lt.ip_filter()
    everyone.add_rule("0.0.0.0", "255.255.255.255", 1 << int(session.global_peer_class_id))
    session.set_peer_class_filter(everyone)
    return session


def package_of(archive: dict[str, Any]) -> Package:
    """The entry of an archive that is not unpacked."""
    made = Archive(**archive)
    return Package(PackageId("bench", "Bench", "1"), "any", made, Tree(made.blob, 1, 1), 1)


if __name__ == "__main__":
    sys.exit(main())
