"""`bench.landing`: pilots on bare worker nodes of one site, from the script's start to joining the pool.

- `cold_s`, `warm_s`: seconds from the script's start to that of condor_master, on a virgin node and for the next
  pilot there where the site keeps a cache; `cold_ready_s`, `warm_ready_s` until the pool may send jobs; `…_20_s` the
  median of 20 pilots at once.
- `wire_s`: what the bytes that a virgin node received need on its link of `link_mbit`; `cold_over_wire_s`: the rest.
- `central_mb_per_landing`: all bytes that the central host sent (script, first stage, metadata, tracker, seeder,
  pool) by number of landings; `later_mb_per_landing` the same without the site's first copy.  1 and 20 land at once,
  more in batches, while the site holds only the latest `SITE_HOLDS` pilots.  `central_parts_mb` says of what.
- `bundle_mb`: the first stage; `before_first_package_mb`: all that lands before the first package, compressed.

Each node is a minimal Debian with a link and processes of its own; all of them share this machine's cores, so the
seconds of many landings at once are those of a busy machine: `cpu_percent` says how busy.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import leave_nothing_when_terminated
from jobagent.testing.barenode import BareNode, is_possible
from jobagent.testing.grid import Grid, Sent

LINK_MBIT = 1000
LIMIT_S = 600.0
LEAVE_S = 60.0
BATCH = 10
SITE_HOLDS = 20
CACHE = "/var/lib/site-cache"

_BEGUN = re.compile(r" pilot (\d+-\d+-\w+) \+0\.\d+ INFO begin ")
_LANDED = re.compile(r"\+([0-9.]+) INFO condor_master started")


class Pilot(threading.Thread):
    """A pilot on a node; follows its log to the end, so that the pilot never waits for a reader."""

    def __init__(self, grid: Grid, node: BareNode) -> None:
        super().__init__(daemon=True)
        node.directory(CACHE)
        environment = grid.equip(node) | {"JOBAGENT_CACHE": CACHE, "JOBAGENT_SITE": "site-a"}
        self.node = node
        self.name_in_pool = ""
        self.began_s = 0.0  # monotonic
        self.seconds = 0.0
        self.log: list[str] = []
        self.landed = threading.Event()
        self._before_bytes = node.received_bytes()
        self._process: subprocess.Popen[str] = node.start(*grid.land(), environment=environment)
        self.start()

    def run(self) -> None:
        """Read."""
        assert self._process.stderr is not None
        with contextlib.suppress(ValueError):  # closed when the node is stopped
            for line in self._process.stderr:
                self.log.append(line)
                if begun := _BEGUN.search(line):
                    self.name_in_pool, self.began_s = begun[1], time.monotonic()
                elif landed := _LANDED.search(line):
                    self.seconds = float(landed[1])
                    self.landed.set()
        self.landed.set()

    def wait(self, deadline: float) -> None:
        """Wait until it has landed; ends the benchmark where it has not."""
        self.landed.wait(max(0.0, deadline - time.monotonic()))
        if not self.seconds:
            sys.exit(f"bench.landing: a pilot did not land:\n{''.join(self.log)[-3000:]}")

    def received_bytes(self) -> int:
        """What came over its node's link since it began."""
        return self.node.received_bytes() - self._before_bytes

    def leave(self) -> None:
        """Ask it to end, as the batch system does, and wait."""
        for pid in self.node.pids():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes() == b"sh\0":  # that of `wget … | sh`
                    os.kill(pid, signal.SIGTERM)

    def join_node(self) -> None:
        """Wait for its end after `leave`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(LEAVE_S)
        self.node.stop()


@dataclass(frozen=True, slots=True)
class Landings:
    """Some landings: seconds of each, what the central host sent and the first node received, how busy the cores."""

    seconds: tuple[float, ...]
    sent: Sent
    received_bytes: int
    cpu_percent: float
    ready_s: float = 0.0


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="python -m bench.landing", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--full", action="store_true", help="100 landings too, and the smallest bundle")
    parser.add_argument("--numbers", type=int, nargs="+", metavar="N", help="landings; 1 is always among them")
    options = parser.parse_args()
    if why := is_possible():
        sys.exit(f"bench.landing: {why}")
    leave_nothing_when_terminated()
    numbers = options.numbers or ([1, 20, 100] if options.full else [1, 20])
    figures = measure(numbers=[n for n in numbers if n > 1], effort=9 if options.full else 4)
    text = json.dumps(figures, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    return 0


def measure(*, numbers: Sequence[int], effort: int) -> dict[str, Any]:
    """Return all figures."""
    settings = {"glidein": {"idle_s": 3600, "condor_config": ""}}  # production's intervals
    figures: dict[str, Any] = {"link_mbit": LINK_MBIT, "cores": os.cpu_count()}
    tell("bundle, pool and services")
    with Grid(effort=effort, settings=settings) as grid:
        figures["condor"] = grid.condor.version
        with BareNode(grid.lan, link_mbit=LINK_MBIT) as node:
            cold, warm = at_once(grid, [node]), at_once(grid, [node])
        wire_s = cold.received_bytes * 8 / (LINK_MBIT * 1e6)
        figures |= {"cold_s": cold.seconds[0], "cold_ready_s": round(cold.ready_s, 2)}
        figures |= {"warm_s": warm.seconds[0], "warm_ready_s": round(warm.ready_s, 2)}
        figures |= {"wire_s": round(wire_s, 2), "cold_over_wire_s": round(cold.seconds[0] - wire_s, 2)}
        figures["landing_mb"] = round(cold.received_bytes / 1e6, 2)
        central, later, parts = {"1": mb(cold.sent.wire), "1 warm": mb(warm.sent.wire)}, {}, {"1": of_what(cold.sent)}
        busy = {"1": round(cold.cpu_percent)}
        for number in numbers:
            crowd = many(grid, number, figures)
            central[str(number)] = mb(crowd.sent.wire / number)
            later[str(number)] = mb((crowd.sent.wire - cold.sent.wire) / (number - 1))
            parts[str(number)] = of_what(crowd.sent)
            busy[str(number)] = round(crowd.cpu_percent)
        figures |= {"central_mb_per_landing": central, "later_mb_per_landing": later, "central_parts_mb": parts}
        figures |= {"cpu_percent": busy, "bundle_mb": mb(grid.bundle_bytes)}
        script = len((grid.directory / "bundle" / "pilot.sh").read_bytes())
        packages = sum(p["size_bytes"] for p in grid.world.status()["packages"])
        figures["before_first_package_mb"] = mb(grid.bundle_bytes + script + packages)
    return figures


def many(grid: Grid, number: int, figures: dict[str, Any]) -> Landings:
    """Let many land, at once where the site holds them all, else in batches; note the seconds in `figures`."""
    if number > SITE_HOLDS:
        crowd = in_batches(grid, number)
    else:
        with contextlib.ExitStack() as stack:
            nodes = [stack.enter_context(BareNode(grid.lan, link_mbit=LINK_MBIT)) for _ in range(number)]
            crowd = at_once(grid, nodes)
            figures[f"warm_{number}_s"] = statistics.median(at_once(grid, nodes).seconds)
    figures[f"cold_{number}_s"] = statistics.median(crowd.seconds)
    return crowd


def at_once(grid: Grid, nodes: Sequence[BareNode]) -> Landings:
    """Let a pilot land on each node at the same time; end them all when all have landed."""
    sent, begin_s, busy_s = grid.sent(), time.monotonic(), cpu_s()
    pilots = [Pilot(grid, node) for node in nodes]
    for pilot in pilots:
        pilot.wait(begin_s + LIMIT_S)
    share = cpu_share(busy_s, begin_s)
    sent = grid.sent().since(sent)
    tell(f"{len(pilots)} landed after {statistics.median(pilot.seconds for pilot in pilots):.1f} s")
    received = pilots[0].received_bytes()
    ready_s = seconds_to_ready(grid, pilots[0]) if len(pilots) == 1 else 0.0
    end(pilots)
    return Landings(tuple(pilot.seconds for pilot in pilots), sent, received, share, ready_s)


def in_batches(grid: Grid, number: int) -> Landings:
    """Let pilots land on ever new nodes of the site, and end the oldest when it holds enough."""
    sent, begin_s, busy_s = grid.sent(), time.monotonic(), cpu_s()
    seconds: list[float] = []
    received = 0
    with contextlib.ExitStack() as all_nodes:
        present: list[tuple[contextlib.ExitStack, list[Pilot]]] = []
        while len(seconds) < number:
            stack = all_nodes.enter_context(contextlib.ExitStack())
            size = min(BATCH, number - len(seconds))
            nodes = [stack.enter_context(BareNode(grid.lan, link_mbit=LINK_MBIT)) for _ in range(size)]
            batch = [Pilot(grid, node) for node in nodes]
            deadline = time.monotonic() + LIMIT_S
            for pilot in batch:
                pilot.wait(deadline)
            seconds += [pilot.seconds for pilot in batch]
            received = received or batch[0].received_bytes()
            present.append((stack, batch))
            tell(f"{len(seconds)} of {number} have landed")
            if len(present) * BATCH >= SITE_HOLDS and len(seconds) < number:
                oldest, pilots = present.pop(0)
                end(pilots)
                oldest.close()
        share, sent = cpu_share(busy_s, begin_s), grid.sent().since(sent)
        end([pilot for _, batch in present for pilot in batch])
    return Landings(tuple(seconds), sent, received, share)


def end(pilots: Sequence[Pilot]) -> None:
    """Let pilots leave."""
    for pilot in pilots:
        pilot.leave()
    for pilot in pilots:
        pilot.join_node()


def seconds_to_ready(grid: Grid, pilot: Pilot) -> float:
    """Wait until the pilot's slot takes jobs, as the pool sees it; return the seconds since the script began."""
    ready: list[float] = []

    def is_ready() -> bool:
        ads = grid.pool.machines("GlideinPilot", "JobAgentReady")
        if any(ad.get("GlideinPilot") == pilot.name_in_pool and ad.get("JobAgentReady") is True for ad in ads):
            ready.append(time.monotonic() - pilot.began_s)
        return bool(ready)

    grid.pool.wait_until(is_ready, LIMIT_S)
    return ready[0]


def tell(text: str) -> None:
    """Say on standard error how far it is."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def mb(size_bytes: float) -> float:
    """Return megabytes as they are printed."""
    return round(size_bytes / 1e6, 3)


def of_what(sent: Sent) -> dict[str, float]:
    """Return what the central host's bytes were."""
    rest = sent.wire - sent.web - sent.seeder
    return {"web": mb(sent.web), "seeder": mb(sent.seeder), "headers, HTCondor": mb(rest)}


def cpu_share(busy_s: float, begin_s: float) -> float:
    """Return how busy the cores were since, in percent."""
    return 100 * (cpu_s() - busy_s) / (time.monotonic() - begin_s) / (os.cpu_count() or 1)


def cpu_s() -> float:
    """Seconds that this machine's cores have worked, all processes together."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    idle = int(words[3]) + int(words[4])
    return (sum(map(int, words[:8])) - idle) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())
