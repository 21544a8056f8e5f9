"""Peers and trackers that misbehave, made of plain sockets, for tests."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
import urllib.parse
from collections.abc import Iterator

from tests.swarm_field import Published, wait_until

UNCHOKE, BITFIELD, REQUEST, PIECE = 1, 5, 6, 7


class CorruptPeer:
    """Speaks the peer protocol (BEP 3) perfectly, claims to have everything, and sends noise."""

    def __init__(self, address: str, pieces: int, infohash_v2: str) -> None:
        self._pieces = pieces
        self._infohash_v2 = bytes.fromhex(infohash_v2)[:20]
        self.blocks_sent = 0
        self._socket = socket.create_server((address, 0))
        self.address: tuple[str, int] = self._socket.getsockname()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._socket.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, EOFError):
            handshake = _read(connection, 68)
            # libtorrent learns of us by its v1 and v2 announces and may expect either; the v2 one it always takes.
            infohash = self._infohash_v2 if handshake[27] & 0x10 else handshake[28:48]
            connection.sendall(handshake[:20] + bytes(8) + infohash + b"-XX0001-corrupt-peer")
            bits = bytearray(-(-self._pieces // 8))
            for piece in range(self._pieces):
                bits[piece // 8] |= 0x80 >> piece % 8
            _send(connection, BITFIELD, bytes(bits))
            _send(connection, UNCHOKE)
            while True:
                (length,) = struct.unpack(">I", _read(connection, 4))
                message = _read(connection, length)
                if length == 13 and message[0] == REQUEST:
                    piece, begin, size = struct.unpack(">III", message[1:])
                    _send(connection, PIECE, struct.pack(">II", piece, begin) + self._block(piece, begin, size))
                    self.blocks_sent += 1

    def _block(self, piece: int, begin: int, size: int) -> bytes:
        return b"\xee" * size


class Turncoat(CorruptPeer):
    """Gives the right bytes, then noise until it is left, then the right bytes to whoever asks again."""

    def __init__(
        self, address: str, content: bytes, piece_bytes: int, infohash_v2: str, *, honest_blocks: int
    ) -> None:
        self._content = content
        self._piece_bytes = piece_bytes
        self._honest_blocks = honest_blocks
        self.was_left = False
        super().__init__(address, -(-len(content) // piece_bytes), infohash_v2)

    def _talk(self, connection: socket.socket) -> None:
        super()._talk(connection)
        self.was_left = self.was_left or self.blocks_sent > self._honest_blocks

    def _block(self, piece: int, begin: int, size: int) -> bytes:
        if self.was_left or self.blocks_sent < self._honest_blocks:
            return self._content[piece * self._piece_bytes + begin :][:size]
        return super()._block(piece, begin, size)


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def _send(connection: socket.socket, kind: int, payload: bytes = b"") -> None:
    connection.sendall(struct.pack(">IB", 1 + len(payload), kind) + payload)


def announce_at(url: str, published: Published, address: tuple[str, int]) -> None:
    """Announce a complete peer that listens at `address`, from there, as soon as the tracker knows the package."""
    host = urllib.parse.urlsplit(url)
    query = urllib.parse.urlencode(
        {
            "info_hash": bytes.fromhex(published.package.archive.infohash_v1),
            "peer_id": "-XX0001-corrupt-peer",
            "port": address[1],
            "left": 0,
        },
        quote_via=urllib.parse.quote,  # a tracker takes `+` for itself
    )

    def is_listed() -> bool:
        connection = http.client.HTTPConnection(
            host.hostname or "", host.port, timeout=10, source_address=(address[0], 0)
        )
        with contextlib.closing(connection):
            connection.request("GET", f"/announce?{query}")
            response = connection.getresponse()
            assert response.status == 200
            return b"failure reason" not in response.read()

    wait_until(is_listed)


@contextlib.contextmanager
def tracker_answering(answer: bytes, address: str, *, is_endless: bool = False) -> Iterator[str]:
    """A tracker that answers everything with the same bytes; yields its announce URL."""
    server = socket.create_server((address, 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection, contextlib.suppress(OSError):
                    connection.settimeout(5)
                    connection.recv(4096)
                    connection.sendall(answer)
                    while is_endless:
                        connection.sendall(b"x" * 65536)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://{address}:{server.getsockname()[1]}/announce"
    finally:
        server.close()
