"""One connection of a seeder that deals its pieces: the peer protocol of BEP 3, with the fast extension of BEP 6.

The seeder never asks for anything, so what peers send is only read as claims of what they have and wishes for what
was dealt to them; everything else ends the connection.  Knows nothing of ports, rates and catalogues.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from jobagent.central.services.dealer import Dealer

log = logging.getLogger("jobagent.central")

PROTOCOL = b"\x13BitTorrent protocol"
HANDSHAKE_BYTES = 68
FAST, UPGRADE = 0x04, 0x10  # in the last reserved byte (BEP 6, BEP 52)
MAX_BLOCK_BYTES = 128 * 1024
MAX_MESSAGE_BYTES = 64 * 1024  # the longest sensible one is a bitfield
MAX_WISHES = 1024  # requests of one peer that wait
MAX_CONNECTIONS = 500  # of one package; the others are served by these
HANDSHAKE_TIMEOUT_S = 10.0
SILENCE_TIMEOUT_S = 180.0  # peers say something at least every two minutes
STUCK_S = 15.0  # who asked and takes nothing for so long does not wait for our link
KEEP_ALIVE_S = 60.0  # libtorrent leaves who is silent for two minutes
RELIEF_BYTES = 4 << 20  # who got as much of us received it in a large buffer
RELIEF_MESSAGES, RELIEF_S = 40, 0.04  # how many frees it, and how far apart
SEND_BUFFER_BYTES = 64 * 1024  # of ours
UNSENT_BYTES = 32 * 1024  # of the kernel's: what waits for the link waits here, where we see it
MAX_UNREAD_BYTES = 1 << 20  # blocks stop at SEND_BUFFER_BYTES; whoever provokes more than this and reads nothing goes

UNCHOKE, NOT_INTERESTED = 1, 3
HAVE, BITFIELD, REQUEST, PIECE, CANCEL, HAVE_ALL, HAVE_NONE, REJECT = 4, 5, 6, 7, 8, 14, 15, 16
HASH_REQUEST, HASH_REJECT = 21, 23  # BEP 52; all layers that a peer needs are in its torrent


@dataclass(slots=True, eq=False)
class DealtPackage:
    """One archive that is dealt."""

    key: str
    path: Path
    infohash_v2: bytes
    size_bytes: int
    piece_size: int
    dealer: Dealer
    connections: set[Connection] = field(default_factory=set)
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


class Host(Protocol):
    """The seeder that a connection belongs to; all in its event loop."""

    clock: Callable[[], float]
    peer_id: bytes
    packages: dict[bytes, DealtPackage]
    connections: set[Connection]

    def wants_to_send(self, connection: Connection) -> None:
        """A connection has wishes and room in its buffer."""


class Connection(asyncio.Protocol):
    """One peer."""

    def __init__(self, seeder: Host) -> None:
        self._seeder = seeder
        self._package: DealtPackage | None = None
        self._transport: asyncio.Transport
        self._buffer = bytearray()
        self._peer_id = b""
        self._has_fast = False
        self._has_spoken = False  # it told what it has, or that it has nothing
        self._is_paused = False
        self._heard_s = self._kept_alive_s = self._fed_s = seeder.clock()
        self._revealed: set[int] = set()
        self._sent: dict[int, int] = {}  # bytes of pieces that are on their way
        self._sent_bytes = self._relieved = 0
        self.wishes: deque[tuple[int, int, int]] = deque()
        self.is_waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=SEND_BUFFER_BYTES)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        self._seeder.connections.add(self)
        self._timer = asyncio.get_running_loop().call_later(HANDSHAKE_TIMEOUT_S, self._check_handshake)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._seeder.connections.discard(self)
        self.wishes.clear()
        package, self._package = self._package, None
        if package is not None:
            package.connections.discard(self)
            if package.dealer.leave(self, self._seeder.clock()):
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
            if self._transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
                raise ValueError("asks without end and reads nothing")
        except ValueError as error:
            log.debug("peer %s: %s", self._transport.get_extra_info("peername"), error)
            self.end()

    def end(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    def check(self, now_s: float) -> None:
        """Close a connection that is silent for too long; a peer that says nothing of its pieces has none."""
        self._has_spoken = True
        is_stuck = self._is_paused and now_s - self._fed_s > STUCK_S
        if self._package is not None and self.wishes and not is_stuck:
            self._package.dealer.waits(self, now_s)
        if now_s - self._heard_s > SILENCE_TIMEOUT_S:
            self.end()
        elif self._package is not None and now_s - self._kept_alive_s > KEEP_ALIVE_S:
            self._kept_alive_s = now_s
            self._transport.write(bytes(4))
        elif not self._relieved and self._sent_bytes >= RELIEF_BYTES and self.is_complete():
            self._relieve()

    def _relieve(self) -> None:
        """Send keep-alives one by one: libtorrent frees 4 to 12 MB, which it received in, by the size of messages."""
        if self._relieved < RELIEF_MESSAGES:
            self._relieved += 1
            self._transport.write(bytes(4))
            self._timer = asyncio.get_running_loop().call_later(RELIEF_S, self._relieve)

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
        self._sent_bytes += length
        self._fed_s = self._seeder.clock()
        self._count(package, piece, length)
        if not self.wishes and not self._is_paused:
            package.dealer.drained(self)
            self.deal()
        return length

    def _count(self, package: DealtPackage, piece: int, length: int) -> None:
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

    def _on_request(self, package: DealtPackage, piece: int, begin: int, length: int) -> None:
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
