"""`bench.landing`: pilots on bare worker nodes of one site, from the script's start to joining the pool.

- `cold_s`, `warm_s`: seconds of a landing on a virgin node, and of the next one where the site keeps a cache.
- `wire_s`: what the bytes that a virgin node received need on its link of `link_mbit`; `cold_over_wire_s`: the rest.
- `central_mb_per_landing`: all bytes that the central host sent (script, first stage, metadata, tracker, seeder,
  pool), by number of landings at once; `later_mb_per_landing` the same without the site's first copy.
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
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobagent.testing.barenode import BareNode, is_possible
from jobagent.testing.grid import Grid

LINK_MBIT = 1000
LIMIT_S = 600.0
CACHE = "/var/lib/site-cache"
_LANDED = re.compile(r"\+([0-9.]+) INFO condor_master started")


@dataclass(frozen=True, slots=True)
class Landings:
    """Some landings at once: seconds of each, bytes that the central host sent and that each node received."""

    seconds: tuple[float, ...]
    central_bytes: int
    received_bytes: tuple[int, ...]
    cpu_percent: float


class Watch(threading.Thread):
    """Follows one pilot's log until it has landed."""

    def __init__(self, started: subprocess.Popen[str]) -> None:
        super().__init__(daemon=True)
        self._pilot = started
        self.seconds = 0.0
        self.log: list[str] = []
        self.landed = threading.Event()
        self.start()

    def run(self) -> None:
        """Read to the end, so that the pilot never waits for a reader."""
        assert self._pilot.stderr is not None
        with contextlib.suppress(ValueError):  # closed when the node is stopped
            for line in self._pilot.stderr:
                self.log.append(line)
                if found := _LANDED.search(line):
                    self.seconds = float(found[1])
                    self.landed.set()
        self.landed.set()


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="python -m bench.landing", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--full", action="store_true", help="100 landings at once too, and the smallest bundle")
    options = parser.parse_args()
    if why := is_possible():
        sys.exit(f"bench.landing: {why}")
    figures = measure(numbers=(1, 20, 100) if options.full else (1, 20), effort=9 if options.full else 6)
    text = json.dumps(figures, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    return 0


def measure(*, numbers: Sequence[int], effort: int) -> dict[str, Any]:
    """Return all figures."""
    settings = {"glidein": {"idle_s": 3600, "condor_config": ""}}  # production's intervals
    figures: dict[str, Any] = {"link_mbit": LINK_MBIT, "cores": os.cpu_count(), "condor": ""}
    central: dict[str, float] = {}
    later: dict[str, float] = {}
    busy: dict[str, float] = {}
    with Grid(effort=effort, settings=settings) as grid:
        figures["condor"] = grid.condor.version
        for number in numbers:
            with contextlib.ExitStack() as stack:
                nodes = [stack.enter_context(BareNode(grid.lan, link_mbit=LINK_MBIT)) for _ in range(number)]
                cold = land(grid, nodes)
                warm = land(grid, nodes)
            name = "" if number == 1 else f"_{number}"
            figures[f"cold{name}_s"] = round(statistics.median(cold.seconds), 2)
            figures[f"warm{name}_s"] = round(statistics.median(warm.seconds), 2)
            if number == 1:
                wire_s = cold.received_bytes[0] * 8 / (LINK_MBIT * 1e6)
                figures |= {"wire_s": round(wire_s, 2), "cold_over_wire_s": round(cold.seconds[0] - wire_s, 2)}
                figures["landing_mb"] = round(cold.received_bytes[0] / 1e6, 2)
                first_bytes = cold.central_bytes
            else:
                later[str(number)] = round((cold.central_bytes - first_bytes) / (number - 1) / 1e6, 3)
            central[str(number)] = round(cold.central_bytes / number / 1e6, 3)
            central[f"{number} warm"] = round(warm.central_bytes / number / 1e6, 3)
            busy[str(number)] = round(cold.cpu_percent)
        figures["central_mb_per_landing"] = central
        figures["later_mb_per_landing"] = later
        figures["cpu_percent"] = busy
        figures["bundle_mb"] = round(grid.bundle_bytes / 1e6, 2)
        script = len((grid.directory / "bundle" / "pilot.sh").read_bytes())
        packages = sum(p["size_bytes"] for p in grid.world.status()["packages"])
        figures["before_first_package_mb"] = round((grid.bundle_bytes + script + packages) / 1e6, 2)
    return figures


def land(grid: Grid, nodes: Sequence[BareNode]) -> Landings:
    """Let a pilot land on each node at the same time; end them all when all have landed."""
    environments = []
    for node in nodes:
        node.directory(CACHE)
        environments.append(grid.equip(node) | {"JOBAGENT_CACHE": CACHE, "JOBAGENT_SITE": "site-a"})
    before = [node.received_bytes() for node in nodes]
    sent, begin_s, busy_s = grid.lan.sent_bytes(), time.monotonic(), cpu_s()
    watches = [
        Watch(node.start(*grid.land(), environment=environment))
        for node, environment in zip(nodes, environments, strict=True)
    ]
    deadline = begin_s + LIMIT_S
    for watch in watches:
        watch.landed.wait(max(0.0, deadline - time.monotonic()))
    share = (cpu_s() - busy_s) / (time.monotonic() - begin_s) / (os.cpu_count() or 1)
    result = Landings(
        tuple(watch.seconds for watch in watches),
        grid.lan.sent_bytes() - sent,
        tuple(node.received_bytes() - b for node, b in zip(nodes, before, strict=True)),
        100 * share,
    )
    for node in nodes:
        node.stop()
    failed = [watch for watch in watches if not watch.seconds]
    if failed:
        sys.exit(
            f"bench.landing: {len(failed)} of {len(nodes)} pilots did not land:\n{''.join(failed[0].log)[-3000:]}"
        )
    return result


def cpu_s() -> float:
    """Seconds that this machine's cores have worked, all processes together."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    idle = int(words[3]) + int(words[4])
    return (sum(map(int, words[:8])) - idle) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())
