"""One stream of events: log lines, progress bars, reports and metrics are all made from it.

An event is a name and fields; who listens is decided by `main()`.  A listener that raises is dropped and the
fact is logged: watching must not break what is watched.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

log = logging.getLogger("jobagent")

Value = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, at `time_s` (seconds since the epoch).

    Names in use: `phase.started`, `phase.ended` (phase, seconds), `progress` (task, done, total in bytes),
    `package.ready` (package, digest, cache_hit, bytes by origin), `warning` (message), `payload.started`,
    `payload.ended`.
    """

    name: str
    time_s: float
    job_id: str = ""
    fields: Mapping[str, Value] = field(default_factory=lambda: MappingProxyType({}))


Listener = Callable[[Event], None]


class Events:
    """The bus.  Thread-safe; listeners are called in the emitting thread and must return promptly."""

    def __init__(self, *, job_id: str = "", clock: Callable[[], float] = time.time) -> None:
        self._listeners: list[Listener] = []
        self._lock = threading.Lock()
        self._clock = clock
        self._job_id = job_id

    def subscribe(self, listener: Listener) -> None:
        """Add a listener for all later events."""
        with self._lock:
            self._listeners.append(listener)

    def unsubscribe(self, listener: Listener) -> None:
        """Remove a listener; one that is not there is no error."""
        with self._lock, contextlib.suppress(ValueError):
            self._listeners.remove(listener)

    def emit(self, name: str, **fields: Value) -> None:
        """Tell all listeners."""
        event = Event(name, self._clock(), self._job_id, MappingProxyType(fields))
        with self._lock:
            listeners = tuple(self._listeners)
        for listener in listeners:
            try:
                listener(event)
            except Exception:
                log.exception("event listener %r failed on %s and was dropped", listener, name)
                self.unsubscribe(listener)

    @contextlib.contextmanager
    def phase(self, name: str, **fields: Value) -> Iterator[None]:
        """Emit `phase.started` and, however the block ends, `phase.ended` with its seconds."""
        start = time.monotonic()
        self.emit("phase.started", phase=name, **fields)
        try:
            yield
        finally:
            self.emit("phase.ended", phase=name, seconds=time.monotonic() - start, **fields)


class EventFile:
    """A listener that appends every event to a file, one JSON object a line: `event`, `time_s`, `job_id`, fields."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        line = json.dumps(
            {"event": event.name, "time_s": round(event.time_s, 3), "job_id": event.job_id, **event.fields}
        )
        with self._lock, self._path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
