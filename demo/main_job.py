"""`make demo`: one job on several worker nodes of one machine; its software comes by signed torrent.

What runs here is the real thing on loopback: real packages from PyPI, a signed catalogue, tracker and seeder, and
one job agent per worker node with its own address and its own scratch.  The second run starts from what is there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from rich.table import Table

from jobagent.central.services.plot import Sample, plot_traffic

ROOT = Path(__file__).resolve().parent.parent
JOB = ROOT / "demo" / "job" / "pythia.jdl"
VO = "alice"
PASSPHRASE = "demo"  # the demo's keys protect the demo only
PACKAGES = (
    ["--interpreter"],
    ["--cxx-headers"],  # ROOT's interpreter of C++ reads them, and a bare node has none
    ["--wheel", "pythia8mc==8.317.2", "--depends", "Python"],
    ["--wheel", "root==0.1a12", "--name", "ROOT", "--depends", "Python", "--depends", "Cxx-headers"],
)
SERVER_UPLINK_BYTES = 25_000_000  # per second: a server whose uplink is dear, as in life; nodes have no limit


@dataclass(slots=True)
class Node:
    """One worker node: an address, a scratch directory, and the agent's process with what it told so far."""

    number: int
    directory: Path
    process: subprocess.Popen[bytes] | None = None
    received_bytes: dict[str, int] = field(default_factory=dict)
    total_bytes: dict[str, int] = field(default_factory=dict)
    phase: str = "waits"
    position: int = 0
    fetching: list[float] = field(default_factory=list)

    @property
    def address(self) -> str:
        """The node's own address on loopback."""
        return f"127.0.1.{self.number}"

    def read_events(self) -> None:
        """Follow the agent's event file."""
        path = self.directory / "events.jsonl"
        if not path.exists():
            return
        with path.open(encoding="utf-8") as stream:
            stream.seek(self.position)
            while (line := stream.readline()).endswith("\n"):
                self.position = stream.tell()
                self._on_event(json.loads(line))

    def _on_event(self, event: dict[str, Any]) -> None:
        if event["event"] == "progress":
            self.received_bytes[event["task"]] = event["done"]
            self.total_bytes[event["task"]] = event["total"]
        elif event["event"] == "phase.started":
            self.phase = event["phase"]
        if event["event"].startswith("phase.") and event["phase"] == "fetch":
            self.fetching.append(event["time_s"])

    def seconds(self, report: dict[str, Any]) -> dict[str, float]:
        """Return the seconds of the phases as they followed each other; packages are fetched side by side."""
        measured = report["seconds"]
        seconds = {name: measured.get(name, 0.0) for name in ("resolve", "packages", "payload", "validate", "close")}
        packages = seconds.pop("packages")
        fetch = min(packages, max(self.fetching) - min(self.fetching)) if self.fetching else 0.0
        return seconds | {"fetch": fetch, "unpack": packages - fetch}


