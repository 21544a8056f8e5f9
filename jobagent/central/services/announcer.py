"""Announces of a seeder that speaks for itself: to several trackers, at the intervals that they ask for.  BEP 3.

Answers are hostile: bounded in time and size, and nothing of them is used but the interval.
"""

from __future__ import annotations

import http.client
import logging
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jobagent import bencode

log = logging.getLogger("jobagent.central")

TIMEOUT_S = 5.0
MAX_ANSWER_BYTES = 64 << 10
RETRY_S = 15
SHORTEST_S, LONGEST_S = 5, 1800
STOP_TIMEOUT_S = 2.0


@dataclass(slots=True)
class _Presence:
    """One infohash at one tracker; `due_s` is monotonic."""

    tracker: str
    infohash: bytes
    size_bytes: int
    due_s: float = 0.0
    event: str = "started"
    failure: str = ""


class Announcer:
    """Keeps a complete peer listed; one thread.

    Args:
        trackers: Announce URLs (http, https), tokens included.
        peer_id: 20 bytes.
        port: Where the peer listens.
        address: Source address of the announces, empty for any.
    """

    def __init__(
        self,
        trackers: Sequence[str],
        *,
        peer_id: bytes,
        port: int,
        address: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._trackers = tuple(trackers)
        self._peer_id = peer_id
        self._port = port
        self._address = address
        self._clock = clock
        self._presences: dict[tuple[str, bytes], _Presence] = {}
        self._changed = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="announcer", daemon=True)
        self._thread.start()

    def offer(self, infohashes: Sequence[bytes], size_bytes: int) -> None:
        """Be listed for these 20-byte infohashes from now on."""
        with self._changed:
            for tracker in self._trackers:
                for infohash in infohashes:
                    presence = _Presence(tracker, infohash, size_bytes)
                    self._presences.setdefault((tracker, infohash), presence)
            self._changed.notify_all()

    def withdraw(self, infohashes: Sequence[bytes]) -> None:
        """Be listed no more."""
        with self._changed:
            gone = [self._presences.pop((t, i), None) for t in self._trackers for i in infohashes]
        for presence in gone:
            if presence is not None:
                self._stop(presence)

    def close(self) -> None:
        """Say goodbye to every tracker, within a few seconds; idempotent."""
        with self._changed:
            if self._is_closing:
                return
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(TIMEOUT_S + 1)
        deadline = self._clock() + STOP_TIMEOUT_S
        for presence in self._presences.values():
            if self._clock() < deadline:
                self._stop(presence)

    def _run(self) -> None:
        while True:
            with self._changed:
                due = min(self._presences.values(), key=lambda p: p.due_s, default=None)
                if self._is_closing:
                    return
                wait_s = None if due is None else due.due_s - self._clock()
                if due is None or (wait_s is not None and wait_s > 0):
                    self._changed.wait(wait_s)
                    continue
            self._announce(due)

    def _announce(self, presence: _Presence) -> None:
        try:
            interval_s = self._ask(presence, presence.event, TIMEOUT_S)
            presence.event, presence.failure = "", ""
        except (OSError, http.client.HTTPException, ValueError) as error:
            if str(error) != presence.failure:
                log.warning("tracker %s: %s", presence.tracker.partition("?")[0], error)
            presence.failure, interval_s = str(error), RETRY_S
        presence.due_s = self._clock() + interval_s

    def _stop(self, presence: _Presence) -> None:
        try:
            self._ask(presence, "stopped", STOP_TIMEOUT_S)
        except (OSError, http.client.HTTPException, ValueError) as error:
            log.debug("tracker %s did not hear the goodbye: %s", presence.tracker.partition("?")[0], error)

    def _ask(self, presence: _Presence, event: str, timeout_s: float) -> int:
        """Announce once and return the interval; raises ValueError where the tracker refuses or talks nonsense."""
        url = urllib.parse.urlsplit(presence.tracker)
        fields = {"info_hash": presence.infohash, "peer_id": self._peer_id, "port": self._port, "left": 0}
        fields |= {"uploaded": 0, "downloaded": presence.size_bytes, "compact": 1, "numwant": 0}
        query = urllib.parse.urlencode(fields | ({"event": event} if event else {}))
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        source = (self._address, 0) if self._address else None
        connection = kind(url.hostname or "", url.port, timeout=timeout_s, source_address=source)
        try:
            connection.request("GET", f"{url.path or '/'}?{url.query + '&' if url.query else ''}{query}")
            answer = connection.getresponse()
            body = answer.read(MAX_ANSWER_BYTES)
        finally:
            connection.close()
        if answer.status != 200:
            raise ValueError(f"HTTP status {answer.status}")
        reply = bencode.decode(body)
        if not isinstance(reply, dict):
            raise ValueError("the answer is no dictionary")
        if isinstance(reason := reply.get(b"failure reason"), bytes):
            raise ValueError(f"refused: {reason.decode(errors='replace')[:200]}")
        interval = reply.get(b"interval")
        return min(LONGEST_S, max(SHORTEST_S, interval)) if isinstance(interval, int) else RETRY_S
