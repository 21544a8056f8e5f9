"""Input files into the working directory before the payload, output files out of it afterwards."""

from __future__ import annotations

import fnmatch
import os
import shutil
import time
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

from jobagent.contracts import InputSource
from jobagent.errors import JobAgentError, JobError, PayloadNotRunnable, SiteError
from jobagent.job.kit import Kit
from jobagent.model import Job


def stage_inputs(job: Job, kit: Kit, work: Path, *, timeout_s: float) -> int:
    """Bring all input files into `work`; return their bytes.

    Raises:
        PayloadNotRunnable: A file that the job needs is not there, or its URL scheme is unknown here.
        SupplyError: It is there, but cannot be had now.
    """
    deadline = time.monotonic() + timeout_s
    total = 0
    for item in job.inputs:
        target = _inside(work, item.name)
        try:
            source = _source_for(item.url, kit.inputs)
            total += source.stage(item, target, base_directory=job.base_directory, deadline=deadline)
        except JobAgentError as error:
            if not item.is_optional:
                raise
            kit.events.emit("warning", message=f"optional input {item.url} is missing: {error}")
    return total


def find_program(name: str, work: Path, base_directory: Path, search_path: str) -> str:
    """Return what to execute for `name`: in the working directory, beside the job's file, or on the payload's PATH.

    An absolute path that does not exist is looked for by its last part, beside the job too: JDLs name programs of
    the grid's file catalogue (`/alice/bin/date`).

    Raises:
        PayloadNotRunnable: Nothing by that name.
    """
    if not name:
        raise PayloadNotRunnable("the job names no executable", remedy='add Executable = "…"')
    base = os.path.basename(name)
    for candidate in (work / base, base_directory / name, base_directory / base):
        if candidate.is_file():
            return str(_runnable(candidate, work))
    found = shutil.which(base, path=search_path)
    if found is None:
        raise PayloadNotRunnable(
            f"executable {name} is neither an input file, nor beside the job, nor on the PATH of its packages",
            remedy="list it in InputFile, or add the package that has it",
        )
    return found


def collect_outputs(job: Job, work: Path, inputs: Sequence[str], target: Path) -> list[str]:
    """Move output files to `target`, return their names: those the job names, else all new files of the top level.

    Raises:
        JobError: A file that the job names without a wildcard is missing.
        SiteError: The target cannot be written.
    """
    present = sorted(e.name for e in os.scandir(work) if e.name not in inputs)
    if job.outputs:
        chosen = [n for n in present if any(fnmatch.fnmatchcase(n, pattern) for pattern in job.outputs)]
        plain = [p for p in job.outputs if not set(p) & set("*?[")]
        missing = [p for p in plain if not (work / p).exists()]
        chosen += [p for p in plain if "/" in p and p not in missing]
    else:
        chosen, missing = [n for n in present if (work / n).is_file()], []
    chosen += [n for n in (job.stdout, job.stderr) if n and n in present and n not in chosen]
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name in chosen:
            _move(_inside(work, name), target / name)
    except OSError as error:
        raise SiteError(f"cannot write outputs to {target}: {error.strerror}") from error
    if missing:
        raise JobError(f"the payload did not make its output file {', '.join(missing)}")
    return chosen


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    shutil.move(source, target)


def _source_for(url: str, sources: Sequence[InputSource]) -> InputSource:
    scheme = urllib.parse.urlsplit(url).scheme.lower()
    for source in sources:
        if scheme in source.schemes:
            return source
    known = ", ".join(sorted(s or "plain paths" for source in sources for s in source.schemes))
    raise PayloadNotRunnable(f"no plugin brings input files of {url}", remedy=f"known schemes: {known}")


def _inside(directory: Path, name: str) -> Path:
    target = directory / name
    if os.path.isabs(name) or not os.path.normpath(target).startswith(f"{directory}{os.sep}"):
        raise JobError(f"file name {name!r} leaves the working directory")
    return target


def _runnable(path: Path, work: Path) -> Path:
    """Return an executable form of `path`: batch systems set the x bit of a job's executable, so do we, on a copy."""
    path = path.resolve()
    if os.access(path, os.X_OK):
        return path
    target = work / path.name
    if target != path:
        shutil.copy(path, target)
    target.chmod(0o755)
    return target
