"""How far another process's build is: it writes, those who wait read."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from jobagent.plugin import Event, Events

INTERVAL_S = 0.25


@contextlib.contextmanager
def shown(path: Path, digest: str, events: Events) -> Iterator[None]:
    """While the block runs, copy this package's `progress` events to `path`."""
    last_s = 0.0

    def listen(event: Event) -> None:
        nonlocal last_s
        if event.name != "progress" or event.fields.get("digest") != digest or event.time_s - last_s < INTERVAL_S:
            return
        last_s = event.time_s
        temporary = path.with_name(f"{path.name}.{threading.get_ident()}")
        with contextlib.suppress(OSError):  # a full disk is reported by the build itself
            temporary.write_text(json.dumps({**event.fields, "pid": os.getpid()}), encoding="utf-8")
            os.rename(temporary, path)

    events.subscribe(listen)
    try:
        yield
    finally:
        events.unsubscribe(listen)
        for left in path.parent.glob(f"{path.name}*"):
            left.unlink(missing_ok=True)


class Waiting:
    """Tells of a wait for somebody else's build: once that it began, then its progress."""

    def __init__(self, path: Path, digest: str, package: str, events: Events) -> None:
        self._path = path
        self._digest = digest
        self._package = package
        self._events = events
        self._next_s = 0.0
        self._seen = b""

    def tick(self) -> None:
        """Emit what is new; called often, does something a few times a second."""
        now_s = time.monotonic()
        if not self._next_s:
            self._events.emit("cache.waiting", package=self._package, digest=self._digest)
        if now_s < self._next_s:
            return
        self._next_s = now_s + INTERVAL_S
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            data = self._path.read_bytes()
            if data != self._seen:
                self._seen = data
                fields = json.loads(data)
                if fields["pid"] == os.getpid():
                    return  # the builder's own events are on the same bus
                self._events.emit(
                    "progress",
                    task=str(fields["task"]),
                    digest=self._digest,
                    done=int(fields["done"]),
                    total=int(fields["total"]),
                    is_elsewhere=True,
                )
