"""A seeder that deals its pieces: one event loop in a thread of its own serves all packages on one port."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jobagent.central.services.dealer import Dealer, DealingPolicy
from jobagent.central.services.peerwire import MAX_BLOCK_BYTES, Connection, DealtPackage
from jobagent.errors import ConfigurationError, NoFreePort

T = TypeVar("T")

_NO_IPV6 = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})
REVISION_S = 0.4
WITNESSES = 30  # complete peers that stay connected: so it is known that the swarm holds everything
BLOCKS_PER_TURN = 32  # before the loop looks at its other sockets


class _Budget:
    """A token bucket over bytes; a rate of 0 is no limit."""

    def __init__(self, rate_bytes: int, now_s: float) -> None:
        self.rate_bytes = rate_bytes
        self._most = max(rate_bytes / 10, MAX_BLOCK_BYTES)
        self._left = self._most
        self._filled_s = now_s

    def take(self, count: int, now_s: float) -> float:
        """Take tokens and return 0, or return the seconds until they are there."""
        if not self.rate_bytes:
            return 0.0
        self._left = min(self._most, self._left + (now_s - self._filled_s) * self.rate_bytes)
        self._filled_s = now_s
        if self._left < count:
            return (count - self._left) / self.rate_bytes
        self._left -= count
        return 0.0


class DealingSeeder:
    """Deals any number of packages on one port.  Thread-safe.

    `upload_rate_bytes` is asked about twice a second for the limit of all that is sent; 0 is none.

    Raises:
        NoFreePort: None of the ports can be bound.
        ConfigurationError: An address is not one of this machine.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        ports: tuple[int, int],
        *,
        policy: DealingPolicy | None = None,
        upload_rate_bytes: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.policy = policy or DealingPolicy()
        self.clock = clock
        self.peer_id = b"-JS0100-" + os.urandom(12)
        self.packages: dict[bytes, DealtPackage] = {}
        self.connections: set[Connection] = set()
        self.sent_bytes = 0
        self._waiting: deque[Connection] = deque()  # those with wishes that can be sent
        self._rate = upload_rate_bytes
        self._budget = _Budget(upload_rate_bytes(), clock())
        self._is_sending = False
        sockets = _bound(list(addresses) or ["0.0.0.0", "::"], ports)
        self.port = int(sockets[0].getsockname()[1])
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="dealing", daemon=True)
        self._thread.start()
        self._servers = self._call(self._start(sockets))

    def offer(self, key: str, path: Path, infohashes: Sequence[bytes], size_bytes: int, piece_size: int) -> None:
        """Deal a verified archive to peers that ask for one of its 20-byte infohashes, v2 first.  Idempotent."""

        async def add() -> None:
            if any(p.key == key for p in self.packages.values()):
                return
            dealer = Dealer(-(-size_bytes // piece_size), self.policy, random.Random())
            self.packages |= dict.fromkeys(
                infohashes, DealtPackage(key, path, infohashes[0], size_bytes, piece_size, dealer)
            )

        self._call(add())

    def withdraw(self, key: str) -> None:
        """Stop dealing an archive; when it returns the file is no longer read.  Idempotent."""

        async def remove() -> None:
            for infohash in [i for i, p in self.packages.items() if p.key == key]:
                package = self.packages.pop(infohash)
                for connection in list(package.connections):
                    connection.end()
                package.close()

        self._call(remove())

    def close(self) -> None:
        """End all connections and the thread; idempotent."""
        if self._loop.is_closed():
            return

        async def stop() -> None:
            self._revision.cancel()
            for server in self._servers:
                server.close()
            for connection in list(self.connections):
                connection.end()
            for package in set(self.packages.values()):
                package.close()

        self._call(stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    # In the event loop

    def wants_to_send(self, connection: Connection) -> None:
        """A connection has wishes and room in its buffer."""
        if not connection.is_waiting:
            connection.is_waiting = True
            self._waiting.append(connection)
        if not self._is_sending:
            self._is_sending = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        """Send piece by piece to each in turn, within the rate: nobody can give on half a piece."""
        for _ in range(BLOCKS_PER_TURN):
            if not self._waiting:
                self._is_sending = False
                return
            connection = self._waiting[0]
            if not connection.can_send():
                self._waiting.popleft()
                connection.is_waiting = False
                continue
            piece, _, length = connection.wishes[0]
            pause_s = self._budget.take(length, self.clock())
            if pause_s > 0:
                self._loop.call_later(pause_s, self._send)
                return
            self.sent_bytes += connection.send_block()
            if not connection.wishes or connection.wishes[0][0] != piece:
                self._waiting.rotate(-1)
        self._loop.call_soon(self._send)

    async def _start(self, sockets: Sequence[socket.socket]) -> list[asyncio.Server]:
        self._revision = self._loop.create_task(self._revise())
        return [await self._loop.create_server(lambda: Connection(self), sock=s, backlog=512) for s in sockets]

    async def _revise(self) -> None:
        """Deal again what was lost or is overdue, drop who is silent or superfluous."""
        while True:
            await asyncio.sleep(REVISION_S)
            now_s = self.clock()
            if (rate_bytes := self._rate()) != self._budget.rate_bytes:
                self._budget = _Budget(rate_bytes, now_s)
            for package in set(self.packages.values()):
                if not package.connections:
                    package.close()
                    continue
                for connection in list(package.connections):
                    connection.check(now_s)
                if package.dealer.revise(now_s):
                    for connection in list(package.connections):
                        connection.deal()
                complete = [c for c in package.connections if c.is_complete()]
                for connection in complete[WITNESSES:]:
                    connection.end()

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)


def _bound(addresses: Sequence[str], ports: tuple[int, int]) -> list[socket.socket]:
    """Listen with the same port of the range on all addresses."""
    reason = ""
    for port in range(ports[0], ports[1] + 1):
        sockets: list[socket.socket] = []
        try:
            for address in addresses:
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                number = sockets[0].getsockname()[1] if sockets else port
                try:
                    sockets.append(socket.create_server((address, number), family=family, backlog=512))
                except OSError as error:
                    if not (address == "::" and sockets and error.errno in _NO_IPV6):
                        raise
            return sockets
        except OSError as error:
            for made in sockets:
                made.close()
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise ConfigurationError(f"cannot listen on {', '.join(addresses)}: {error.strerror}") from error
            reason = f"port {port}: {error.strerror}"
    raise NoFreePort(f"the seeder cannot listen on {', '.join(addresses)}: {reason}", remedy="see [swarm] ports")
