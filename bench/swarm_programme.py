"""The swarm's benchmarks, group by group: shaped hosts against stock programs, crowds, sites, slots.

    python -m bench.swarm_programme GROUP [--full] [--rows WORD] [--json FILE]

Quick is one run a row and takes three to eight minutes a group; `--full` is all rows and five repeats, alternating.
`bench.report` makes the page from the JSON files.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import leave_nothing_when_terminated, network
from bench.swarm import measure
from bench.swarm_field import Field

FULL_REPEATS = 5
PROGRAMS = {"aria2c": ("aria2c",), "nginx": ("nginx", "curl")}


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a table; `is_quick` rows are in every run."""

    label: str
    field: Field
    is_quick: bool = True


def hosts() -> list[Row]:
    """20 shaped hosts of 1 MB/s, server of 2.5 MB/s, 12 MB."""
    one = Field(is_shaped=True, timeout_s=120.0)
    small = replace(one, clients=6, package_bytes=4_000_000, peer="nginx")
    long = replace(one, client_rate=500_000, server_rate=1_250_000)
    large = replace(one, package_bytes=48_000_000, timeout_s=240.0)
    wide = replace(one, client_rate=5_000_000, server_rate=12_500_000, package_bytes=64_000_000)
    return [
        Row("jobagent, `default`", one),
        Row("libtorrent with its defaults", replace(one, peer="libtorrent-default")),
        Row("aria2c → aria2c", replace(one, peer="aria2c")),
        Row("nginx → curl (6 hosts, 4 MB)", small),
        Row("jobagent, `minimal-uplink`", replace(one, mode="minimal-uplink")),
        Row("jobagent, `fast`", replace(one, mode="fast")),
        Row("nginx → curl", replace(small, clients=20, package_bytes=12_000_000, timeout_s=240.0), is_quick=False),
        Row("jobagent, all rates halved (bound 24 s)", long),
        Row("jobagent, 48 MB (bound 48 s)", large),
        Row("aria2c, 48 MB", replace(large, peer="aria2c")),
        Row("aria2c, all rates halved", replace(long, peer="aria2c"), is_quick=False),
        Row("jobagent, 40 Mbit hosts, 100 Mbit server, 64 MB", wide, is_quick=False),
        Row("aria2c, 40 Mbit hosts, 100 Mbit server, 64 MB", replace(wide, peer="aria2c"), is_quick=False),
    ]


def crowds() -> list[Row]:
    """Clients on loopback, R = 4; slow, because a client takes 0.3 CPU seconds for its 4 MB."""
    forty = Field(clients=40, package_bytes=6_000_000, client_rate=500_000, server_rate=2_000_000, timeout_s=120.0)
    three = Field(clients=300, package_bytes=4_000_000, client_rate=60_000, server_rate=240_000, timeout_s=300.0)
    return [
        Row("40 × jobagent", forty),
        Row("40 × aria2c", replace(forty, peer="aria2c")),
        Row("40 × libtorrent with its defaults", replace(forty, peer="libtorrent-default")),
        Row("300 × jobagent", three),
        Row("300 × libtorrent with its defaults", replace(three, peer="libtorrent-default"), is_quick=False),
        Row("300 × aria2c", replace(three, peer="aria2c"), is_quick=False),
    ]


def crowd600() -> list[Row]:
    """600 clients on loopback, slower still."""
    one = Field(clients=600, package_bytes=4_000_000, client_rate=30_000, server_rate=120_000, timeout_s=400.0)
    return [
        Row("600 × jobagent", one),
        Row("600 × jobagent, arrivals spread over 30 s", replace(one, arrivals_s=30.0)),
        Row("600 × jobagent, arrivals spread over the bound", replace(one, arrivals_s=130.0), is_quick=False),
        Row("600 × libtorrent with its defaults", replace(one, peer="libtorrent-default"), is_quick=False),
        Row("600 × aria2c", replace(one, peer="aria2c"), is_quick=False),
    ]


