"""Packages held for the length of a `with` block, without a payload: what `env` and `shell` share."""

from __future__ import annotations

import argparse
import os
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from jobagent import config as configuration
from jobagent.cli import jobfile
from jobagent.cli.progress import ProgressDisplay
from jobagent.errors import Interrupted
from jobagent.events import Events
from jobagent.job import kit as kits
from jobagent.job import scratch
from jobagent.job.environment import payload_environment
from jobagent.job.kit import Kit
from jobagent.job.prepare import Prepared, prepare, release
from jobagent.job.requirements import requirement_of
from jobagent.job.session import holder_of
from jobagent.model import Job, PackageSpec


@dataclass(frozen=True, slots=True)
class Held:
    """Packages in place and the environment that they make on top of `base`."""

    kit: Kit
    job: Job
    prepared: Prepared
    job_id: str

    def environment(self, base: dict[str, str]) -> dict[str, str]:
        """The variables that a payload of this job would see."""
        made = payload_environment(self.job, self.prepared.changes, self.prepared.installed, base, self.job_id)
        return dict(made.variables)


@contextmanager
def held(args: argparse.Namespace, what: str, *, packages: tuple[str, ...] = ()) -> Iterator[Held]:
    """Hold the packages of the job `what`, or those named in `packages`, seeding them meanwhile."""
    config = configuration.load(args.config)
    base = kits.scratch_of(config)
    scratch.sweep(base)
    directory = scratch.JobDirectory(base)
    job_id = f"{os.getpid()}-{secrets.token_hex(3)}"
    events = Events(job_id=job_id)

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        with ProgressDisplay(events):
            kit = kits.assemble(config, state=directory.path, events=events)
            try:
                if packages:
                    job = Job("command line", packages=tuple(PackageSpec.parse(p) for p in packages))
                else:
                    job = jobfile.read(what, getattr(args, "arguments", ()), args.dialect, kit.parsers)
                prepared = prepare(requirement_of(job, config, kit.platform), kit, holder_of(os.getpid(), job_id))
                try:
                    yield Held(kit, job, prepared, job_id)
                finally:
                    release(prepared, kit)
            finally:
                kit.close()
    finally:
        directory.remove()
        signal.signal(signal.SIGTERM, previous)
