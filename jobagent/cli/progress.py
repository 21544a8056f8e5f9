"""Shows what an agent does: progress bars on a terminal, one plain line per step elsewhere.

A listener on the event stream; knows events and nothing of what makes them.
"""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from jobagent.events import Event, Events

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

QUIET_PHASES = frozenset({"resolve", "inputs", "outputs", "release", "environment", "packages", "verify"})
CLOSE_NOTED_S = 0.5  # leaving the swarm and removing files is worth a line only where one waits for it
LINE_EVERY_S = 5.0  # a log file wants a sign of life, not a film


class ProgressDisplay:
    """A context manager that watches `events` until it is left."""

    def __init__(self, events: Events, *, stream: TextIO = sys.stderr, is_quiet: bool = False) -> None:
        self._events = events
        self._stream = stream
        self._lock = threading.RLock()
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._last: dict[str, float] = {}
        self._is_quiet = is_quiet

    def __enter__(self) -> ProgressDisplay:
        if not self._is_quiet:
            self._events.subscribe(self._on_event)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._events.unsubscribe(self._on_event)
        self._stop_bars()

    def _on_event(self, event: Event) -> None:
        with self._lock:
            fields = event.fields
            match event.name:
                case "progress":
                    self._progress(str(fields["task"]), int(fields["done"] or 0), int(fields["total"] or 0))
                case "phase.started" if fields["phase"] == "payload":
                    self._stop_bars()  # the terminal is the payload's now
                    self._line("payload starts, packages are seeded meanwhile")
                case "phase.ended" if fields["phase"] == "close" and float(fields["seconds"] or 0) < CLOSE_NOTED_S:
                    pass
                case "phase.ended" if fields["phase"] not in QUIET_PHASES:
                    what = " ".join(str(fields[k]) for k in ("phase", "package") if fields.get(k))
                    self._line(f"{what} {float(fields['seconds'] or 0):.1f} s")
                case "package.ready":
                    self._ready(event)
                case "version.chosen":
                    self._line(f"{fields['package']}: {fields['message']}")
                case "warning":
                    self._line(f"warning: {fields['message']}")

    def _ready(self, event: Event) -> None:
        fields = event.fields
        if fields["cache_hit"]:
            self._line(f"{fields['package']} was in the cache")
            return
        origins = {"seeder": "seeder_bytes", "neighbours": "neighbour_bytes", "web": "web_bytes"}
        parts = [f"{float(fields[key] or 0) / 1e6:.1f} MB from {who}" for who, key in origins.items() if fields[key]]
        self._line(f"{fields['package']} is ready: {', '.join(parts) or 'nothing to fetch'}")

    def _progress(self, task: str, done: int, total: int) -> None:
        if self._stream.isatty():
            bars = self._start_bars()
            if task not in self._tasks:
                self._tasks[task] = bars.add_task(task, total=total)
            bars.update(self._tasks[task], completed=done)
            return
        now = time.monotonic()
        if now - self._last.setdefault(task, now) >= LINE_EVERY_S:
            self._last[task] = now
            self._line(f"{task}: {done / 1e6:.1f} of {total / 1e6:.1f} MB")

    def _line(self, text: str) -> None:
        if self._bars is not None:
            self._bars.console.print(f"jobagent: {text}", highlight=False, markup=False)
        else:
            print(f"jobagent: {text}", file=self._stream, flush=True)

    def _start_bars(self) -> Progress:
        if self._bars is None:
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                console=Console(file=self._stream),
            )
            self._bars.start()
        return self._bars

    def _stop_bars(self) -> None:
        with self._lock:
            if self._bars is not None:
                self._bars.stop()
                self._bars, self._tasks = None, {}
