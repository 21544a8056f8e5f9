"""`jobagent condor`: enable the agent in HTCondor on this machine, and say what is wrong with it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from jobagent import config as configuration
from jobagent.condor.execution_point import configure, doctor, facts
from jobagent.condor.execution_point.configure import ROLES, Installation, PlannedFile
from jobagent.condor.execution_point.doctor import Finding, Level
from jobagent.errors import ConfigurationError
from jobagent.node.service import socket_of
from jobagent.pluginmanager import load

LIBEXEC = Path("/usr/local/libexec/jobagent")
CONFIG_DIRECTORY = Path("/etc/condor/config.d")
TOOL_TIMEOUT_S = 20.0
EXIT_FOUND_ERRORS = 220  # as SiteError: the site's admin must act


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    setup = actions.add_parser("configure", help="write the programs and the config.d file that enable the agent")
    setup.add_argument("--role", action="append", choices=ROLES, help="default: execution-point; may be repeated")
    setup.add_argument("--config-directory", type=Path, metavar="DIR", help="default: HTCondor's LOCAL_CONFIG_DIR")
    setup.add_argument("--libexec", type=Path, metavar="DIR", help=f"where the programs go; default: {LIBEXEC}")
    setup.add_argument(
        "--python", metavar="COMMAND", help="interpreter that every job's user can start; default: ours"
    )
    setup.add_argument("--socket", type=Path, metavar="PATH", help="socket of the node service; default: configured")
    setup.add_argument("--dry-run", action="store_true", help="show what would be written")
    check = actions.add_parser("check", help="say what is wrong with HTCondor and the agent on this machine")
    check.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> int:
    """Write the settings, or check them."""
    config = configuration.load(args.config)
    if args.action == "check":
        load(config)  # plugins declare their sections
        findings = doctor.examine(facts.gather(config))
        show_json(findings) if args.json else show(findings)
        return EXIT_FOUND_ERRORS if any(f.level is Level.ERROR for f in findings) else 0
    installation = Installation.here(
        libexec=args.libexec or LIBEXEC,
        config_directory=args.config_directory or local_config_directory(),
        socket=args.socket or socket_of(config.get(configuration.NodeSettings)),
        settings=args.config.resolve() if args.config else None,
        cache=cache_of(config),
    )
    if args.python:
        python = tuple(shlex.split(args.python))
        installation = dataclasses.replace(installation, python=python, code=code_of(python))
    files = configure.plan(installation, args.role or [configure.EXECUTION_POINT])
    if args.dry_run:
        print("\n".join(map(described, files)))
        return 0
    configure.write(files)
    for file in files:
        print(f"wrote {file.path}")
    print("now run condor_reconfig (running jobs go on), then jobagent condor check")
    return 0


def code_of(python: Sequence[str]) -> Path:
    """Return the directory from which that interpreter imports `jobagent`.

    Raises:
        ConfigurationError: It does not import it.
    """
    words = [*python, "-I", "-c", "import jobagent, os; print(os.path.dirname(os.path.dirname(jobagent.__file__)))"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=True, cwd="/")
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", "") or str(error)
        raise ConfigurationError(
            f"{shlex.join(python)} does not import jobagent: {reason.strip().splitlines()[-1]}",
            remedy="install jobagent into it",
        ) from error
    return Path(done.stdout.strip())


def cache_of(config: configuration.Config) -> Path | None:
    """Return the root of the shared cache, where the site names one."""
    load(config)  # the cache's plugin declares its section
    cls = config.sections.get("sharedcache")
    root = Path(getattr(config.get(cls), "root", Path())) if cls else Path()
    return root if root != Path() else None


def local_config_directory() -> Path:
    """Return HTCondor's first LOCAL_CONFIG_DIR, else the usual one.

    Raises:
        ConfigurationError: HTCondor's own configuration cannot be read.
    """
    program = shutil.which("condor_config_val")
    if program is None:
        return CONFIG_DIRECTORY
    try:
        done = subprocess.run(
            [program, "LOCAL_CONFIG_DIR"], capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=True
        )
    except subprocess.SubprocessError as error:
        raise ConfigurationError(
            f"condor_config_val does not tell LOCAL_CONFIG_DIR: {getattr(error, 'stderr', '') or error}",
            remedy="give --config-directory",
        ) from error
    directories = done.stdout.replace(",", " ").split()
    if not directories:
        raise ConfigurationError("LOCAL_CONFIG_DIR of HTCondor is empty", remedy="give --config-directory")
    return Path(directories[0])


def described(file: PlannedFile) -> str:
    """Return a planned file as text: its path, mode and content."""
    return f"### {file.path} (mode {file.mode:o})\n{file.text}"


def show(findings: list[Finding]) -> None:
    """Print a table on a terminal, plain lines elsewhere."""
    if not sys.stdout.isatty():
        for finding in findings:
            print(f"{finding.level:<8}{finding.check:<18}{finding.message}" + remedy_of(finding))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    colours = {Level.OK: "green", Level.WARNING: "yellow", Level.ERROR: "red"}
    table = Table(box=None, pad_edge=False)
    for heading in ("", "check", "found"):
        table.add_column(heading)
    for finding in findings:
        colour = colours[finding.level]
        text = escape(finding.message + remedy_of(finding))
        table.add_row(f"[{colour}]{finding.level}[/]", finding.check, text)
    Console().print(table)


def remedy_of(finding: Finding) -> str:
    """Return the remedy as the end of a line."""
    return f"; {finding.remedy}" if finding.remedy else ""


def show_json(findings: list[Finding]) -> None:
    """Print the findings for scripts."""
    print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
