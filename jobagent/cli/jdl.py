"""`jobagent jdl show JOB`: what a job description means, and what it is in another dialect."""

from __future__ import annotations

import argparse
import json
import os
import sys

from jobagent.cli import jobfile
from jobagent.condor.access_point import describe, translate
from jobagent.condor.language.dialects import CLASSAD, JDL, SUBMIT, parsers
from jobagent.model import Job

JSON = "json"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("action", choices=["show"], metavar="show", help="the only action")
    jobfile.arguments(parser)
    parser.add_argument(
        "--as", dest="form", choices=[SUBMIT, CLASSAD, JDL, JSON], help="translate; default: say what it means"
    )
    parser.add_argument("--arg", action="append", default=[], metavar="ARG", help="one more ARG; may be repeated")


def run(args: argparse.Namespace) -> int:
    """Print the job; warnings go to standard error."""
    job = jobfile.read(args.job, [*args.arguments, *args.arg], args.dialect, parsers())
    warnings = list(job.warnings)
    if args.form == SUBMIT:
        submission = translate.submission(job, is_file=os.path.exists)
        warnings += submission.warnings
        warnings += [f"input {url} is not here: jobagent submit would refuse" for url in submission.missing]
        print(submission.text(), end="")
    elif args.form == CLASSAD:
        print(describe.as_classad(job), end="")
    elif args.form == JDL:
        print(describe.as_jdl(job), end="")
    elif args.form == JSON:
        print(json.dumps(describe.as_json(job), indent=2, ensure_ascii=False))
    else:
        _print(job)
    for warning in dict.fromkeys(warnings):
        print(f"jobagent: warning: {warning}", file=sys.stderr)
    return 0


def _print(job: Job) -> None:
    rows = [
        ("dialect", job.dialect),
        ("program", " ".join([job.executable, *job.arguments])),
        ("packages", " ".join(map(str, job.packages)) + (" (only where cached)" if job.is_preinstalled_only else "")),
        ("VO", job.namespace or ""),
        *(("input", item.url if item.url == item.name else f"{item.url} as {item.name}") for item in job.inputs),
        ("outputs", " ".join(job.outputs)),
        ("validation", job.validation_command),
        ("wall limit", f"{job.wall_limit_s} s" if job.wall_limit_s else ""),
        ("disk", f"{job.disk_bytes / 2**20:g} MB" if job.disk_bytes else ""),
        ("memory", f"{job.memory_bytes / 2**20:g} MB" if job.memory_bytes else ""),
        ("cores", str(job.cpus or "")),
        ("requirements", job.requirements),
        *(("environment", f"{name}={value}") for name, value in job.environment.items()),
    ]
    for name, value in rows:
        if value.strip():
            print(f"{name:<12} {value}")
    print(f"{'attributes':<12} {' '.join(job.attributes)}")
