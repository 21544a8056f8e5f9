"""What a job's ad says of the job and of what the agent did for it, as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobagent.condor.language import attributes

STATES: Mapping[int, str] = {
    1: "idle",
    2: "running",
    3: "removed",
    4: "completed",
    5: "held",
    6: "transferring",
    7: "suspended",
}
MAX_PARTS = 12  # long lists of the agent go on in `…2`, `…3` …
_LISTS = tuple(
    f"{name}{number or ''}"
    for name in (attributes.JOB_PACKAGES, attributes.JOB_DIGESTS)
    for number in (0, *range(2, MAX_PARTS + 1))
)
ATTRIBUTES = (
    *(
        "ClusterId",
        "ProcId",
        "Owner",
        "JobStatus",
        "Cmd",
        "Executable",
        "QDate",
        "EnteredCurrentStatus",
        "JobStartDate",
    ),
    *(
        "CompletionDate",
        "ExitCode",
        "ExitBySignal",
        "ExitSignal",
        "HoldReason",
        "HoldReasonCode",
        "HoldReasonSubCode",
    ),
    *(
        "RemoteHost",
        "LastRemoteHost",
        "NumJobStarts",
        "LastVacateReason",
        "UserLog",
        "SUBMIT_UserLog",
        "StageInFinish",
    ),
    *(attributes.PACKAGES, attributes.JOB_PREPARE_SECONDS, attributes.JOB_CACHE_HITS),
    *(attributes.JOB_SEEDER_BYTES, attributes.JOB_NEIGHBOUR_BYTES, attributes.JOB_WEB_BYTES),
    *_LISTS,
)


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One job.  Times are seconds since the epoch, 0 where there is none; `None` means that nothing is known."""

    id: str
    state: str
    owner: str
    program: str
    host: str
    queued_s: int
    started_s: int
    ended_s: int
    starts: int
    exit_code: int | None
    signal: int | None
    hold_reason: str
    hold_code: int
    hold_subcode: int
    vacate_reason: str
    user_logs: tuple[str, ...]
    is_spooled: bool
    asked: tuple[str, ...]
    packages: tuple[str, ...]
    digests: tuple[str, ...]
    prepare_s: float | None
    cache_hits: int | None
    seeder_bytes: int
    neighbour_bytes: int
    web_bytes: int

    @property
    def total_bytes(self) -> int:
        """All bytes that were fetched for the job."""
        return self.seeder_bytes + self.neighbour_bytes + self.web_bytes


def record_of(ad: Mapping[str, Any]) -> JobRecord:
    """Return the record of a job's ad, from the queue or the history."""
    asked = ad.get(attributes.PACKAGES, ())
    if isinstance(asked, str):
        asked = [name.strip() for name in asked.split(",") if name.strip()]
    has_prepared = attributes.JOB_PREPARE_SECONDS in ad
    return JobRecord(
        id=f"{ad.get('ClusterId', '?')}.{ad.get('ProcId', '?')}",
        state=STATES.get(ad.get("JobStatus", 0), "unknown"),
        owner=str(ad.get("Owner", "")),
        program=str(ad.get("Executable") or ad.get("Cmd", "")),  # Cmd may be our wrapper
        host=str(ad.get("RemoteHost") or ad.get("LastRemoteHost") or ""),
        queued_s=int(ad.get("QDate", 0)),
        started_s=int(ad.get("JobStartDate", 0)),
        ended_s=int(ad.get("CompletionDate", 0)),
        starts=int(ad.get("NumJobStarts", 0)),
        exit_code=ad.get("ExitCode"),
        signal=ad.get("ExitSignal") if ad.get("ExitBySignal") else None,
        hold_reason=str(ad.get("HoldReason", "")) if ad.get("JobStatus") == 5 else "",
        hold_code=int(ad.get("HoldReasonCode", 0)),
        hold_subcode=int(ad.get("HoldReasonSubCode", 0)),
        vacate_reason=str(ad.get("LastVacateReason", "")),
        user_logs=tuple(str(ad[name]) for name in ("UserLog", "SUBMIT_UserLog") if ad.get(name)),
        is_spooled=bool(ad.get("StageInFinish")),
        asked=tuple(map(str, asked)),
        packages=_joined(ad, attributes.JOB_PACKAGES),
        digests=_joined(ad, attributes.JOB_DIGESTS),
        prepare_s=float(ad[attributes.JOB_PREPARE_SECONDS]) if has_prepared else None,
        cache_hits=int(ad.get(attributes.JOB_CACHE_HITS, 0)) if has_prepared else None,
        seeder_bytes=int(ad.get(attributes.JOB_SEEDER_BYTES, 0)),
        neighbour_bytes=int(ad.get(attributes.JOB_NEIGHBOUR_BYTES, 0)),
        web_bytes=int(ad.get(attributes.JOB_WEB_BYTES, 0)),
    )


def _joined(ad: Mapping[str, Any], name: str) -> tuple[str, ...]:
    found: list[str] = []
    for number in (0, *range(2, MAX_PARTS + 1)):
        found += map(str, ad.get(f"{name}{number or ''}", ()))
    return tuple(found)
