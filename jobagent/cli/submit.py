"""`jobagent submit JOB`: translate a job, check its packages, and queue it in HTCondor."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from jobagent.cli import jobfile, reading
from jobagent.condor.access_point import schedd, translate
from jobagent.condor.access_point.translate import Submission
from jobagent.condor.language.dialects import parsers
from jobagent.errors import PayloadNotRunnable
from jobagent.job import kit as kits
from jobagent.job.requirements import requirement_of
from jobagent.job.resolve import resolve
from jobagent.model import Job, PackageId, Requirement


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    jobfile.arguments(parser)
    where(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the submit file and queue nothing")
    parser.add_argument("--no-spool", action="store_true", help="let the schedd use the files where they are")
    parser.add_argument("--no-check", action="store_true", help="do not ask the catalogue for the job's packages")
    parser.add_argument(
        "--platform", default="", metavar="P", help="where the job will run; default: as this machine"
    )
    reading.arguments(parser)


def where(parser: argparse.ArgumentParser) -> None:
    """Declare which schedd; by default that of HTCondor's configuration."""
    parser.add_argument("--pool", default="", metavar="HOST:PORT", help="collector of the pool")
    parser.add_argument("--name", default="", metavar="SCHEDD", help="schedd of the pool")


def run(args: argparse.Namespace) -> int:
    """Queue the job, or refuse it with the reason."""
    job = jobfile.read(args.job, args.arguments, args.dialect, parsers())
    packages = _checked(job, args) if job.packages and not args.no_check else ()
    submission = translate.submission(job, is_file=os.path.exists)
    if not args.json:
        _warn([*job.warnings, *submission.warnings])
    if args.dry_run:
        return _show(submission, packages, job, args)
    if submission.missing:
        raise PayloadNotRunnable(
            f"input {submission.missing[0]} is not in {job.base_directory}"
            + (f", nor are {len(submission.missing) - 1} others" if len(submission.missing) > 1 else ""),
            remedy="put it beside the job, or name it as torrent:// or http:// URL",
        )
    queue = schedd.Queue.find(pool=args.pool, name=args.name)
    if args.job != "-":
        os.chdir(Path(args.job).resolve().parent)  # what a submit file names is beside it
    submitted = queue.submit(submission, is_spooled=not args.no_spool)
    if args.json:
        found = {"cluster": submitted.cluster, "jobs": submitted.count, "schedd": submitted.schedd}
        print(json.dumps({**found, "packages": list(map(str, packages)), "warnings": _warnings(job, submission)}))
    else:
        plural = "s" * (submitted.count != 1)
        print(f"cluster {submitted.cluster}: {submitted.count} job{plural} in the queue of {submitted.schedd}")
    return 0


def _checked(job: Job, args: argparse.Namespace) -> Sequence[PackageId]:
    """Return the packages that the job would get now; raises UnknownPackage and whatever else is wrong with them."""
    catalogue, config = reading.open_catalogue(args)
    wanted = requirement_of(job, config, args.platform or kits.platform_of(config))
    return resolve(Requirement(wanted.packages, wanted.namespace, wanted.platform), catalogue).requested


def _show(submission: Submission, packages: Sequence[PackageId], job: Job, args: argparse.Namespace) -> int:
    if args.json:
        found = {"submit": submission.text(), "packages": list(map(str, packages)), "missing": submission.missing}
        print(json.dumps({**found, "warnings": _warnings(job, submission)}))
        return 0
    _warn([f"input {url} is not here" for url in submission.missing])
    print(submission.text(), end="")
    return 0


def _warnings(job: Job, submission: Submission) -> list[str]:
    return [*job.warnings, *submission.warnings]


def _warn(warnings: Sequence[str]) -> None:
    for warning in dict.fromkeys(warnings):
        print(f"jobagent: warning: {warning}", file=sys.stderr)
