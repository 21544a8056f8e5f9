"""The servers of `bench.swarm`: ours, and stock programs that serve the same archive.

Each is started on the server's machine and counts what it sent.  Trackers are ours throughout: what is compared is
who seeds and who fetches.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import network
from bench.swarm_field import Field
from jobagent.central.catalogue.keys import KeyStore
from jobagent.central.catalogue.repository import Repository
from jobagent.central.packaging import torrents
from jobagent.model import Archive, Package, PackageId, Tree

START_TIMEOUT_S = 60.0


class Server:
    """`jobagent serve`: tracker, seeder and files."""

    def __init__(self, experiment: Field, directory: Path, machine: network.Host | None) -> None:
        self.experiment = experiment
        self.directory = directory
        self.machine = machine
        self.address = machine.address if machine else "127.0.0.1"
        self.processes: list[subprocess.Popen[Any]] = []
        self.archive = publish(experiment, directory / "catalogue", directory / "keys")
        self.torrent = directory / "catalogue" / "torrents" / f"{self.archive.infohash_v2}.torrent"
        self.file = directory / "catalogue" / "archives" / self.archive.sha256 / self.archive.file_name
        self.url = ""

    @property
    def tracker(self) -> str:
        """Announce URL."""
        return f"{self.url}/announce"

    @property
    def rate(self) -> int:
        """What the program must limit itself to: the kernel does it on shaped hosts."""
        return 0 if self.machine else self.experiment.server_rate

    @property
    def central(self) -> dict[str, Any]:
        """`[central]` of ours."""
        sites = [f"S{n}=10.77.{n}.0/24" for n in range(1, self.experiment.sites + 1)]
        return {"mode": self.experiment.mode, "sites": sites, **self.experiment.settings}

    def serve(self) -> None:
        """Start; returns when clients may come."""
        self.start_services("serve")

    def start_services(self, command: str) -> None:
        """Start a command of ours, `serve` or `tracker`, on the catalogue."""
        port_file, configuration = self.directory / "port", self.directory / "central.toml"
        swarm = {"upload_rate_bytes": self.rate, **self.experiment.central}
        configuration.write_text(_toml({"swarm": swarm, "central": self.central}))
        words = [sys.executable, "-m", "jobagent", "--config", str(configuration), command]
        words += [str(self.directory / "catalogue"), "--host", self.address, "--port", "0"]
        process = self.start([*words, "--port-file", str(port_file)])
        wait_until(port_file.exists, process, self.directory / "server.log")
        self.url = f"http://{self.address}:{port_file.read_text().strip()}"

    def start(self, words: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a process on the server's machine."""
        argv = self.machine.argv(*words) if self.machine else list(words)
        with (self.directory / "server.log").open("ab") as log:
            process = subprocess.Popen(argv, stdout=log, stderr=log, **options)
        self.processes.append(process)
        return process

    def cpu_s(self) -> float:
        """CPU seconds of the server's processes."""
        total = 0
        for process in self.processes:
            with contextlib.suppress(OSError):
                fields = Path("/proc", str(process.pid), "stat").read_text().rpartition(")")[2].split()
                total += int(fields[11]) + int(fields[12])
        return total / os.sysconf("SC_CLK_TCK")

    def sent_bytes(self) -> int:
        """Wire bytes of a shaped host, else payload bytes as the program counts them."""
        return self.machine.sent_bytes() if self.machine else self.counted_bytes()

    def counted_bytes(self) -> int:
        """Payload bytes that left."""
        with urllib.request.urlopen(f"{self.url}/status.json", timeout=60) as answer:
            numbers = json.load(answer)["server"]
        return int(numbers["seeder"].get("upload_bytes", 0)) + int(numbers["http_bytes"])


class DefaultLibtorrent(Server):
    """A libtorrent session as it comes, beside our tracker."""

    def serve(self) -> None:
        """Start tracker and session."""
        self.start_services("tracker")
        plan = {
            "kind": "libtorrent-default",
            "torrent": str(self.torrent),
            "tracker": self.tracker,
            "count_file": str(self.directory / "sent"),
            "file": str(self.file),
            "address": self.address,
            "upload_rate_bytes": self.rate,
        }
        process = self.start([sys.executable, "-m", "bench.swarm_client", json.dumps(plan)])
        wait_until((self.directory / "sent").exists, process, self.directory / "server.log")

    def counted_bytes(self) -> int:
        """What the session wrote down last."""
        return int((self.directory / "sent").read_text() or 0)


class Aria2(Server):
    """aria2c as a seeder, beside our tracker; tuned for a crowd: more peers, short announces."""

    def serve(self) -> None:
        """Start tracker and aria2c."""
        self.start_services("tracker")
        self.torrent = self.directory / "old.torrent"
        made = torrents.legacy(
            (self.directory / "catalogue" / "torrents").joinpath(f"{self.archive.infohash_v2}.torrent").read_bytes(),
            self.tracker,
        )
        self.torrent.write_bytes(made.data)
        options = [f"--dir={self.file.parent}", "--seed-ratio=0.0", "--bt-seed-unverified=true", "--enable-rpc=true"]
        options += [f"--rpc-listen-port={self.rpc_port}", f"--max-overall-upload-limit={self.rate}"]
        self.start([*aria2c(self.address), *options, str(self.torrent)])
        time.sleep(1.5)  # aria2c has no way to say that it listens

    @property
    def rpc_port(self) -> int:
        """A port of its own."""
        return 20_000 + os.getpid() % 20_000

    def counted_bytes(self) -> int:
        """What its RPC interface says."""
        question = json.dumps({"jsonrpc": "2.0", "id": "", "method": "aria2.tellActive"}).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.rpc_port}/jsonrpc", question, timeout=10) as answer:
            return sum(int(task["uploadLength"]) for task in json.load(answer)["result"])


