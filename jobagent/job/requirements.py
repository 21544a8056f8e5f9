"""Job → Requirement: what must be on the node before the payload runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jobagent.config import Config, JobSettings
from jobagent.contracts import Parser
from jobagent.errors import ConfigurationError, JobSyntaxError
from jobagent.model import Job, Requirement

MAX_JOB_BYTES = 16 << 20  # HTCondor itself accepts ads of this order; real ones have a few kB


def parse(
    text: str,
    parsers: Sequence[Parser],
    *,
    dialect: str = "",
    arguments: Sequence[str] = (),
    base_directory: Path = Path(),
) -> Job:
    """Parse a job description with the parser of `dialect`, or the first that recognises the text.

    Raises:
        JobSyntaxError: No dialect fits, or the text is malformed (with line and column).
    """
    if len(text) > MAX_JOB_BYTES:
        raise JobSyntaxError(f"job description has {len(text)} characters, at most {MAX_JOB_BYTES} are read")
    known = ", ".join(sorted(p.dialect for p in parsers))
    if not parsers:
        raise ConfigurationError("no plugin parses job descriptions", remedy="see jobagent plugins")
    for parser in parsers:
        if dialect == parser.dialect or (not dialect and parser.recognises(text)):
            return parser.parse(text, arguments=arguments, base_directory=base_directory)
    if dialect:
        raise JobSyntaxError(f"unknown dialect {dialect!r}", remedy=f"known: {known}")
    raise JobSyntaxError("the job description is in no known dialect", remedy=f"name it with --dialect: {known}")


def requirement_of(job: Job, config: Config, platform: str) -> Requirement:
    """Return what `job` requires; a job without VO gets the site's default."""
    namespace = job.namespace or config.get(JobSettings).vo.lower() or None
    return Requirement(job.packages, namespace, platform, job.is_preinstalled_only)
