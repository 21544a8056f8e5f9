"""What HTCondor's user log says of one job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from jobagent.errors import one_line

MAX_EVENTS = 10_000


@dataclass(frozen=True, slots=True)
class LogEvent:
    """One event: seconds since the epoch, HTCondor's name of its kind, what it says on one line."""

    time_s: int
    kind: str
    text: str


def events(path: Path, cluster: int, process: int) -> Iterator[LogEvent]:
    """Yield the events of a job in the order of the log; nothing where the log cannot be read."""
    import htcondor2

    try:
        with htcondor2.JobEventLog(str(path)) as log:
            for number, event in enumerate(log.events(stop_after=0)):
                if (event.cluster, event.proc) == (cluster, process):
                    yield LogEvent(int(event.timestamp), event.type.name, one_line(_said(event)))
                if number >= MAX_EVENTS:
                    return
    except (OSError, htcondor2.HTCondorException):
        return


def _said(event: Mapping[str, object]) -> str:
    parts = [str(event[key]) for key in ("HoldReason", "Reason", "Info") if key in event]
    return "; ".join(parts + ([f"exit {event['ReturnValue']}"] if "ReturnValue" in event else []))
