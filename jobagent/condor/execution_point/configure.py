"""HTCondor's configuration for this machine: which files to write, and writing them.

The decision (`plan`) is pure; the texts with all settings are `sitecfg/condor/*.conf`, which name no path.  What is
generated are the few programs that HTCondor starts and one `config.d` file that says where they are.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jobagent
from jobagent import durable
from jobagent.errors import ConfigurationError, ScratchUnusable

EXECUTION_POINT = "execution-point"
ACCESS_POINT = "access-point"
CENTRAL_MANAGER = "central-manager"
ROLES = (EXECUTION_POINT, ACCESS_POINT, CENTRAL_MANAGER)

_NOTE = "Written by `jobagent condor configure`; changes are lost when it runs again."
# The master gives its daemons no place for what they print; an old log is kept once.
_LOGGED = """\
if [ -n "${1:-}" ]; then
    if [ -f "$1" ] && [ "$(wc -c < "$1")" -gt 10000000 ]; then mv "$1" "$1.old"; fi
    exec >> "$1" 2>&1
fi
"""
_ENTRIES = {  # program: module whose `main` gets the socket
    "prepare": "jobagent.condor.execution_point.hooks",
    "machine": "jobagent.condor.execution_point.startd_cron",
    "transfer": "jobagent.condor.execution_point.transfer",
}


@dataclass(frozen=True, slots=True)
class Installation:
    """Where things are on this machine.

    `python` is the argv that starts an interpreter which every job's user can run; `code` is the directory that holds
    the package `jobagent`; `libexec` gets the programs; `settings` is the agent's own TOML file, if there is one;
    `cache` is where packages are, for containers to see.
    """

    python: tuple[str, ...]
    code: Path
    libexec: Path
    config_directory: Path
    socket: Path
    settings: Path | None = None
    cache: Path | None = None

    @classmethod
    def here(
        cls,
        *,
        libexec: Path,
        config_directory: Path,
        socket: Path,
        settings: Path | None = None,
        cache: Path | None = None,
    ) -> Installation:
        """Return the installation of the running interpreter."""
        code = Path(jobagent.__file__).resolve().parent.parent
        return cls((sys.executable,), code, libexec, config_directory, socket, settings, cache)


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file to be written; `mode` as in chmod."""

    path: Path
    text: str
    mode: int


def plan(installation: Installation, roles: Sequence[str] = (EXECUTION_POINT,)) -> tuple[PlannedFile, ...]:
    """Return every file that these roles need.

    Raises:
        ConfigurationError: A role is unknown.
    """
    files: list[PlannedFile] = []
    for role in roles:
        if role not in ROLES:
            raise ConfigurationError(f"no role {role!r}", remedy=f"known: {', '.join(ROLES)}")
        if role == EXECUTION_POINT:
            files += _programs(installation)
        macros = f"JOBAGENT_LIBEXEC = {installation.libexec}\n"
        if installation.cache is not None:
            macros += f"JOBAGENT_CACHE = {installation.cache}\n"
        text = f"# {_NOTE}\n{macros}\n{template(role)}"
        files.append(PlannedFile(installation.config_directory / f"50-jobagent-{role}.conf", text, 0o644))
    return tuple(files)


def write(files: Sequence[PlannedFile]) -> None:
    """Write the files, each whole or not at all, in directories that only their owner may change.

    Raises:
        ScratchUnusable: A file cannot be written.
    """
    for file in files:
        try:
            file.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            durable.write(file.path, file.text.encode(), mode=file.mode)
        except OSError as error:
            raise ScratchUnusable(
                f"cannot write {file.path}: {error.strerror}", remedy="run as the owner of HTCondor's configuration"
            ) from error


def template(role: str) -> str:
    """Return the settings of a role, from the installed package or from the checkout."""
    name = f"{role}.conf"
    package = Path(__file__).resolve().parent
    for directory in (package / "sitecfg", package.parents[2] / "sitecfg" / "condor"):
        if (path := directory / name).exists():
            return path.read_text(encoding="utf-8")
    raise ConfigurationError(f"{name} is missing from the installation", remedy="install jobagent again")


def _programs(installation: Installation) -> list[PlannedFile]:
    python = shlex.join(installation.python)
    socket = str(installation.socket)
    settings = f" --config {shlex.quote(str(installation.settings))}" if installation.settings else ""
    start = f"exec {python} -I -m jobagent{settings} node --socket {shlex.quote(socket)}"
    files = [PlannedFile(installation.libexec / "node", _script(_LOGGED + start), 0o755)]
    for name, module in _ENTRIES.items():
        # -S: no site-packages to look through; these programs start on every job's path
        code = (
            f"import sys; sys.path.insert(0, {json.dumps(str(installation.code))}); "
            f"from {module} import main; sys.exit(main({json.dumps(socket)}))"
        )
        start = f'exec {python} -I -S -c {shlex.quote(code)} "$@"'
        files.append(PlannedFile(installation.libexec / name, _script(start), 0o755))
    return files


def _script(command: str) -> str:
    return f"#!/bin/sh\n# {_NOTE}\n{command}\n"
