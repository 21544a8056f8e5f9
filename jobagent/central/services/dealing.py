"""The peer protocol (BEP 3, with the fast extension of BEP 6) as spoken by a seeder that deals its pieces.

One event loop in a thread of its own serves all packages on one port.  It never asks for anything, so what peers send
is only read as claims of what they have and wishes for what was dealt to them; everything else ends the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import random
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from jobagent.central.services.dealer import Dealer, DealingPolicy
from jobagent.errors import ConfigurationError, NoFreePort

log = logging.getLogger("jobagent.central")
T = TypeVar("T")

_NO_IPV6 = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})
PROTOCOL = b"\x13BitTorrent protocol"
HANDSHAKE_BYTES = 68
FAST, UPGRADE = 0x04, 0x10  # in the last reserved byte (BEP 6, BEP 52)
MAX_BLOCK_BYTES = 128 * 1024
MAX_MESSAGE_BYTES = 64 * 1024  # the longest sensible one is a bitfield
MAX_WISHES = 1024  # requests of one peer that wait
MAX_CONNECTIONS = 500  # of one package; the others are served by these
HANDSHAKE_TIMEOUT_S = 10.0
SILENCE_TIMEOUT_S = 180.0  # peers say something at least every two minutes
REVISION_S = 0.4
WITNESSES = 30  # complete peers that stay connected: so it is known that the swarm holds everything
SEND_BUFFER_BYTES = 128 * 1024
BLOCKS_PER_TURN = 32  # before the loop looks at its other sockets

UNCHOKE, NOT_INTERESTED = 1, 3
HAVE, BITFIELD, REQUEST, PIECE, CANCEL, HAVE_ALL, HAVE_NONE, REJECT = 4, 5, 6, 7, 8, 14, 15, 16
HASH_REQUEST, HASH_REJECT = 21, 23  # BEP 52; all layers that a peer needs are in its torrent


@dataclass(slots=True, eq=False)
class _Package:
    """One archive that is dealt."""

    key: str
    path: Path
    infohash_v2: bytes
    size_bytes: int
    piece_size: int
    dealer: Dealer
    connections: set[_Connection] = field(default_factory=set)
    descriptor: int = -1
    sent_bytes: int = 0

    @property
    def pieces(self) -> int:
        """How many there are."""
        return -(-self.size_bytes // self.piece_size)

    def length_of(self, piece: int) -> int:
        """Bytes of a piece; the last one may be shorter."""
        return min(self.piece_size, self.size_bytes - piece * self.piece_size)

    def read(self, piece: int, begin: int, length: int) -> bytes:
        """Return a block; the file is opened at the first one and closed when nobody is connected."""
        if self.descriptor < 0:
            self.descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        return os.pread(self.descriptor, length, piece * self.piece_size + begin)

    def close(self) -> None:
        """Close the file."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class _Budget:
    """A token bucket over bytes; a rate of 0 is no limit."""

    def __init__(self, rate_bytes: int, now_s: float) -> None:
        self._rate = rate_bytes
        self._most = max(rate_bytes / 10, MAX_BLOCK_BYTES)
        self._left = self._most
        self._filled_s = now_s

    def take(self, count: int, now_s: float) -> float:
        """Take tokens and return 0, or return the seconds until they are there."""
        if not self._rate:
            return 0.0
        self._left = min(self._most, self._left + (now_s - self._filled_s) * self._rate)
        self._filled_s = now_s
        if self._left < count:
            return (count - self._left) / self._rate
        self._left -= count
        return 0.0