def sites() -> list[Row]:
    """Hosts of 2 MB/s in sites whose links to the wide area carry 0.5 MB/s, server of 1 MB/s, 12 MB."""
    two = Field(
        clients=10,
        package_bytes=12_000_000,
        client_rate=2_000_000,
        server_rate=1_000_000,
        is_shaped=True,
        sites=2,
        site_rate=500_000,
        timeout_s=180.0,
    )
    ten = replace(two, clients=20, sites=10)
    return [
        Row("2 sites × 5 nodes, elected nodes", two),
        Row("2 sites × 5 closed nodes, site seeders", _closed(two)),
        Row("10 sites × 2 nodes, elected nodes", ten),
        Row("10 sites × 2 closed nodes, site seeders", _closed(ten)),
        Row("2 sites × 10 nodes, elected nodes", replace(two, clients=20)),
        Row("2 sites × 10 closed nodes, site seeders", _closed(replace(two, clients=20))),
        Row("10 sites × 2 nodes, elected nodes, 4 MB", replace(ten, package_bytes=4_000_000), is_quick=False),
        Row("2 sites × 5 nodes, aria2c", replace(two, peer="aria2c"), is_quick=False),
    ]


def _closed(field: Field) -> Field:
    return replace(field, has_site_seeders=True, is_closed=True)


def slots() -> list[Row]:
    """5 shaped hosts of 1 MB/s, server of 2.5 MB/s, 6 MB."""
    one = Field(clients=5, package_bytes=6_000_000, is_shaped=True, timeout_s=120.0)
    eight = replace(one, clients=40, slots=8)
    return [
        Row("1 slot a node", one),
        Row("8 slots a node, one download for all (shared cache)", replace(eight, is_shared=True)),
        Row("8 slots a node, each its own (private caches)", eight),
        Row("8 slots a node, aria2c", replace(eight, peer="aria2c")),
        Row("8 slots a node, nginx → curl", replace(eight, peer="nginx", timeout_s=240.0), is_quick=False),
    ]


GROUPS = {"hosts": hosts, "crowds": crowds, "crowd600": crowd600, "sites": sites, "slots": slots}


def main() -> int:
    """Run one group and write its figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.swarm_programme", description=__doc__)
    parser.add_argument("group", choices=tuple(GROUPS))
    parser.add_argument("--full", action="store_true", help="all rows, five times")
    parser.add_argument("--rows", default="", metavar="WORD", help="only rows with this in their label, quick or not")
    parser.add_argument("--repeats", type=int, default=0, help="default: 1, with --full 5")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    options = parser.parse_args()
    leave_nothing_when_terminated()
    rows = [
        row
        for row in GROUPS[options.group]()
        if options.rows in row.label and (row.is_quick or options.full or options.rows)
    ]
    repeats = options.repeats or (FULL_REPEATS if options.full else 1)
    result = {**about(is_full=options.full), "group": options.group, "rows": run(rows, repeats)}
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def run(rows: Sequence[Row], repeats: int) -> list[dict[str, Any]]:
    """Run the rows in turn, so often; what cannot run is said in its place."""
    results: list[dict[str, Any]] = [{"label": row.label, "runs": []} for row in rows]
    for _ in range(repeats):
        for row, result in zip(rows, results, strict=True):
            if reason := impossible(row.field):
                result["skipped"] = reason
                continue
            try:
                figures = measure(row.field)
            except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                result["skipped"] = f"failed: {error}".splitlines()[0][:200]
            else:
                result["runs"].append(figures)
                short = {k: figures[k] for k in ("copies", "median_over_bound", "last_over_bound", "unfinished")}
                print(f"{row.label}: {short} site copies {figures['site_copies']} CPU {figures['cpu_percent']} %")
            sys.stdout.flush()
    return results


def impossible(experiment: Field) -> str:
    """Why this cannot run here; empty where it can."""
    missing = [p for p in PROGRAMS.get(experiment.peer, ()) if shutil.which(p) is None]
    if missing:
        return f"{missing[0]} is not installed: make system-tools"
    if experiment.is_shaped and not network.is_possible():
        return "shaped hosts need root"
    return ""


def about(*, is_full: bool) -> Mapping[str, Any]:
    """Where and when the figures are from."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "is_full": is_full,
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}, Python {platform.python_version()}",
    }


if __name__ == "__main__":
    sys.exit(main())
