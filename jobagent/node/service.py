"""The node service: one per worker node; owns the swarm session, the cache and the leases, and outlives the jobs.

A thread per connection, one for the ends of processes, one for the catalogue, one for the house.  Nothing of a job
is lost when the service is killed: leases are on disk, and a new service takes them over before anything is evicted.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobagent.config import NodeSettings
from jobagent.contracts import ManagedCache
from jobagent.errors import JobAgentError, SiteError, UsageError, one_line
from jobagent.job.kit import Kit
from jobagent.node import wire
from jobagent.node.client import at, default_socket
from jobagent.node.currentness import CurrentCatalogue, Refresher
from jobagent.node.health import Health
from jobagent.node.holdings import Holdings
from jobagent.node.janitor import Janitor
from jobagent.node.operations import SHUTDOWN, Answer, Operation, Operations, give_back
from jobagent.node.request import Arguments, Lines, Listener, Peer, Request, refusal
from jobagent.node.watcher import Watcher

log = logging.getLogger("jobagent.node")

REQUEST_TIMEOUT_S = 10.0  # for a client to send its one line
DRAIN_TIMEOUT_S = 0.5  # and 1 MiB at most, for what a refused client still sends
DRAIN_READS = 16
ALIVE_INTERVAL_S = 5.0  # a line at least so often while a client waits: clients endure a minute of silence
MAX_CONNECTIONS = 512
MAX_CONNECTIONS_OF_USER = 256


def socket_of(settings: NodeSettings) -> Path:
    """Return the path of the socket."""
    return settings.socket if settings.socket != Path() else Path(default_socket())


class NodeService:
    """The service around one kit.  `start`, then `wait`, then `close`."""

    def __init__(self, kit: Kit, socket_path: Path) -> None:
        settings = kit.config.get(NodeSettings)
        self._settings = settings
        self._path = socket_path
        self._stopping = threading.Event()
        current = [CurrentCatalogue(c, settings.refresh_interval_s) for c in kit.catalogues[:1]]
        self._kit = replace(kit, catalogues=[*current, *kit.catalogues[1:]])
        self._watcher = Watcher()
        health = Health(failures_before_pause=settings.failures_before_pause, pause_s=settings.pause_s)
        self._holdings = Holdings(self._watcher, functools.partial(give_back, self._kit))
        self._operations = Operations(self._kit, self._holdings, health)
        self._janitor = Janitor(
            self._kit,
            interval_s=settings.sweep_interval_s,
            idle_exit_s=settings.idle_exit_s,
            idle_s=self._idle_s,
            stop=self.stop,
        )
        self._refreshers = [Refresher(c, settings.refresh_interval_s, self._janitor.wake) for c in current]
        self._guard = threading.Lock()
        self._connections: Counter[int] = Counter()  # by uid
        self._waiting: set[Listener] = set()
        self._last_request_s = time.monotonic()
        self._closing = contextlib.ExitStack()

    @property
    def path(self) -> Path:
        """The socket."""
        return self._path

    def start(self) -> None:
        """Listen, take over the leases of an earlier service, and only then begin to clean.

        Raises:
            ConfigurationError: No catalogue is configured: nobody could be served.
            SiteError: The socket cannot be made, or another service listens on it.
        """
        _ = self._kit.catalogue
        listener = self._closing.enter_context(listening(self._path, self._settings.socket_mode))
        self.take_over()
        for refresher in self._refreshers:
            refresher.start()
        self._janitor.start()
        for target, argument in ((self._accept, listener), (self._keep_alive, None)):
            threading.Thread(target=target, args=(argument,), name=target.__name__, daemon=True).start()
        log.info("listening on %s", self._path)

    def take_over(self) -> None:
        """Hold the leases that an earlier service gave and whose holders live."""
        if isinstance(self._kit.cache, ManagedCache):
            adopted = self._holdings.adopt(self._kit.cache.leases())
            log.info("%d holders of leases taken over", adopted)

    def stop(self) -> None:
        """Ask the service to end; from any thread, also from a signal handler."""
        self._stopping.set()

    def wait(self) -> None:
        """Return when somebody asked to end."""
        self._stopping.wait()

    def close(self) -> None:
        """End: requests are cancelled, leases stay with their holders."""
        self._stopping.set()
        self._closing.close()
        self._janitor.close()
        for refresher in self._refreshers:
            refresher.close()
        self._watcher.close()
        self._kit.close()

    def perform(self, operation: str, arguments: Mapping[str, Any], lines: Listener) -> Answer:
        """Do what a client of our own user would ask for, in this process and without a socket."""
        peer = Peer(os.getpid(), os.geteuid())
        return self._find(operation)(Request(Arguments(arguments), peer, lines, threading.Event()))

    def _find(self, operation: str) -> Operation:
        act = self._operations.table.get(operation)
        if act is None:
            raise UsageError(f"no operation {operation[:80]!r}", remedy=f"known: {', '.join(self._operations.table)}")
        return act

    def _accept(self, listener: socket.socket) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                if not self._stopping.is_set():
                    log.exception("accept failed")
                    self._stopping.wait(1)
                continue
            threading.Thread(target=self._serve, args=(connection,), name="client", daemon=True).start()

    def _keep_alive(self, _: None) -> None:
        while not self._stopping.wait(ALIVE_INTERVAL_S):
            with self._guard:
                waiting = list(self._waiting)
            for lines in waiting:
                lines.event("alive", {})

    def _serve(self, connection: socket.socket) -> None:
        """Serve one client; whatever it does, the service goes on."""
        with connection:
            peer, lines, operation = Peer.of(connection), Lines(connection), ""
            try:
                with self._admitted(peer):
                    operation, arguments = wire.decode_request(read_line(connection))
                    connection.setblocking(False)
                    answer = self._perform(
                        operation, Request(Arguments(arguments), peer, lines, threading.Event()), connection
                    )
            except wire.WireError as error:
                answer = refusal(UsageError(str(error)))
            except JobAgentError as error:
                answer = refusal(error)
            except OSError as error:
                log.info("client %d: %s", peer.pid, error)
                return
            except Exception as error:  # a border: a bug in one operation must not end the service
                log.exception("request of client %d failed", peer.pid)
                answer = refusal(SiteError(one_line(f"internal error of the node service: {error!r}")))
            try:
                lines.answer(answer)
            except OSError as error:
                log.info("client %d went before its answer: %s", peer.pid, error)
            if not answer["ok"]:
                drain(connection)
            elif operation == SHUTDOWN:
                self.stop()

    def _perform(self, operation: str, request: Request, connection: socket.socket) -> Answer:
        act = self._find(operation)
        handle = self._watcher.connection(connection.fileno(), request.cancelled.set)
        with self._guard:
            self._waiting.add(request.lines)
        try:
            return act(request)
        finally:
            with self._guard:
                self._waiting.discard(request.lines)
                self._last_request_s = time.monotonic()
            self._watcher.forget(handle)

    def _idle_s(self) -> float:
        """Seconds for which nobody held or wanted anything."""
        with self._guard:
            since_request_s = 0.0 if self._waiting else time.monotonic() - self._last_request_s
        return min(since_request_s, self._holdings.idle_s())

    @contextlib.contextmanager
    def _admitted(self, peer: Peer) -> Iterator[None]:
        """Count the connection against the limits for all and for one user."""
        with self._guard:
            if self._connections.total() >= MAX_CONNECTIONS or self._connections[peer.uid] >= MAX_CONNECTIONS_OF_USER:
                raise SiteError(f"the node service has {self._connections.total()} clients already, try again later")
            self._connections[peer.uid] += 1
        try:
            yield
        finally:
            with self._guard:
                self._connections[peer.uid] -= 1


def read_line(connection: socket.socket) -> bytes:
    """Return the one line of a request.

    Raises:
        WireError: It is too long, or the client closed or stalled in its middle.
    """
    connection.settimeout(REQUEST_TIMEOUT_S)
    chunks: list[bytes] = []
    size = 0
    while True:
        try:
            chunk = connection.recv(1 << 16)
        except TimeoutError as error:
            raise wire.WireError(f"no whole request in {REQUEST_TIMEOUT_S:g} s") from error
        chunks.append(chunk)
        size += len(chunk)
        if not chunk:
            raise wire.WireError("request is not ended by a newline")
        if size > wire.MAX_REQUEST_BYTES:
            raise wire.WireError(f"request is longer than {wire.MAX_REQUEST_BYTES} bytes")
        if b"\n" in chunk:
            return b"".join(chunks).partition(b"\n")[0]


def drain(connection: socket.socket) -> None:
    """Read what a refused client still sends: closing over it would take our answer from it (ECONNRESET)."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(DRAIN_TIMEOUT_S)
        for _ in range(DRAIN_READS):
            if not connection.recv(1 << 16):
                break


@contextlib.contextmanager
def listening(path: Path, mode: int) -> Iterator[socket.socket]:
    """Listen on a unix socket; a lock file beside it tells a live service from a dead one's leftover.

    Raises:
        SiteError: The path cannot be used, or another service has it.
    """
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(mode=0o755 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
            lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            stack.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            at(str(path), listener.bind)
            path.chmod(mode)
            listener.listen(MAX_CONNECTIONS)
        except BlockingIOError as error:
            raise SiteError(
                f"another node service listens on {path}", remedy="use it, or set [node] socket"
            ) from error
        except OSError as error:
            raise SiteError(f"cannot listen on {path}: {error.strerror}", remedy="set [node] socket") from error
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)
            listener.shutdown(socket.SHUT_RDWR)
