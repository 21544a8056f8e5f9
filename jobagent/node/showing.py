"""What a client sees while it waits: the progress of the downloads that its job needs, whoever started them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from jobagent.events import Event, Events
from jobagent.node.request import Listener

INTERVAL_S = 0.25  # between two lines of progress of one package


@contextlib.contextmanager
def shown(lines: Listener, everybody: Events) -> Iterator[tuple[Events, list[str]]]:
    """Yield an event stream for one job, whose events reach everybody, and the list of its warnings.

    The digests of the plan are what the client waits for: progress of these is sent, also from another job's thread.
    """
    wanted: set[str] = set()
    shown_s: dict[str, float] = {}
    warnings: list[str] = []

    def watch(event: Event) -> None:
        digest = str(event.fields.get("digest"))
        if event.name != "progress" or digest not in wanted:
            return
        is_last = event.fields.get("done") == event.fields.get("total")
        if is_last or event.time_s - shown_s.get(digest, 0.0) >= INTERVAL_S:
            shown_s[digest] = event.time_s
            lines.event(event.name, event.fields)

    def forward(event: Event) -> None:
        if event.name == "plan.made":
            wanted.update(str(event.fields["digests"]).split())
        elif event.name == "warning":
            warnings.append(str(event.fields.get("message", "")))
        everybody.emit(event.name, **event.fields)

    events = Events()
    events.subscribe(forward)
    everybody.subscribe(watch)
    try:
        yield events, warnings
    finally:
        everybody.unsubscribe(watch)