class DealingSeeder:
    """Deals any number of packages on one port.  Thread-safe.

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
        upload_rate_bytes: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.policy = policy or DealingPolicy()
        self.clock = clock
        self.peer_id = b"-JS0100-" + os.urandom(12)
        self.packages: dict[bytes, _Package] = {}
        self.connections: set[_Connection] = set()
        self.sent_bytes = 0
        self._waiting: deque[_Connection] = deque()  # those with wishes that can be sent
        self._budget = _Budget(upload_rate_bytes, clock())
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
                infohashes, _Package(key, path, infohashes[0], size_bytes, piece_size, dealer)
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

    def wants_to_send(self, connection: _Connection) -> None:
        """A connection has wishes and room in its buffer."""
        if not connection.is_waiting:
            connection.is_waiting = True
            self._waiting.append(connection)
        if not self._is_sending:
            self._is_sending = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        """Send block by block to each in turn, within the rate."""
        for _ in range(BLOCKS_PER_TURN):
            if not self._waiting:
                self._is_sending = False
                return
            connection = self._waiting[0]
            if not connection.can_send():
                self._waiting.popleft()
                connection.is_waiting = False
                continue
            pause_s = self._budget.take(connection.wishes[0][2], self.clock())
            if pause_s > 0:
                self._loop.call_later(pause_s, self._send)
                return
            self.sent_bytes += connection.send_block()
            self._waiting.rotate(-1)
        self._loop.call_soon(self._send)

    async def _start(self, sockets: Sequence[socket.socket]) -> list[asyncio.Server]:
        self._revision = self._loop.create_task(self._revise())
        return [await self._loop.create_server(lambda: _Connection(self), sock=s, backlog=512) for s in sockets]

    async def _revise(self) -> None:
        """Deal again what was lost or is overdue, drop who is silent or superfluous."""
        while True:
            await asyncio.sleep(REVISION_S)
            now_s = self.clock()
            for package in set(self.packages.values()):
                if not package.connections:
                    package.close()
                    continue
                must_deal = package.dealer.revise(now_s)
                for connection in list(package.connections):
                    connection.check(now_s)
                    if must_deal:
                        connection.deal()
                complete = [c for c in package.connections if c.is_complete()]
                for connection in complete[WITNESSES:]:
                    connection.end()

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)


class _Connection(asyncio.Protocol):
    """One peer."""

    def __init__(self, seeder: DealingSeeder) -> None:
        self._seeder = seeder
        self._package: _Package | None = None
        self._transport: asyncio.Transport
        self._buffer = bytearray()
        self._peer_id = b""
        self._has_fast = False
        self._has_spoken = False  # it told what it has, or that it has nothing
        self._is_paused = False
        self._heard_s = seeder.clock()
        self._revealed: set[int] = set()
        self._sent: dict[int, int] = {}  # bytes of pieces that are on their way
        self.wishes: deque[tuple[int, int, int]] = deque()
        self.is_waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=SEND_BUFFER_BYTES)
        self._seeder.connections.add(self)
        self._timer = asyncio.get_running_loop().call_later(HANDSHAKE_TIMEOUT_S, self._check_handshake)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._seeder.connections.discard(self)
        self.wishes.clear()
        package, self._package = self._package, None
        if package is not None:
            package.connections.discard(self)
            if package.dealer.leave(self):
                for connection in package.connections:
                    connection.deal()

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        if self.wishes:
            self._seeder.wants_to_send(self)

    def data_received(self, data: bytes) -> None:
        self._heard_s = self._seeder.clock()
        self._buffer += data
        try:
            if self._package is None and not self._shake_hands():
                return
            self._read_messages()
        except ValueError as error:
            log.debug("peer %s: %s", self._transport.get_extra_info("peername"), error)
            self.end()

    def end(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    def check(self, now_s: float) -> None:
        """Close a connection that is silent for too long; a peer that says nothing of its pieces has none."""
        self._has_spoken = True
        if now_s - self._heard_s > SILENCE_TIMEOUT_S:
            self.end()

    def is_complete(self) -> bool:
        """Whether the peer has everything."""
        return self._package is not None and self._package.dealer.is_complete(self)

    def deal(self) -> None:
        """Reveal what the dealer has for this peer."""
        if self._package is None or not self._has_spoken:
            return
        pieces = [p for p in self._package.dealer.deal(self, self._seeder.clock()) if p not in self._revealed]
        self._revealed.update(pieces)
        if pieces:
            self._transport.write(b"".join(struct.pack(">IBI", 5, HAVE, piece) for piece in pieces))

    def can_send(self) -> bool:
        """Whether there is a wish, and room for it."""
        return bool(self.wishes) and not self._is_paused and not self._transport.is_closing()

    def send_block(self) -> int:
        """Send the oldest wish; return the bytes of the block."""
        package = self._package
        assert package is not None
        piece, begin, length = self.wishes.popleft()
        try:
            block = package.read(piece, begin, length)
        except OSError as error:
            log.error("cannot read %s: %s", package.path, error)
            self.end()
            return 0
        self._transport.write(struct.pack(">IBII", 9 + length, PIECE, piece, begin))
        self._transport.write(block)
        package.sent_bytes += length
        self._count(package, piece, length)
        if not self.wishes and not self._is_paused:
            package.dealer.drained(self)
            self.deal()
        return length

    def _count(self, package: _Package, piece: int, length: int) -> None:
        """A piece that is sent is held: peers that spare messages do not tell us what they know that we have."""
        sent = self._sent.get(piece, 0) + length
        if sent < package.length_of(piece):
            self._sent[piece] = sent
            return
        self._sent.pop(piece, None)
        package.dealer.has(self, piece, self._seeder.clock())
        self.deal()

    def _check_handshake(self) -> None:
        if self._package is None:
            self.end()

    def _shake_hands(self) -> bool:
        """Read the handshake and answer it; False while it is not complete."""
        if bytes(self._buffer[: len(PROTOCOL)]) != PROTOCOL[: len(self._buffer)]:
            raise ValueError("speaks another protocol, or encrypts")
        if len(self._buffer) < HANDSHAKE_BYTES:
            return False
        infohash, self._peer_id = bytes(self._buffer[28:48]), bytes(self._buffer[48:68])
        self._has_fast, can_upgrade = bool(self._buffer[27] & FAST), bool(self._buffer[27] & UPGRADE)
        del self._buffer[:HANDSHAKE_BYTES]
        package = self._seeder.packages.get(infohash)
        if package is None:
            raise ValueError("asks for an unknown torrent")
        if len(package.connections) >= MAX_CONNECTIONS or any(
            c._peer_id == self._peer_id for c in package.connections
        ):
            raise ValueError("one connection too many")
        self._package = package
        package.connections.add(self)
        package.dealer.join(self, self._seeder.clock())
        if can_upgrade:  # who learns of us by its v1 and v2 announces at once may expect either, but takes this
            infohash = package.infohash_v2
        answer = PROTOCOL + bytes([0, 0, 0, 0, 0, 0, 0, FAST]) + infohash + self._seeder.peer_id
        if package.pieces == 1:
            # There is nothing to deal; and libtorrent leaves whoever becomes a seed by the first piece it tells of.
            self._revealed.add(0)
            answer += struct.pack(">IB", 1, HAVE_ALL) if self._has_fast else struct.pack(">IBB", 2, BITFIELD, 0x80)
        elif self._has_fast:
            answer += struct.pack(">IB", 1, HAVE_NONE)
        self._transport.write(answer + struct.pack(">IB", 1, UNCHOKE))
        return True

    def _read_messages(self) -> None:
        buffer, at = self._buffer, 0
        while len(buffer) - at >= 4:
            length = int.from_bytes(buffer[at : at + 4], "big")
            if length > MAX_MESSAGE_BYTES:
                raise ValueError(f"sends a message of {length} bytes")
            if len(buffer) - at < 4 + length:
                break
            if length:
                self._on_message(buffer[at + 4], bytes(buffer[at + 5 : at + 4 + length]))
            at += 4 + length
        del buffer[:at]
        self.deal()

    def _on_message(self, kind: int, payload: bytes) -> None:
        package, now_s = self._package, self._heard_s
        assert package is not None
        if kind == HAVE and len(payload) == 4:
            package.dealer.has(self, int.from_bytes(payload, "big"), now_s)
            self._has_spoken = True
        elif kind == REQUEST and len(payload) == 12:
            self._on_request(package, *struct.unpack(">III", payload))
        elif kind == CANCEL and len(payload) == 12:
            wish = struct.unpack(">III", payload)
            with contextlib.suppress(ValueError):
                self.wishes.remove(wish)
                self._reject(*wish)
        elif kind == BITFIELD:
            package.dealer.has_many(self, _pieces_of(payload, package.pieces), now_s)
            self._has_spoken = True
        elif kind == HAVE_ALL:
            package.dealer.has_many(self, range(package.pieces), now_s)
            self._has_spoken = True
        elif kind == NOT_INTERESTED:  # it has all that we claim to have, from whomever
            package.dealer.has_many(self, self._revealed, now_s)
        elif kind == HAVE_NONE:
            self._has_spoken = True
        elif kind == HASH_REQUEST:
            self._transport.write(struct.pack(">IB", 1 + len(payload), HASH_REJECT) + payload)

    def _on_request(self, package: _Package, piece: int, begin: int, length: int) -> None:
        is_fair = (
            piece in self._revealed and 0 < length <= MAX_BLOCK_BYTES and begin + length <= package.length_of(piece)
        )
        if not is_fair or len(self.wishes) >= MAX_WISHES:
            self._reject(piece, begin, length)
            return
        self.wishes.append((piece, begin, length))
        if not self._is_paused:
            self._seeder.wants_to_send(self)

    def _reject(self, piece: int, begin: int, length: int) -> None:
        if self._has_fast:
            self._transport.write(struct.pack(">IBIII", 13, REJECT, piece, begin, length))


def _pieces_of(bitfield: bytes, pieces: int) -> list[int]:
    if len(bitfield) != -(-pieces // 8):
        raise ValueError(f"sends a bitfield of {len(bitfield)} bytes")
    return [p for p in range(pieces) if bitfield[p // 8] & 0x80 >> p % 8]


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