class Nginx(Server):
    """nginx: every client fetches the whole from it."""

    def serve(self) -> None:
        """Start nginx on the archive's directory."""
        if self.machine is None:
            raise SystemExit("nginx cannot limit its uplink by itself: use --hosts")
        configuration = self.directory / "nginx.conf"
        configuration.write_text(
            f"daemon off; pid {self.directory}/nginx.pid; error_log {self.directory}/nginx.log; user root;\n"
            "worker_processes 1; events { worker_connections 4096; }\n"
            f"http {{ access_log off; sendfile on; server {{ listen {self.address}:8080; "
            f"root {self.directory}/catalogue/archives; }} }}\n"
        )
        self.start(["nginx", "-c", str(configuration)])
        self.url = f"http://{self.address}:8080/{self.archive.sha256}/{self.archive.file_name}"
        time.sleep(0.5)


SERVERS: dict[str, type[Server]] = {
    "agent": Server,
    "libtorrent-default": DefaultLibtorrent,
    "aria2c": Aria2,
    "nginx": Nginx,
}


@contextlib.contextmanager
def serving(experiment: Field, directory: Path, machine: network.Host | None) -> Iterator[Server]:
    """Run the experiment's server; its processes end with the block."""
    server = SERVERS[experiment.peer](experiment, directory, machine)
    try:
        server.serve()
        yield server
    finally:
        for process in server.processes:
            end(process, patience_s=0.0)


@contextlib.contextmanager
def site_seeders(server: Server, machines: Sequence[network.Host | None]) -> Iterator[None]:
    """Run a site seeder on each of these hosts; their processes end with the block."""
    root = server.directory / "catalogue" / "metadata" / "1.root.json"
    processes = []
    try:
        for number, machine in enumerate(machines):
            assert machine is not None
            home = server.directory / f"site{number}"
            home.mkdir()
            configuration, port_file = home / "site.toml", home / "port"
            configuration.write_text(
                _toml(
                    {
                        "catalogue": {"urls": [server.url], "root": str(root)},
                        "swarm": {"trackers": [server.tracker]},
                        "site": {"address": machine.address},
                    }
                )
            )
            words = [sys.executable, "-m", "jobagent", "-v", "--config", str(configuration), "seeder", "--site"]
            words += [str(home / "kept"), "--host", machine.address, "--port-file", str(port_file)]
            with (home / "log").open("wb") as log:
                process = subprocess.Popen(machine.argv(*words), stdout=log, stderr=log)
            processes.append(process)
            wait_until(port_file.exists, process, home / "log")
        yield
    finally:
        for process in processes:
            end(process, patience_s=0.0)


def aria2c(address: str) -> list[str]:
    """aria2c for a crowd on one network; shared by seeder and clients."""
    return [
        "aria2c",
        "--no-conf=true",
        f"--interface={address}",
        "--listen-port=20000-60000",
        "--enable-dht=false",
        "--enable-dht6=false",
        "--bt-enable-lpd=false",
        "--disable-ipv6=true",
        "--bt-max-peers=100",
        "--bt-tracker-interval=5",
        "--bt-request-peer-speed-limit=100M",
        "--file-allocation=none",
        "--console-log-level=error",
        "--summary-interval=0",
    ]


def publish(experiment: Field, catalogue: Path, keys: Path) -> Archive:
    """Make a signed catalogue with one archive of random bytes."""
    os.environ.setdefault("JOBAGENT_PASSPHRASE", "bench")  # of keys that live as long as the run
    keys.mkdir()
    store = KeyStore(keys)
    repository, _ = Repository.create(catalogue, store)
    repository.add_vo("bench", [store.new("vo-bench").key])
    source = catalogue / "new"
    content = random.Random(experiment.package_bytes).randbytes(experiment.package_bytes)
    source.write_bytes(content)
    digest, made = hashlib.sha256(content).hexdigest(), torrents.create(source, "bench.tar.zst")
    archive = Archive("bench.tar.zst", "tar.zst", digest, len(content), made.infohash_v1, made.infohash_v2)
    for path in (catalogue / "archives" / digest, catalogue / "torrents"):
        path.mkdir(parents=True, exist_ok=True)
    source.rename(catalogue / "archives" / digest / archive.file_name)
    (catalogue / "torrents" / f"{archive.infohash_v2}.torrent").write_bytes(made.data)
    repository.register([Package(PackageId("bench", "Bench", "1"), "any", archive, Tree(archive.blob, 1, 1), 1)])
    return archive


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[Any], log: Path) -> None:
    """Wait for a process to be ready; raises RuntimeError with its log where it is not."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(log.read_text()[-2000:])
        time.sleep(0.05)


def end(process: subprocess.Popen[Any], *, patience_s: float = 5.0) -> None:
    """End a process: wait, ask, then kill."""
    for act, wait_s in ((None, patience_s), (process.terminate, 3.0), (process.kill, 5.0)):
        if act is not None:
            act()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait_s)
            return


def describe(archive: Archive) -> dict[str, Any]:
    """The archive as clients are told of it."""
    return asdict(archive)


def _toml(sections: dict[str, dict[str, Any]]) -> str:
    return "".join(
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
        for name, table in sections.items()
    )
