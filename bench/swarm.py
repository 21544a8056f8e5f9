"""`bench.swarm`: N clients fetch one package at once; how much the server sends, and how long they take.

Clients have an uplink of `--client-rate`, the server one of `--server-rate`.  On loopback each program's own limiter
makes them so, and the default is slower the more clients there are, since one machine is all of them; with `--hosts`
each is a network namespace whose links the kernel limits, which is neutral.  `copies` is what the server sent over
the package's size (wire bytes with `--hosts`, else payload); `bound_s` is the physical bound max(F/u_s, F/d,
N·F/(u_s+Σu)).  A run on a machine that was more than 80 % busy is marked `is_void`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

from bench import leave_nothing_when_terminated, network
from bench.swarm_field import Field
from bench.swarm_servers import SERVERS, Server, aria2c, describe, end, serving, site_seeders
from jobagent.central.packaging import torrents
from jobagent.central.services.plot import Sample

BUSY_PERCENT = 80.0
LOOPBACK_RATE = 18.0  # MB/s of all clients together, at which two cores are not the limit
PATIENCE = 4.0  # times the bound, until clients count as unfinished
PROGRESS_S = 10.0
SESSIONS_PER_PROCESS = 50
KINDS = {"aria2c": "command", "nginx": "command"}


def main() -> int:
    """Measure and report."""
    parser = _parser()
    options = parser.parse_args()
    if not 1 <= options.slots <= options.clients or options.clients % options.slots:
        parser.error("--clients is to be a multiple of --slots, and at least one")
    leave_nothing_when_terminated()
    one = _field(options)
    fields = [one] * options.repeats if not options.full else full(one)
    results = []
    for item in fields:
        print(f"{item.peer}: {item.clients} clients, bound {item.bound_s:.1f} s", file=sys.stderr, flush=True)
        results.append(measure(item))
        print(json.dumps({k: v for k, v in results[-1].items() if k != "samples"}), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results[0] if len(results) == 1 else {"runs": results}, indent=2) + "\n")
    return 0 if all(r["unfinished"] == 0 for r in results) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.swarm", description=__doc__)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument(
        "--hosts", action="store_true", help="shaped network namespaces instead of loopback; needs root"
    )
    parser.add_argument("--peer", choices=tuple(SERVERS), default="agent", help="who serves and fetches")
    parser.add_argument("--mode", default="default", help="distribution mode of the seeder")
    parser.add_argument("--size", type=float, default=12.0, metavar="MB", help="package")
    parser.add_argument(
        "--client-rate", type=float, metavar="MB/S", help=f"default: 1, on loopback all together {LOOPBACK_RATE:.0f}"
    )
    parser.add_argument(
        "--server-rate", type=float, metavar="MB/S", help="default: 2.5, on loopback four times a client's"
    )
    parser.add_argument("--arrivals", type=float, default=0.0, metavar="S", help="spread over so many seconds")
    parser.add_argument("--slots", type=int, default=1, help="clients on one host")
    parser.add_argument("--shared", action="store_true", help="with --slots: one session a host")
    parser.add_argument("--sites", type=int, default=0, help="with --hosts: spread the hosts over so many sites")
    parser.add_argument(
        "--site-seeders", action="store_true", help="with --sites: a `jobagent seeder --site` in each"
    )
    parser.add_argument(
        "--closed", action="store_true", help="with --sites: nodes reach only their site and the server"
    )
    parser.add_argument("--site-rate", type=float, default=0.0, metavar="MB/S", help="of a site's link; 0: no limit")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="[swarm] of the clients")
    parser.add_argument("--central", action="append", default=[], metavar="KEY=VALUE", help="[swarm] of the server")
    parser.add_argument(
        "--settings", action="append", default=[], metavar="KEY=VALUE", help="[central] of the server"
    )
    parser.add_argument("--full", action="store_true", help="all modes and peers, in turn")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    return parser


def _field(options: argparse.Namespace) -> Field:
    """The experiment that the options describe; patience follows its bound."""
    client_rate = options.client_rate or (1.0 if options.hosts else min(1.0, LOOPBACK_RATE / options.clients))
    server_rate = options.server_rate or (2.5 if options.hosts else 4 * client_rate)
    one = Field(
        clients=options.clients,
        package_bytes=int(options.size * 1e6),
        client_rate=int(client_rate * 1e6),
        server_rate=int(server_rate * 1e6),
        is_shaped=options.hosts,
        peer=options.peer,
        mode=options.mode,
        arrivals_s=options.arrivals,
        slots=options.slots,
        is_shared=options.shared,
        sites=options.sites,
        site_rate=int(options.site_rate * 1e6),
        has_site_seeders=options.site_seeders,
        is_closed=options.closed,
        swarm=_pairs(options.set),
        central=_pairs(options.central),
        settings=_pairs(options.settings),
    )
    return replace(one, timeout_s=max(one.timeout_s, PATIENCE * one.bound_s))


def full(one: Field) -> list[Field]:
    """The thorough programme: each peer in turn, five times, on the same field."""
    return [replace(one, peer=peer) for _ in range(5) for peer in SERVERS]


def measure(experiment: Field) -> dict[str, Any]:
    """Run one experiment; whatever happens, processes, scratch and namespaces are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="jobagent-bench-") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        machines = stack.enter_context(_machines(experiment))
        server = stack.enter_context(serving(experiment, directory, machines[0]))
        nodes = machines[1 : 1 + experiment.clients // experiment.slots]
        stack.enter_context(site_seeders(server, machines[1 + len(nodes) :]))
        clients = _clients(experiment, directory, server, nodes)
        for client in clients:
            stack.enter_context(client)
        for client in clients:
            client.wait_ready()
        before, cpu, sent = server.cpu_s(), _machine_cpu(), server.sent_bytes()
        sites = range(1, experiment.sites + 1)
        into_sites = [network.site_received(site) for site in sites]
        start = time.monotonic()
        for client in clients:
            client.go()
        samples = _watch(experiment, server, clients, start, sent)
        busy = _busy_percent(cpu, _machine_cpu())
        server_bytes, server_cpu_s = server.sent_bytes() - sent, server.cpu_s() - before
        figures = _figures(experiment, clients, server_bytes, server_cpu_s, busy, samples)
        figures["site_copies"] = [
            round((network.site_received(site) - before) / experiment.package_bytes, 3)
            for site, before in zip(sites, into_sites, strict=True)
        ]
        return figures


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
    said_s = start
    while time.monotonic() < deadline and any(c.is_busy() for c in clients):
        done, now_s = sum(len(c.records) for c in clients), time.monotonic()
        with contextlib.suppress(OSError):  # the server is too busy to say it now
            samples.append(Sample(now_s - start, server.sent_bytes() - sent, done * experiment.package_bytes))
        if samples and now_s - said_s >= PROGRESS_S:
            said_s, copies = now_s, samples[-1].server_bytes / experiment.package_bytes
            print(f"{now_s - start:.0f} s: {copies:.2f} copies sent, {done} complete", file=sys.stderr, flush=True)
        time.sleep(0.25)
    return samples


@contextlib.contextmanager
def _machines(experiment: Field) -> Iterator[list[network.Host | None]]:
    count = experiment.clients // experiment.slots
    if not experiment.is_shaped:
        yield [None] * (count + 1)
        return
    rates = [8 * experiment.server_rate] + [8 * experiment.client_rate] * count
    sites = [0] + [1 + i % experiment.sites if experiment.sites else 0 for i in range(count)]
    if experiment.has_site_seeders:
        rates += [8 * experiment.client_rate] * experiment.sites  # as elected nodes have
        sites += range(1, experiment.sites + 1)
    closed = range(1, count + 1) if experiment.is_closed else ()
    with network.hosts(rates, sites=sites, site_bits=8 * experiment.site_rate, closed=closed) as made:
        yield list(made)


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
        end(self._process, patience_s=10)
        self._reader.join(5)
        assert self._process.stdout is not None
        self._process.stdout.close()

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
        numbers = range(first, first + count)
        plan = {
            "kind": KINDS.get(experiment.peer, experiment.peer),
            "package": {"archive": describe(server.archive)},
            "torrent": str(server.torrent),
            "tracker": server.tracker,
            "swarm": experiment.swarm,
            "is_shared": experiment.is_shared,
            "timeout_s": experiment.timeout_s,
            "clients": [_spec(experiment, directory, server, machine, number, chance) for number in numbers],
        }
        words = [sys.executable, "-m", "bench.swarm_client"]
        made.append(Client(machine.argv(*words) if machine else words, plan, count))
    return made


def _spec(
    experiment: Field,
    directory: Path,
    server: Server,
    machine: network.Host | None,
    number: int,
    chance: random.Random,
) -> dict[str, Any]:
    """One client: where it is, and for stock programs its command."""
    address = machine.address if machine else f"127.1.{number // 250}.{number % 250 + 1}"
    home = directory / "clients" / str(number)
    rate = 0 if machine else experiment.client_rate
    spec = {
        "id": number,
        "address": address,
        "directory": str(home),
        "upload_rate_bytes": rate,
        "delay_s": chance.uniform(0, experiment.arrivals_s),
    }
    if experiment.peer == "nginx":
        spec["argv"] = ["curl", "--silent", "--fail", "--output", str(home / "file"), server.url]
    elif experiment.peer == "aria2c":
        options = [f"--dir={home}", "--seed-ratio=0.0", f"--max-overall-upload-limit={rate}"]
        script = directory / "complete"  # aria2c calls it with gid, number of files, first file
        script.write_text('#!/bin/sh\n: > "$(dirname "$3")/done"\n')
        script.chmod(0o755)
        spec["argv"] = [*aria2c(address), *options, f"--on-bt-download-complete={script}", str(server.torrent)]
        spec["done_file"] = str(home / "done")
    return spec


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


if __name__ == "__main__":
    sys.exit(main())