def main() -> int:
    """Run the demo and return 0 where every node's job was valid."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--nodes", type=int, default=4, help="worker nodes (default 4)")
    parser.add_argument("--events", type=int, default=200, help="pp events per job (default 200)")
    parser.add_argument("--directory", type=Path, default=ROOT / "build" / "demo", help="where it works")
    options = parser.parse_args()
    console = Console()
    directory = options.directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    publish(directory, console)
    with Services(directory, console) as services:
        nodes, samples = run_nodes(directory, services.url, options, console)
    show(nodes, directory, samples, console)
    return 0 if all(n.process is not None and n.process.returncode == 0 for n in nodes) else 1


def command(*words: str | Path) -> list[str]:
    """Return the argv of a `jobagent` command in this environment."""
    return [sys.executable, "-m", "jobagent", *map(str, words)]


def call(*words: str | Path) -> None:
    """Run a command whose output is shown; end the demo where it fails."""
    done = subprocess.run(command(*words), env=os.environ | {"JOBAGENT_PASSPHRASE": PASSPHRASE}, check=False)
    if done.returncode:
        sys.exit(f"make demo: jobagent {' '.join(map(str, words))} ended with {done.returncode}")


def publish(directory: Path, console: Console, packages: Sequence[Sequence[str]] = PACKAGES) -> None:
    """Make the catalogue and its packages, where they are not there yet."""
    catalogue, keys = directory / "catalogue", directory / "keys"
    if not (directory / ".initialised").exists():
        console.rule("a catalogue for the VO")
        for path in (catalogue, keys):
            shutil.rmtree(path, ignore_errors=True)
        call("catalogue", "init", catalogue, "--keys", keys)
        call("vo", "add", VO, "--catalogue", catalogue, "--keys", keys)
        (directory / ".initialised").touch()
    console.rule("packages: the build system's last step")
    for words in packages:
        store = ("--vo", VO, "--catalogue", catalogue, "--keys", keys)
        call("publish", *store, "--skip-existing", *words)
    call("list", "--catalogue", catalogue, "--root", catalogue / "metadata" / "1.root.json")


class Services:
    """The central services: `jobagent serve` on a free port of loopback."""

    def __init__(self, directory: Path, console: Console) -> None:
        self._directory = directory
        self._console = console
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def __enter__(self) -> Services:
        port_file = self._directory / "serve.port"
        port_file.unlink(missing_ok=True)
        self._log = (self._directory / "serve.log").open("wb")
        configuration = self._directory / "central.toml"
        configuration.write_text(f"[swarm]\nupload_rate_bytes = {SERVER_UPLINK_BYTES}\n")
        words = ("--host", "127.0.0.1", "--port", "0", "--port-file", port_file, "--keys", self._directory / "keys")
        self._process = subprocess.Popen(
            command("--config", configuration, "serve", self._directory / "catalogue", *words),
            stdout=self._log,
            stderr=self._log,
            env=os.environ | {"JOBAGENT_PASSPHRASE": PASSPHRASE},
        )
        deadline = time.monotonic() + 60
        while not port_file.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                sys.exit(f"make demo: the central services did not start: see {self._directory / 'serve.log'}")
            time.sleep(0.05)
        self.url = f"http://127.0.0.1:{port_file.read_text().strip()}"
        self._console.rule(f"central services at {self.url}")
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._log is not None:
            self._log.close()


def run_nodes(
    directory: Path, url: str, options: argparse.Namespace, console: Console
) -> tuple[list[Node], list[Sample]]:
    """Run one agent per node at the same time; return the nodes and the traffic over time."""
    shutil.rmtree(directory / "nodes", ignore_errors=True)
    nodes = [Node(i + 1, directory / "nodes" / f"node-{i + 1}") for i in range(options.nodes)]
    console.rule(f"{len(nodes)} worker nodes, each with nothing but its job's description")
    samples: list[Sample] = []
    start = time.monotonic()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[phase]}"),
    )
    try:
        with Progress(*columns, console=console) as progress:
            bars = {n.number: progress.add_task(f"node {n.number}", total=None, phase="") for n in nodes}
            for node in nodes:
                node.process = start_node(node, directory, url, options.events)
            while any(n.process is not None and n.process.poll() is None for n in nodes):
                for node in nodes:
                    follow(node, progress, bars[node.number])
                samples.append(sample(nodes, url, time.monotonic() - start))
                time.sleep(0.2)
            for node in nodes:
                follow(node, progress, bars[node.number])
    finally:
        for node in nodes:
            if node.process is not None and node.process.poll() is None:
                node.process.terminate()
                node.process.wait()
    return nodes, samples


def start_node(node: Node, directory: Path, url: str, events: int) -> subprocess.Popen[bytes]:
    """Start the agent of one node."""
    scratch = node.directory / "scratch"
    scratch.mkdir(parents=True)
    root = directory / "catalogue" / "metadata" / "1.root.json"
    configuration = node.directory / "jobagent.toml"
    configuration.write_text(
        f'[site]\nname = "demo"\nscratch = "{scratch}"\naddress = "{node.address}"\n'
        f'[catalogue]\nurls = ["{url}"]\nroot = "{root}"\n[job]\nvo = "{VO}"\n'
    )
    words = ("--output", node.directory / "output", "--json", node.directory / "report.json")
    words += ("--events", node.directory / "events.jsonl", "--job-id", f"demo-{node.number}")
    with (node.directory / "agent.log").open("wb") as log:
        return subprocess.Popen(
            command("--config", configuration, "run", *words, JOB, str(events), str(node.number)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={"PATH": "/usr/bin:/bin", "HOME": str(node.directory)},
        )


def follow(node: Node, progress: Progress, bar: Any) -> None:
    """Bring a node's bar up to date."""
    node.read_events()
    total = sum(node.total_bytes.values()) or None
    ended = node.process is not None and node.process.poll() is not None
    phase = f"exit {node.process.returncode}" if ended and node.process else node.phase
    progress.update(bar, completed=sum(node.received_bytes.values()), total=total, phase=phase)


