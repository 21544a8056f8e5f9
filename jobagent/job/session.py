"""One job from its description to its outcome: the sequence of phases, in one function."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from jobagent import processes
from jobagent.config import JobSettings
from jobagent.contracts import Holder
from jobagent.errors import Interrupted, JobAgentError, PayloadNotRunnable, SupplyError, ValidationFailed
from jobagent.job import files, payload, sandbox
from jobagent.job.environment import payload_environment
from jobagent.job.keeper import Command, Keeper
from jobagent.job.kit import Kit
from jobagent.job.payload import Interruption
from jobagent.job.prepare import Prepared, prepare, release
from jobagent.job.requirements import requirement_of
from jobagent.model import Job, Outcome


class Place(NamedTuple):
    """Where one job runs: its working directory, where its outputs go, and its name."""

    work: Path
    outputs: Path
    job_id: str


class Result(NamedTuple):
    """What a job came to; `prepared` tells of its packages after they are released."""

    prepared: Prepared
    outcome: Outcome
    outputs: tuple[str, ...]
    protection: str


def run(
    job: Job, kit: Kit, keeper: Keeper, place: Place, base: Mapping[str, str], interruption: Interruption
) -> Result:
    """Satisfy the job's packages, run its payload while they are seeded, validate, collect, release.

    Raises:
        Interrupted: A signal came; the payload is ended and everything released.
        JobAgentError: Any of the tree; everything is released.
    """
    interruption.on_signal(kit.cancelled.set)
    try:
        prepared = prepare(requirement_of(job, kit.config, kit.platform), kit, holder_of(os.getpid(), place.job_id))
        try:
            return _run_prepared(job, kit, keeper, place, base, interruption, prepared)
        finally:
            with kit.events.phase("release"):
                release(prepared, kit)
    except SupplyError as error:
        if interruption.count:
            raise Interrupted(interruption.number) from error
        raise
    finally:
        kit.plugins.cleanup(job)


def holder_of(pid: int, job_id: str) -> Holder:
    """Return the lease holder for a process of ours."""
    return Holder(pid, processes.start_ticks(pid), job_id, os.geteuid())


def _run_prepared(
    job: Job,
    kit: Kit,
    keeper: Keeper,
    place: Place,
    base: Mapping[str, str],
    interruption: Interruption,
    prepared: Prepared,
) -> Result:
    settings = kit.config.get(JobSettings)
    with kit.events.phase("inputs"):
        files.stage_inputs(job, kit, place.work, timeout_s=settings.fetch_timeout_s)
    environment = payload_environment(job, prepared.changes, prepared.installed, base, place.job_id)
    kit.plugins.before_payload(job, prepared.installed, environment)
    program = sandbox.choose(settings.sandbox)
    protection = "read-only view" if program else "manifest check"
    before = {entry.name for entry in os.scandir(place.work)}

    def command(name: str, arguments: tuple[str, ...], *, stdout: str = "", stderr: str = "") -> Command:
        found = files.find_program(name, place.work, job.base_directory, environment.variables["PATH"])
        argv = sandbox.wrap((found, *arguments), program=program, read_only=[kit.cache.root], directory=place.work)
        return Command(argv, environment.variables, place.work, stdout, stderr)

    def validation_command() -> Command:
        try:
            return command(job.validation_command, ())
        except PayloadNotRunnable as error:
            raise ValidationFailed(f"ERROR_VN: {error}") from error

    processes.give_back_memory()
    with kit.events.phase("payload"):
        outcome = payload.run_payload(
            keeper,
            command(job.executable, job.arguments, stdout=job.stdout, stderr=job.stderr),
            wall_limit_s=job.wall_limit_s or settings.wall_limit_s,
            grace_s=settings.kill_grace_s,
            interruption=interruption,
            tick=lambda elapsed_s: kit.plugins.payload_tick(job, elapsed_s),
        )
    kit.plugins.after_payload(job, outcome)
    if interruption.count:
        raise Interrupted(interruption.number)
    failure: JobAgentError | None = None
    try:
        payload.check_limit(outcome)
        if job.validation_command and outcome.is_success:
            with kit.events.phase("validate"):
                payload.validate(
                    keeper, validation_command(), grace_s=settings.kill_grace_s, interruption=interruption
                )
    except JobAgentError as error:
        failure = error
    with kit.events.phase("outputs"):
        outputs = files.collect_outputs(job, place.work, sorted(before), place.outputs)
    if failure is not None:
        raise failure
    return Result(prepared, outcome, tuple(outputs), protection)
