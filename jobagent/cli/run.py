"""`jobagent run JOB`: the embedded default, the whole pipeline in one process, without a workload manager."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from jobagent import config as configuration
from jobagent import processes
from jobagent.cli import jobfile, report
from jobagent.cli.progress import ProgressDisplay
from jobagent.errors import JobAgentError, SiteError
from jobagent.events import EventFile, Events
from jobagent.job import kit as kits
from jobagent.job import scratch
from jobagent.job.keeper import Keeper
from jobagent.job.payload import Interruption
from jobagent.job.session import Place, Result
from jobagent.job.session import run as run_session

# What a payload keeps of the caller's environment; its own and its packages' variables come on top.
KEPT = (
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "LC_ALL",
    "TZ",
    "TERM",
    "X509_USER_PROXY",
    "BEARER_TOKEN_FILE",
    "KRB5CCNAME",
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    jobfile.arguments(parser)
    parser.add_argument("--output", type=Path, default=Path(), metavar="DIR", help="where outputs go; default: here")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report of the job (- for stdout)")
    parser.add_argument("--events", type=Path, metavar="FILE", help="append every event as a line of JSON")
    parser.add_argument("--job-id", default="", help="name of the job in logs and ALIEN_PROC_ID")
    parser.add_argument("--quiet", action="store_true", help="print nothing but the payload's output and errors")


def run(args: argparse.Namespace) -> int:
    """Run the job and return the payload's exit code, or a code of `jobagent.errors`."""
    config = configuration.load(args.config)
    processes.keep_small()
    base = kits.scratch_of(config)
    scratch.sweep(base)
    directory = scratch.JobDirectory(base)
    keeper = Keeper(scratch=directory.path)  # forked first: the agent has no threads and no libraries yet
    interruption = Interruption()
    handlers = {n: signal.signal(n, interruption) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    job_id = args.job_id or f"{os.getpid()}-{os.urandom(3).hex()}"
    events, timings = Events(job_id=job_id), report.Timings()
    events.subscribe(timings)
    if args.events:
        events.subscribe(EventFile(args.events))
    result: Result | None = None
    failure: JobAgentError | None = None
    try:
        with ProgressDisplay(events, is_quiet=args.quiet):
            result = _run(args, config, directory, keeper, interruption, events, job_id)
    except JobAgentError as error:
        failure = error
        raise
    finally:
        keeper.close()
        directory.remove()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if args.json:
            _write_report(args.json, report.report(job_id, timings, result=result, error=failure))
    return result.outcome.shell_code


def _run(
    args: argparse.Namespace,
    config: configuration.Config,
    directory: scratch.JobDirectory,
    keeper: Keeper,
    interruption: Interruption,
    events: Events,
    job_id: str,
) -> Result:
    kit = kits.assemble(config, state=directory.path, events=events)
    try:
        job = jobfile.read(args.job, args.arguments, args.dialect, kit.parsers)
        for warning in job.warnings:
            events.emit("warning", message=warning)
        work = directory.path / "work"
        work.mkdir()
        place = Place(work, args.output.absolute(), job_id)
        return run_session(job, kit, keeper, place, base_environment(), interruption)
    finally:
        with events.phase("close"):
            kit.close()


def base_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return what of the caller's environment a payload sees."""
    return {name: environ[name] for name in KEPT if name in environ}


def _write_report(path: Path, document: Mapping[str, object]) -> None:
    text = json.dumps(document, indent=2) + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
        return
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SiteError(f"cannot write the report {path}: {error.strerror}") from error
