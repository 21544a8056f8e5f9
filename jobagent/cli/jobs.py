"""`jobagent jobs`: the jobs of HTCondor's queue and history, with what the agent did for each."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence

from jobagent.cli import submit
from jobagent.condor.access_point import schedd
from jobagent.condor.access_point.records import ATTRIBUTES, JobRecord, record_of


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("jobs", nargs="*", metavar="ID", help="CLUSTER or CLUSTER.PROCESS; default: all yours")
    parser.add_argument("--all", action="store_true", help="everybody's jobs")
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="ended jobs to show; default: 50")
    parser.add_argument("--fetch", action="store_true", help="bring back the outputs of completed jobs first")
    parser.add_argument("--json", action="store_true", help="print JSON")
    submit.where(parser)


def run(args: argparse.Namespace) -> int:
    """Print the jobs, those in the queue first."""
    queue = schedd.Queue.find(pool=args.pool, name=args.name)
    found = records(queue, args.jobs, is_everybodys=args.all, limit=args.limit)
    if args.fetch:
        ended = [job for job in found if job.state == "completed" and job.is_spooled]
        if ended:
            queue.retrieve([job.id for job in ended])
        print(f"outputs of {len(ended)} job{'s' * (len(ended) != 1)} brought back", file=sys.stderr)
    if args.json:
        print(json.dumps([dataclasses.asdict(job) for job in found], indent=2))
    elif found:
        _print(found)
    else:
        print("no jobs")
    return 0


def records(queue: schedd.Queue, ids: Sequence[str], *, is_everybodys: bool, limit: int) -> list[JobRecord]:
    """Return jobs of the queue, and then those of the history that it no longer has, newest first."""
    waiting = [record_of(ad) for ad in queue.jobs(ids, ATTRIBUTES, is_everybodys=is_everybodys)]
    seen = {job.id for job in waiting}
    owners = {job.owner for job in waiting}
    ended = [record_of(ad) for ad in queue.history(ids, ATTRIBUTES, limit=limit)] if limit > 0 else []
    if not ids and not is_everybodys:
        ended = [job for job in ended if job.owner in owners | {_user()}]
    return [*waiting, *(job for job in ended if job.id not in seen)]


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.geteuid())


def _print(found: Sequence[JobRecord]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("job", "state", "program", "packages", "prepare", "seeder", "neighbours", "web", "cached"):
        table.add_column(title, justify="right" if title in _NUMBERS else "left", no_wrap=title != "packages")
    table.add_column("where or why", overflow="fold")
    for job in found:
        table.add_row(*_row(job))
    is_terminal = sys.stdout.isatty()
    Console(width=None if is_terminal else 200, highlight=False, markup=False).print(table)


_NUMBERS = frozenset({"prepare", "seeder", "neighbours", "web", "cached"})


def _row(job: JobRecord) -> tuple[str, ...]:
    names = job.packages or job.asked
    packages = ", ".join(names[-2:]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
    why = job.hold_reason or job.host or (job.vacate_reason if job.state == "idle" else "")
    done = f"{job.state} {job.exit_code}" if job.state == "completed" and job.exit_code is not None else job.state
    done = f"killed by {job.signal}" if job.signal else done
    if job.prepare_s is None:
        return (job.id, done, os.path.basename(job.program), packages, "", "", "", "", "", why)
    origins = (_megabytes(b) for b in (job.seeder_bytes, job.neighbour_bytes, job.web_bytes))
    cached = f"{job.cache_hits}/{len(job.packages)}"
    return (job.id, done, os.path.basename(job.program), packages, f"{job.prepare_s:.2f} s", *origins, cached, why)


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes else "–"
