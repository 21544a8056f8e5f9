"""`bench.swarm`: N clients fetch one package at once; how much the server sends, and how long they take.

Clients have an uplink of `--client-rate`, the server one of `--server-rate`.  On loopback each program's own limiter
makes them so; with `--hosts` each is a network namespace whose links the kernel limits, which is neutral.  `copies`
is what the server sent over the package's size (wire bytes with `--hosts`, else payload); `bound_s` is the physical
bound max(F/u_s, F/d, N·F/(u_s+Σu)).  A run on a machine that was more than 80 % busy is marked `is_void`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from bench import network
from jobagent.central import torrents
from jobagent.central.keys import KeyStore
from jobagent.central.plot import Sample
from jobagent.central.repository import Repository
from jobagent.model import Archive, Package, PackageId, Tree

PEERS = ("agent", "aria2c", "nginx", "libtorrent-default")
BUSY_PERCENT = 80.0
SESSIONS_PER_PROCESS = 50


@dataclass(frozen=True, slots=True)
class Field:
    """One experiment.  Rates are bytes per second; `slots` clients share a host."""

    clients: int = 20
    package_bytes: int = 12_000_000
    client_rate: int = 1_000_000
    server_rate: int = 2_500_000
    is_shaped: bool = False
    peer: str = "agent"
    mode: str = "default"
    arrivals_s: float = 0.0
    slots: int = 1
    sites: int = 0
    timeout_s: float = 240.0
    swarm: dict[str, Any] = field(default_factory=dict)
    central: dict[str, Any] = field(default_factory=dict)

    @property
    def bound_s(self) -> float:
        """No distribution can be faster."""
        size, hosts = self.package_bytes, self.clients / self.slots
        whole = self.clients * size / (self.server_rate + hosts * self.client_rate)
        per_host = self.slots * size / self.client_rate if self.is_shaped else 0.0
        if self.slots > 1:
            whole, per_host = hosts * size / (self.server_rate + hosts * self.client_rate), size / self.client_rate
        return max(size / self.server_rate, whole, per_host if self.is_shaped else 0.0)


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="python -m bench.swarm", description=__doc__)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument(
        "--hosts", action="store_true", help="shaped network namespaces instead of loopback; needs root"
    )
    parser.add_argument("--peer", choices=PEERS, default="agent", help="who serves and fetches")
    parser.add_argument("--mode", default="default", help="distribution mode of the seeder")
    parser.add_argument("--size", type=float, default=12.0, metavar="MB", help="package")
    parser.add_argument("--client-rate", type=float, default=1.0, metavar="MB/S")
    parser.add_argument("--server-rate", type=float, default=2.5, metavar="MB/S")
    parser.add_argument("--arrivals", type=float, default=0.0, metavar="S", help="spread over so many seconds")
    parser.add_argument("--slots", type=int, default=1, help="clients on one host")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="[swarm] of the clients")
    parser.add_argument("--central", action="append", default=[], metavar="KEY=VALUE", help="[swarm] of the server")
    parser.add_argument("--full", action="store_true", help="all modes and peers, in turn")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    options = parser.parse_args()
    one = Field(
        clients=options.clients,
        package_bytes=int(options.size * 1e6),
        client_rate=int(options.client_rate * 1e6),
        server_rate=int(options.server_rate * 1e6),
        is_shaped=options.hosts,
        peer=options.peer,
        mode=options.mode,
        arrivals_s=options.arrivals,
        slots=options.slots,
        swarm=_pairs(options.set),
        central=_pairs(options.central),
    )
    fields = [one] * options.repeats if not options.full else full(one)
    results = []
    for item in fields:
        results.append(measure(item))
        print(json.dumps({k: v for k, v in results[-1].items() if k != "samples"}), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results[0] if len(results) == 1 else {"runs": results}, indent=2) + "\n")
    return 0 if all(r["unfinished"] == 0 for r in results) else 1


def full(one: Field) -> list[Field]:
    """The thorough programme: each peer in turn, five times, on the same field."""
    return [replace(one, peer=peer) for _ in range(5) for peer in PEERS]


def measure(experiment: Field) -> dict[str, Any]:
    """Run one experiment; whatever happens, processes, scratch and namespaces are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="jobagent-bench-") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        machines = stack.enter_context(_machines(experiment))
        server = stack.enter_context(_server(experiment, directory, machines[0]))
        clients = _clients(experiment, directory, server, machines[1:])
        for client in clients:
            stack.enter_context(client)
        for client in clients:
            client.wait_ready()
        before, cpu, sent = server.cpu_s(), _machine_cpu(), server.sent_bytes()
        start = time.monotonic()
        for client in clients:
            client.go()
        samples = _watch(experiment, server, clients, start, sent)
        busy = _busy_percent(cpu, _machine_cpu())
        server_bytes, server_cpu_s = server.sent_bytes() - sent, server.cpu_s() - before
        return _figures(experiment, clients, server_bytes, server_cpu_s, busy, samples)


