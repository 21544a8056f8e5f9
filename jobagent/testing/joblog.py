"""What happens to the jobs of a pool, read from the schedd's event log: waiting for jobs costs no query."""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobagent.errors import SiteError

TERMINATED = "JobTerminatedEvent"
HELD = "JobHeldEvent"
REMOVED = "JobAbortedEvent"
EXECUTING = "ExecuteEvent"
SUBMITTED = "SubmitEvent"
EVICTED = "JobEvictedEvent"
RECONNECT_FAILED = "JobReconnectFailedEvent"
SHADOW_EXCEPTION = "ShadowExceptionEvent"

FINAL = frozenset({TERMINATED, HELD, REMOVED})
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One event of one job; `fields` is the event's ad."""

    cluster: int
    process: int
    kind: str
    fields: dict[str, Any]

    @property
    def reason(self) -> str:
        """Why it happened, for holds, evictions and removals."""
        return str(self.fields.get("HoldReason") or self.fields.get("Reason") or "")


class JobLog:
    """The events of a pool's jobs, in order; reads what was appended since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._rest = ""
        self._events: list[JobEvent] = []

    def events(self, cluster: int) -> list[JobEvent]:
        """Return all events of a cluster so far."""
        self._read()
        return [event for event in self._events if event.cluster == cluster]

    def size(self, cluster: int) -> int:
        """Return the number of jobs in a cluster."""
        return len({event.process for event in self.events(cluster) if event.kind == SUBMITTED})

    def wait(self, cluster: int, kinds: Collection[str] = FINAL, *, timeout_s: float = 120.0) -> list[JobEvent]:
        """Wait until every job of the cluster has an event of one of these kinds; return each job's first.

        Raises:
            SiteError: It did not happen in time; the message shows what did.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            events = self.events(cluster)
            found: dict[int, JobEvent] = {}
            for event in events:
                if event.kind in kinds:
                    found.setdefault(event.process, event)
            if found and len(found) == self.size(cluster):
                return [found[process] for process in sorted(found)]
            if time.monotonic() > deadline:
                seen = ", ".join(f"{e.process}:{e.kind} {e.reason}" for e in events)
                raise SiteError(f"cluster {cluster} saw no {'/'.join(kinds)} within {timeout_s:g} s, but {seen}")
            time.sleep(_POLL_S)

    def _read(self) -> None:
        if not self._path.exists():
            return
        with open(self._path, encoding="utf-8", errors="replace") as stream:
            stream.seek(self._offset)
            text = self._rest + stream.read()
            self._offset = stream.tell()
        events, self._rest = _decode(text)
        self._events += events


def _decode(text: str) -> tuple[list[JobEvent], str]:
    """Return the complete events of a concatenation of JSON objects, and the start of one that is still written."""
    decoder = json.JSONDecoder()
    events: list[JobEvent] = []
    position = 0
    while (start := text.find("{", position)) >= 0:
        try:
            fields, position = decoder.raw_decode(text, start)
        except json.JSONDecodeError:
            return events, text[start:]
        if "Cluster" in fields:  # the log's own header is an event too
            events.append(JobEvent(int(fields["Cluster"]), int(fields["Proc"]), str(fields["MyType"]), fields))
    return events, ""
