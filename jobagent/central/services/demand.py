"""What the nodes of a site want, by the word of all trackers: how a site seeder hears of it at once.

Each tracker is asked by a thread of its own and holds its answer back until it is another than the one before; while
it does so it counts on the site's seeder, and sends no node of the site outside for a moment.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jobagent.central.services.announces import MAX_HOLD_S

ASK_TIMEOUT_S = 5.0  # beyond what the tracker may hold the answer back
PAUSE_S = 0.2  # before the next question, whatever a tracker does
MAX_ANSWER_BYTES = 8 << 20

Say = Callable[[str, str], None]
"""Takes what a trouble is about, and the trouble; empty when it is over."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One answer: digests of archives, and the tag that the next question may give; empty from a plain tracker."""

    digests: Sequence[str]
    tag: str = ""


class Demand:
    """Follows what a site wants; `changed` is set whenever a tracker has answered.

    Args:
        trackers: Announce URLs.
        address: To ask from; it decides about the site.
        retry_s: Seconds until a tracker that does not answer, or does not hold back, is asked again.
        say: Is told what is wrong with a tracker.
    """

    def __init__(self, trackers: Sequence[str], address: str, *, retry_s: float, say: Say) -> None:
        self._address = address
        self._retry_s = retry_s
        self._say = say
        self._answers: dict[str, Wanted] = {}
        self._connections: dict[str, http.client.HTTPConnection] = {}
        self._closing = threading.Event()
        self.changed = threading.Event()
        self._threads = [
            threading.Thread(target=self._follow, args=(tracker,), name="demand", daemon=True) for tracker in trackers
        ]

    def start(self) -> None:
        """Begin to ask."""
        for thread in self._threads:
            thread.start()

    def wanted(self) -> list[str]:
        """Digests of what nodes of the site have or want, each once."""
        return list(dict.fromkeys(digest for answer in list(self._answers.values()) for digest in answer.digests))

    def close(self) -> None:
        """Break off all questions; idempotent."""
        self._closing.set()
        for connection in list(self._connections.values()):
            with contextlib.suppress(OSError, AttributeError):  # closed, or not yet connected
                connection.sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            if thread.is_alive():
                thread.join(1.0)

    def _follow(self, tracker: str) -> None:
        tag = ""
        while not self._closing.is_set():
            try:
                answer = self._ask(tracker, tag)
                pause_s = PAUSE_S if answer.tag else self._retry_s
            except (OSError, http.client.HTTPException, ValueError) as error:
                if not self._closing.is_set():
                    name = tracker.partition("?")[0]
                    self._say(tracker, f"tracker {name} does not say what the site wants: {error}")
                answer, pause_s = Wanted(()), self._retry_s
            else:
                self._say(tracker, "")
            tag = answer.tag
            self._answers[tracker] = answer
            self.changed.set()
            self._closing.wait(pause_s)

    def _ask(self, tracker: str, tag: str) -> Wanted:
        with contextlib.closing(_connection(tracker, self._address)) as connection:
            self._connections[tracker] = connection
            return _ask(connection, tracker, tag)


def _connection(tracker: str, address: str) -> http.client.HTTPConnection:
    url = urllib.parse.urlsplit(tracker)
    source = (address, 0) if address else None
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    return kind(url.hostname or "", url.port, timeout=ASK_TIMEOUT_S + MAX_HOLD_S, source_address=source)


def _ask(connection: http.client.HTTPConnection, tracker: str, tag: str) -> Wanted:
    url = urllib.parse.urlsplit(tracker)
    query = "&".join(filter(None, (url.query, urllib.parse.urlencode({"tag": tag, "hold": MAX_HOLD_S}))))
    connection.request("GET", f"{url.path.rpartition('/')[0]}/wanted?{query}")
    answer = connection.getresponse()
    body = answer.read(MAX_ANSWER_BYTES)
    if answer.status == 404:
        raise ValueError("it is no tracker of jobagent")
    document = json.loads(body)
    if not isinstance(document, dict) or not isinstance(document.get("swarms"), list):
        reason = document.get("failure") if isinstance(document, dict) else None
        raise ValueError(str(reason)[:200] if reason else "the answer is no list of swarms")
    digests = [item for item in document["swarms"] if isinstance(item, str) and len(item) == 64]
    found = document.get("tag")
    return Wanted(digests, found[:64] if isinstance(found, str) else "")
