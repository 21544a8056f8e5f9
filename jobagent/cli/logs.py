"""`jobagent logs ID`: the story of one job: what it asked for, what the agent did, what HTCondor saw."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from jobagent.cli import submit
from jobagent.cli.jobs import records
from jobagent.condor.access_point import schedd, userlog
from jobagent.condor.access_point.records import JobRecord
from jobagent.errors import JobError, UsageError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("job", metavar="ID", help="CLUSTER.PROCESS, or the --job-id of a job of jobagent run")
    parser.add_argument(
        "--file", type=Path, action="append", default=[], metavar="LOG",
        help="search a log of a node service, or a file of jobagent run --events, instead of asking HTCondor",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")
    submit.where(parser)


def run(args: argparse.Namespace) -> int:
    """Print what is known."""
    if args.file:
        return _search(args.job, args.file)
    job = args.job if "." in args.job else f"{args.job}.0"
    schedd.constraint_of([job])
    queue = schedd.Queue.find(pool=args.pool, name=args.name)
    found = records(queue, [job], is_everybodys=True, limit=1)
    if not found:
        raise JobError(f"{queue.name} has no job {job}, nor has its history", remedy="see jobagent jobs")
    cluster, process = map(int, job.split("."))
    logs = (list(userlog.events(Path(path), cluster, process)) for path in found[0].user_logs)
    events = next(filter(None, logs), [])  # a spooled job's log is with the schedd until it is fetched
    if args.json:
        print(
            json.dumps({**dataclasses.asdict(found[0]), "events": [dataclasses.asdict(e) for e in events]}, indent=2)
        )
        return 0
    for line in [*_lines(found[0]), *map(_event, events)]:
        print(line)
    return 0


def _lines(job: JobRecord) -> Iterator[str]:
    yield f"job {job.id} of {job.owner}: {job.state}" + (
        f", exit {job.exit_code}" if job.exit_code is not None else ""
    )
    rows = [
        ("program", job.program),
        ("asked for", ", ".join(job.asked)),
        ("where", job.host),
        ("held", f"{job.hold_reason} (code {job.hold_code}, sub-code {job.hold_subcode})" if job.hold_reason else ""),
        ("sent back", job.vacate_reason),
    ]
    if job.prepare_s is not None:
        rows += [
            ("prepared", f"{job.prepare_s:.2f} s; {job.cache_hits} of {len(job.packages)} packages were on the node"),
            (
                "fetched",
                f"{job.total_bytes} bytes: seeder {job.seeder_bytes}, neighbours {job.neighbour_bytes}, "
                f"web {job.web_bytes}",
            ),
        ]
    for number, package in enumerate(job.packages):
        digest = job.digests[number] if number < len(job.digests) else ""
        rows.append(("package", f"{package} sha256 {digest}"))
    for name, value in rows:
        if value:
            yield f"  {name:<10} {value}"


def _event(event: userlog.LogEvent) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.time_s))
    return f"  {when} {event.kind.lower().replace('_', ' ')} {event.text}".rstrip()


def _search(job: str, paths: Sequence[Path]) -> int:
    """Print the lines that name the job; 1 where there is none, as grep does."""
    wanted = re.compile(rf"(?<![\w.]){re.escape(job)}(?![\w]|\.\d)")
    count = 0
    for path in paths:
        try:
            with path.open(encoding="utf-8", errors="replace") as stream:
                for line in stream:
                    if wanted.search(line):
                        count += 1
                        print(line, end="")
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from error
    return 0 if count else 1
