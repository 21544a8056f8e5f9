"""One request: its arguments, checked; who asks; and the way back for lines before the answer."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from jobagent import processes
from jobagent.contracts import Holder
from jobagent.errors import JobAgentError, UsageError
from jobagent.node import wire

_CREDENTIALS = struct.Struct("iII")  # struct ucred of unix(7)
SEND_TIMEOUT_S = 10.0
MAX_ANCESTORS = 64


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end, as the kernel says."""

    pid: int
    uid: int

    @classmethod
    def of(cls, connection: socket.socket) -> Peer:
        """Return the peer of a unix socket."""
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, _ = _CREDENTIALS.unpack(raw)
        return cls(pid, uid)

    @property
    def is_admin(self) -> bool:
        """Whether it may manage the cache: root, or the user of the service; no payload in its sandbox is either."""
        return not self._is_confined() if self.uid == os.geteuid() else self.uid == 0

    def holder(self, pid: int, job_id: str) -> Holder:
        """Return the holder that the peer names; 0 is nobody, held until released.

        Raises:
            UsageError: It has no business with that process: not itself, an ancestor, or one of its user.
        """
        if pid == 0:
            if not self.is_admin:
                raise UsageError("a lease without a holder is for root and the user of the node service only")
            return Holder(0, 0, job_id, self.uid)
        ticks = processes.start_ticks(pid)
        if not ticks:
            raise UsageError(f"holder {pid} does not run")
        if pid == 1 or not (self.is_admin or pid == self.pid or self._owns(pid) or self._descends_from(pid)):
            raise UsageError(f"holder {pid} is neither an ancestor of process {self.pid} nor of its user")
        return Holder(pid, ticks, job_id, self.uid)

    def _is_confined(self) -> bool:
        """Whether it lives in a pid namespace of its own, as a payload that runs as the service's user does."""
        try:
            return os.stat(f"/proc/{self.pid}/ns/pid").st_ino != processes.pid_namespace()
        except OSError:
            return True

    def _owns(self, pid: int) -> bool:
        try:
            return os.stat(f"/proc/{pid}").st_uid == self.uid
        except OSError:
            return False

    def _descends_from(self, ancestor: int) -> bool:
        pid = self.pid
        for _ in range(MAX_ANCESTORS):
            pid = processes.parent(pid)
            if pid == ancestor:
                return True
            if pid <= 1:
                break
        return False


class Lines:
    """The way back to one client, over a non-blocking socket: who does not read loses events, not the answer."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._guard = threading.Lock()
        self._pending = b""
        self._is_answered = False

    def event(self, name: str, fields: Mapping[str, Any]) -> None:
        """Send a line before the answer, or drop it where the client is slow."""
        with self._guard:
            if not self._is_answered and self._flush():
                self._pending = wire.encode({**fields, "event": name})
                self._flush()

    def answer(self, message: dict[str, Any]) -> None:
        """Send the last line; raises OSError where the client is gone or takes none for ten seconds."""
        line = wire.encode(message)
        with self._guard:
            self._is_answered = True
            self._connection.settimeout(SEND_TIMEOUT_S)
            self._connection.sendall(self._pending + line)

    def _flush(self) -> bool:
        """Send what is pending as far as it goes; return whether nothing is left."""
        try:
            sent = self._connection.send(self._pending) if self._pending else 0
        except OSError:
            return False
        self._pending = self._pending[sent:]
        return not self._pending


class Listener(Protocol):
    """Who gets the lines before the answer."""

    def event(self, name: str, fields: Mapping[str, Any]) -> None:
        """Tell; never blocks, never raises."""


class Arguments:
    """Arguments of a request, by type; each method raises UsageError with name and expectation."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def text(self, name: str, default: str = "", *, limit: int = 4096) -> str:
        """A string of at most `limit` characters without NUL."""
        value = self._values.get(name, default)
        if not isinstance(value, str) or len(value) > limit or "\0" in value:
            raise UsageError(f"argument {name} must be text of at most {limit} characters")
        return value

    def number(self, name: str, default: int = 0) -> int:
        """A whole number from 0 up to what a pid or a size can be."""
        value = self._values.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53:
            raise UsageError(f"argument {name} must be a whole number from 0")
        return value

    def flag(self, name: str) -> bool:
        """True or false; false where it is absent."""
        value = self._values.get(name, False)
        if not isinstance(value, bool):
            raise UsageError(f"argument {name} must be true or false")
        return value

    def texts(self, name: str, *, limit: int = 1000) -> tuple[str, ...]:
        """A list of strings; empty where it is absent."""
        value = self._values.get(name, [])
        if not isinstance(value, list) or len(value) > limit:
            raise UsageError(f"argument {name} must be a list of at most {limit} texts")
        if not all(isinstance(item, str) and "\0" not in item for item in value):
            raise UsageError(f"argument {name} must be a list of texts")
        return tuple(value)

    def mapping(self, name: str) -> dict[str, str] | None:
        """An object with text values; None where it is absent."""
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict) or not all(isinstance(v, str) and "\0" not in v + k for k, v in value.items()):
            raise UsageError(f"argument {name} must be an object of texts")
        return value


@dataclass(frozen=True, slots=True)
class Request:
    """What an operation gets."""

    arguments: Arguments
    peer: Peer
    lines: Listener
    cancelled: threading.Event

    def require_admin(self) -> None:
        """Raise UsageError unless root or the user of the service asks."""
        if not self.peer.is_admin:
            raise UsageError(f"this is for root and the user of the node service, not for uid {self.peer.uid}")


def refusal(error: JobAgentError) -> dict[str, Any]:
    """Return the answer for an error."""
    return {
        "ok": False,
        "error": {
            "kind": error.kind,
            "message": str(error),
            "exit_code": error.exit_code,
            "hook_status": error.hook_status,
            "retryable": error.retryable,
        },
    }