def _figures(
    experiment: Field,
    clients: Sequence[Client],
    server_bytes: int,
    server_cpu_s: float,
    busy: float,
    samples: list[Sample],
) -> dict[str, Any]:
    records = [r for c in clients for r in c.records if "seconds" in r]
    times = sorted(float(r["seconds"]) for r in records)
    errors = [r["error"] for c in clients for r in c.records if "error" in r]
    size, bound = experiment.package_bytes, experiment.bound_s
    received = sum(r.get("seeder_bytes", 0) + r.get("neighbour_bytes", 0) for r in records)
    given = sum(r["sent"] for c in clients for r in c.records if "sent" in r)
    redundant = max(0, int(server_bytes + given - received)) if received and not experiment.is_shaped else None
    return {
        **{k: v for k, v in asdict(experiment).items() if k not in ("timeout_s",)},
        "pieces": -(-size // torrents.piece_size_for(size)),
        "server_bytes": server_bytes,
        "copies": round(server_bytes / size, 3),
        "bound_s": round(bound, 2),
        "first_s": round(times[0], 2) if times else None,
        "median_s": round(statistics.median(times), 2) if times else None,
        "p95_s": round(times[int(0.95 * (len(times) - 1))], 2) if times else None,
        "p999_s": round(times[int(0.999 * (len(times) - 1))], 2) if times else None,
        "last_s": round(times[-1], 2) if times else None,
        "median_over_bound": round(statistics.median(times) / bound, 3) if times else None,
        "last_over_bound": round(times[-1] / bound, 3) if times else None,
        "unfinished": experiment.clients - len(times),
        "errors": errors[:3],
        "redundant_bytes": redundant,
        "server_cpu_s": round(server_cpu_s, 2),
        "cpu_percent": round(busy, 1),
        "is_void": busy > BUSY_PERCENT,
        "samples": [asdict(s) for s in samples],
    }


def _watch(experiment: Field, server: Server, clients: Sequence[Client], start: float, sent: int) -> list[Sample]:
    """Wait until all clients are done or the time is over; sample what the server sent."""
    samples: list[Sample] = []
    deadline = start + experiment.timeout_s + experiment.arrivals_s
    while time.monotonic() < deadline and any(c.is_busy() for c in clients):
        done = sum(len(c.records) for c in clients)
        samples.append(Sample(time.monotonic() - start, server.sent_bytes() - sent, done * experiment.package_bytes))
        time.sleep(0.25)
    return samples


@contextlib.contextmanager
def _machines(experiment: Field) -> Iterator[list[network.Host | None]]:
    count = experiment.clients // experiment.slots
    if not experiment.is_shaped:
        yield [None] * (count + 1)
        return
    rates = [8 * experiment.server_rate] + [8 * experiment.client_rate] * count
    networks = [0] + [1 + i % experiment.sites if experiment.sites else 0 for i in range(count)]
    with network.hosts(rates, networks=networks) as made:
        yield list(made)


class Server:
    """What serves: `jobagent serve`, or a stock program; counts what it sent."""

    def __init__(self, machine: network.Host | None, address: str) -> None:
        self.machine = machine
        self.address = address
        self.tracker = ""
        self.torrent = Path()
        self.archive: dict[str, Any] = {}
        self.url = ""
        self.processes: list[subprocess.Popen[Any]] = []

    def start(self, words: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a process on the server's machine."""
        argv = self.machine.argv(*words) if self.machine else list(words)
        process = subprocess.Popen(argv, **options)
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
        """Wire bytes of a shaped host, else payload bytes as the server counts them."""
        if self.machine:
            return self.machine.sent_bytes()
        with urllib.request.urlopen(f"{self.url}/status.json", timeout=10) as answer:
            numbers = json.load(answer)["server"]
        return int(numbers["seeder"].get("upload_bytes", 0)) + int(numbers["http_bytes"])

    def call(self, path: str) -> bytes:
        """Ask our services, from their own machine."""
        words = ["curl", "--silent", "--fail", f"{self.url}{path}"]
        argv = self.machine.argv(*words) if self.machine else words
        return subprocess.run(argv, check=True, capture_output=True, timeout=20).stdout


@contextlib.contextmanager
def _server(experiment: Field, directory: Path, machine: network.Host | None) -> Iterator[Server]:
    server = Server(machine, machine.address if machine else "127.0.0.1")
    try:
        _serve(experiment, directory, server)
        yield server
    finally:
        for process in server.processes:
            process.terminate()
            _end(process)


def _serve(experiment: Field, directory: Path, server: Server) -> None:
    """Publish one package of random bytes and start `jobagent serve`."""
    catalogue, keys, port_file = directory / "catalogue", directory / "keys", directory / "port"
    archive = _publish(experiment, catalogue, keys)
    server.archive = asdict(archive)
    server.torrent = catalogue / "torrents" / f"{archive.infohash_v2}.torrent"
    swarm = {"upload_rate_bytes": 0 if experiment.is_shaped else experiment.server_rate, **experiment.central}
    configuration = directory / "central.toml"
    configuration.write_text(_toml({"swarm": swarm, "central": {"mode": experiment.mode}}))
    words = [sys.executable, "-m", "jobagent", "--config", str(configuration), "serve", str(catalogue)]
    words += ["--host", server.address, "--port", "0", "--port-file", str(port_file)]
    with (directory / "serve.log").open("wb") as log:
        process = server.start(words, stdout=log, stderr=log)
    deadline = time.monotonic() + 60
    while not port_file.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError((directory / "serve.log").read_text()[-2000:])
        time.sleep(0.05)
    server.url = f"http://{server.address}:{port_file.read_text().strip()}"
    server.tracker = f"{server.url}/announce"


def _publish(experiment: Field, catalogue: Path, keys: Path) -> Archive:
    """Make a signed catalogue with one archive of random bytes."""
    os.environ.setdefault("JOBAGENT_PASSPHRASE", "bench")  # of keys that live as long as the run
    store = KeyStore(keys)
    keys.mkdir()
    repository, _ = Repository.create(catalogue, store)
    vo = store.new("vo-bench")
    repository.add_vo("bench", [vo.key])
    source = catalogue / "new"
    source.write_bytes(random.Random(experiment.package_bytes).randbytes(experiment.package_bytes))
    made = torrents.create(source, "bench.tar.zst")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    archive = Archive(
        "bench.tar.zst", "tar.zst", digest, experiment.package_bytes, made.infohash_v1, made.infohash_v2
    )
    for path in (catalogue / "archives" / digest, catalogue / "torrents"):
        path.mkdir(parents=True, exist_ok=True)
    source.rename(catalogue / "archives" / digest / archive.file_name)
    (catalogue / "torrents" / f"{archive.infohash_v2}.torrent").write_bytes(made.data)
    package = Package(PackageId("bench", "Bench", "1"), "any", archive, Tree(archive.blob, 1, 1), 1)
    repository.register([package])
    return archive


class Client:
    """A process with one or more clients; a context manager that ends it."""

    def __init__(self, argv: Sequence[str], plan: dict[str, Any], count: int) -> None:
        self._count = count
        self._plan = plan
        self._argv = argv
        self.records: list[dict[str, Any]] = []
        self._ready = threading.Event()
        self._process: subprocess.Popen[str]
        self._reader: threading.Thread

    def __enter__(self) -> Client:
        self._process = subprocess.Popen(self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(self._plan) + "\n")
        self._process.stdin.flush()
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        _end(self._process, patience_s=10)
        self._reader.join(5)

    def wait_ready(self) -> None:
        """Wait until it could start."""
        if not self._ready.wait(60):
            raise RuntimeError("a client did not start")

    def go(self) -> None:
        """Let its clients begin."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def is_busy(self) -> bool:
        """Whether one of its clients is not done yet."""
        return len(self.records) < self._count and self._process.poll() is None

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            record = json.loads(line)
            if "ready" in record:
                self._ready.set()
            else:
                self.records.append(record)
        self._ready.set()


def _clients(
    experiment: Field, directory: Path, server: Server, machines: Sequence[network.Host | None]
) -> list[Client]:
    """One process a shaped host, or one for some clients on loopback."""
    per_process = (
        experiment.slots if experiment.is_shaped else (1 if experiment.clients <= 40 else SESSIONS_PER_PROCESS)
    )
    chance = random.Random(1)
    made: list[Client] = []
    for first in range(0, experiment.clients, per_process):
        machine = machines[first // per_process] if experiment.is_shaped else None
        count = min(per_process, experiment.clients - first)
        specs = [
            {
                "id": number,
                "address": machine.address if machine else f"127.1.{number // 250}.{number % 250 + 1}",
                "directory": str(directory / "clients" / str(number)),
                "upload_rate_bytes": 0 if machine else experiment.client_rate,
                "delay_s": chance.uniform(0, experiment.arrivals_s),
            }
            for number in range(first, first + count)
        ]
        plan = {
            "kind": "libtorrent-default" if experiment.peer == "libtorrent-default" else "agent",
            "package": {"archive": server.archive},
            "torrent": str(server.torrent),
            "tracker": server.tracker,
            "swarm": experiment.swarm,
            "timeout_s": experiment.timeout_s,
            "clients": specs,
        }
        words = [sys.executable, "-m", "bench.swarm_client"]
        made.append(Client(machine.argv(*words) if machine else words, plan, count))
    return made


def _end(process: subprocess.Popen[Any], patience_s: float = 5.0) -> None:
    """End a process: wait, ask, then kill."""
    for act, wait_s in ((None, patience_s), (process.terminate, 3.0), (process.kill, 5.0)):
        if act is not None:
            act()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait_s)
            return


def _machine_cpu() -> tuple[int, int]:
    """Busy and total ticks of this machine."""
    fields = [int(f) for f in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(fields) - fields[3] - fields[4], sum(fields)


def _busy_percent(before: tuple[int, int], after: tuple[int, int]) -> float:
    return 100.0 * (after[0] - before[0]) / max(1, after[1] - before[1])


def _pairs(items: Sequence[str]) -> dict[str, Any]:
    """Read KEY=VALUE, values as JSON where they are."""
    result: dict[str, Any] = {}
    for item in items:
        key, _, value = item.partition("=")
        try:
            result[key] = json.loads(value)
        except ValueError:
            result[key] = value
    return result


def _toml(sections: dict[str, dict[str, Any]]) -> str:
    return "".join(
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
        for name, table in sections.items()
    )


if __name__ == "__main__":
    sys.exit(main())