def sample(nodes: list[Node], url: str, time_s: float) -> Sample:
    """Ask the server what it sent and sum what the nodes have."""
    with urllib.request.urlopen(f"{url}/status.json", timeout=5) as answer:
        server_bytes = int(json.load(answer)["server"]["seeder"]["upload_bytes"])
    return Sample(time_s, server_bytes, sum(sum(n.received_bytes.values()) for n in nodes))


def show(nodes: list[Node], directory: Path, samples: list[Sample], console: Console) -> None:
    """Print the table of the slides and draw the traffic picture."""
    title = "What each node received (MB), and how long each phase took (s)"
    table = Table(
        title=title, title_justify="left", box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0)
    )
    phases = {"resolve": "resolve", "fetch": "fetch", "unpack": "unpack", "payload": "payload"}
    phases |= {"validate": "check", "close": "clean up"}
    origins = {"seeder_bytes": "seeder", "neighbour_bytes": "neighbours", "web_bytes": "web"}
    reports = [json.loads((n.directory / "report.json").read_text()) for n in nodes]
    if not any(report.get("traffic", {}).get("web_bytes") for report in reports):
        del origins["web_bytes"]  # as it should be, and 80 columns are narrow
    for column in ("node", "exit", *origins.values(), *phases.values(), "total"):
        table.add_column(column, justify="right", no_wrap=True)
    seeder = everything = 0
    for node, report in zip(nodes, reports, strict=True):
        traffic, seconds = report.get("traffic", {}), node.seconds(report)
        seeder += traffic.get("seeder_bytes", 0)
        everything += sum(traffic.values())
        sizes = [f"{traffic.get(k, 0) / 1e6:.1f}" for k in origins]
        code = node.process.returncode if node.process else "-"
        times = [f"{seconds[phase]:.1f}" for phase in phases]
        table.add_row(str(node.number), str(code), *sizes, *times, f"{sum(seconds.values()):.1f}")
    console.print(table)
    if everything:
        copies = seeder * len(nodes) / everything
        console.print(
            f"{everything / 1e6:.0f} MB delivered, {seeder / 1e6:.0f} MB by the seeder: {copies:.2f} copies"
        )
    picture = directory / "traffic.png"
    plot_traffic(samples, picture)
    left = [p for n in nodes for p in (n.directory / "scratch").iterdir()]
    console.print(f"left on the nodes: {left or 'nothing'}")
    shown = os.path.relpath(directory)
    console.print(f"pictures: {shown}/traffic.png and {shown}/nodes/node-*/output/multiplicity.png", soft_wrap=True)
    for node in nodes:
        if node.process is not None and node.process.returncode:
            console.print(f"node {node.number} failed: see {node.directory / 'agent.log'}", style="red")


if __name__ == "__main__":
    sys.exit(main())
