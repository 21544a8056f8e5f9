"""The `jobagent` command: finds the sub-command, runs it, and turns errors into one line and an exit code.

Sub-commands are modules of this package with `arguments(parser)` and `run(args) -> int`; they are imported only
when they are called, because start-up time is on every job's path.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from jobagent import __version__
from jobagent.errors import JobAgentError, UsageError, one_line

COMMANDS: dict[str, tuple[str, str]] = {
    # name: (module, summary)
    "run": ("run", "get a job's packages, run its payload while seeding, clean up"),
    "prepare": ("prepare", "get a job's packages and hold them until released"),
    "release": ("release", "end what prepare held"),
    "env": ("env", "print the environment of a job or of packages"),
    "shell": ("shell", "open a shell with packages"),
    "jdl": ("jdl", "show and translate job descriptions"),
    "submit": ("submit", "translate a job and submit it to HTCondor"),
    "jobs": ("jobs", "show jobs and what the agent did for them"),
    "logs": ("logs", "show the agent's log of a job"),
    "publish": ("publish", "make a package and sign it into the catalogue"),
    "withdraw": ("withdraw", "take a package out of the default choice"),
    "ban": ("ban", "forbid a package everywhere"),
    "list": ("listing", "list packages of the catalogue"),
    "show": ("show", "show one package"),
    "whereis": ("whereis", "say where a package is: catalogue, cache, peers"),
    "get": ("get", "download a package's archive, verified"),
    "dependencies": ("dependencies", "show what a package needs"),
    "catalogue": ("catalogue", "make, sign, refresh and check a catalogue"),
    "vo": ("vo", "add, rotate and revoke VOs"),
    "keys": ("keys", "make and inspect signing keys"),
    "torrent": ("torrent", "check torrent files"),
    "serve": ("serve", "run catalogue, tracker and seeder in one process"),
    "tracker": ("tracker", "run a tracker"),
    "seeder": ("seeder", "run a seeder"),
    "swarm": ("swarm", "watch and plot the swarm"),
    "node": ("node", "run the node service of a worker node"),
    "cache": ("cache", "look at and manage the cache of this node"),
    "condor": ("condor", "configure and check HTCondor on this machine"),
    "glidein": ("glidein", "turn a batch slot into a slot of a pool; what pilots start"),
    "pilots": ("pilots", "submit and watch pilots through compute elements"),
    "bundle": ("bundle", "build the bundle that pilots bring to worker nodes"),
    "plugins": ("plugins", "list plugins with state and hooks"),
    "config": ("config", "show and check the configuration"),
}

EXIT_INTERNAL = 70  # EX_SOFTWARE of sysexits(3): a bug of ours, never an answer


def build_parser() -> argparse.ArgumentParser:
    """Return the top-level parser; sub-commands add their arguments when chosen."""
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:<{width}}  {summary}" for name, (_, summary) in sorted(COMMANDS.items()))
    parser = argparse.ArgumentParser(
        prog="jobagent",
        description="Jobs name their software; it arrives by signed torrent.",
        epilog=f"commands:\n{listing}\n\n`jobagent COMMAND --help` tells more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"jobagent {__version__}")
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration file (TOML)")
    parser.add_argument("-v", "--verbose", action="count", default=0, help="more log lines; twice: debug")
    parser.add_argument("command", metavar="COMMAND", choices=sorted(COMMANDS), help="see below")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    gc.set_threshold(50_000)  # imports make objects by the ten thousands, and none of them is garbage
    args = build_parser().parse_args(argv)
    log_format = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    levels = (logging.WARNING, logging.INFO, logging.DEBUG)
    logging.basicConfig(level=levels[min(args.verbose, 2)], format=log_format, stream=sys.stderr)
    if args.verbose < len(levels) - 1:
        for foreign in ("urllib3", "tuf", "asyncio"):  # what matters of theirs reaches users through our own errors
            logging.getLogger(foreign).setLevel(logging.ERROR)
    name, summary = COMMANDS[args.command]
    module = importlib.import_module(f"jobagent.cli.{name}")
    parser = argparse.ArgumentParser(
        prog=f"jobagent {args.command}", description=summary[0].upper() + summary[1:] + "."
    )
    module.arguments(parser)
    options = parser.parse_args(args.rest)
    options.config, options.verbose = args.config, args.verbose
    try:
        return int(module.run(options) or 0)
    except JobAgentError as error:
        return report(error, as_json=getattr(options, "json", None) is True)
    except KeyboardInterrupt:
        print("jobagent: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        logging.getLogger("jobagent").debug("internal error", exc_info=True)
        line = one_line(f"{type(error).__name__}: {error}")
        print(f"jobagent: internal error: {line}; run with -vv and report the traceback", file=sys.stderr)
        return EXIT_INTERNAL


def entry() -> NoReturn:
    """Run the command line and end the process at once.

    All that is to be closed is closed by then; taking the interpreter apart as well would take longer than most
    phases of a job whose packages are cached.
    """
    code = main()
    logging.shutdown()
    with contextlib.suppress(OSError):  # a reader that is gone was noticed before, or wants nothing more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def report(error: JobAgentError, *, as_json: bool) -> int:
    """Print `error` as one line (and as JSON on stdout where a script asked for it); return its exit code."""
    if as_json:
        print(json.dumps({"error": error.kind, "message": str(error), "exit_code": error.exit_code}))
    prefix = "jobagent" if isinstance(error, UsageError) else f"jobagent: {error.kind}"
    print(f"{prefix}: {error}", file=sys.stderr)
    return error.exit_code


if __name__ == "__main__":
    entry()
