"""`jobagent prepare JOB`: get a job's packages through the node service and hold them, as a prolog does."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shlex
import sys
from pathlib import Path
from typing import Any

from jobagent import config as configuration
from jobagent.cli import ask
from jobagent.cli.progress import ProgressDisplay
from jobagent.errors import JobSyntaxError
from jobagent.events import Events
from jobagent.job import environment
from jobagent.model import EnvironmentAction, EnvironmentChange
from jobagent.node.wire import MAX_REQUEST_BYTES


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("job", metavar="JOB", nargs="?", default="", help="job description; - for standard input")
    parser.add_argument("--dialect", default="", help="jdl, submit or classad; default: by content")
    parser.add_argument(
        "--package", action="append", default=[], metavar="NAME", help="a package instead of a job; repeatable"
    )
    parser.add_argument(
        "--holder", type=int, default=0, metavar="PID", help="hold while this process lives; default: until released"
    )
    parser.add_argument("--job-id", default="", metavar="ID", help="name for `jobagent release`; default: made up")
    ask.arguments(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the whole answer as JSON")
    form.add_argument("--shell", action="store_true", help="print `export` lines (a Slurm TaskProlog, or eval)")


def run(args: argparse.Namespace) -> int:
    """Prepare and print; the packages stay until the holder ends or `jobagent release`."""
    config = configuration.load(args.config)
    path = ask.socket_path(args, config)
    ask.ensure_service(path, args.config)
    values = {
        "job": _read(args.job) if args.job else "",
        "dialect": args.dialect,
        "packages": args.package,
        "holder": args.holder,
        "job_id": args.job_id or f"job-{secrets.token_hex(8)}",
    }
    events = Events()
    with ProgressDisplay(events):
        answer = ask.ask(path, "prepare", values, events)
    if args.json:
        print(json.dumps(answer | {"job_id": values["job_id"]}, indent=2))
    elif args.shell:
        print("\n".join(shell_lines(answer["changes"])))
    else:
        for package in answer["packages"]:
            print(f"{package['id']} {package['tree']}")
        print(f"held as {values['job_id']} in {answer['seconds']:.2f} s")
    return 0


def shell_lines(changes: list[list[str]]) -> list[str]:
    """Return `export` lines for what the packages change in the caller's environment."""
    made = [EnvironmentChange(EnvironmentAction(action), name, value) for action, name, value in changes]
    variables = environment.apply(made, os.environ)
    return [f"export {name}={shlex.quote(variables[name])}" for name in sorted({c.name for c in made})]


def _read(name: str) -> Any:
    try:
        if name == "-":
            data = sys.stdin.buffer.read(MAX_REQUEST_BYTES)
        else:
            with Path(name).open("rb") as stream:
                data = stream.read(MAX_REQUEST_BYTES)
        return data.decode()
    except OSError as error:
        raise JobSyntaxError(f"cannot read job {name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise JobSyntaxError(f"job {name} is not UTF-8 text (byte {error.start})") from error
