"""What is fuzzed: whatever reads bytes of strangers.  A target takes any bytes and raises nothing but refusals.

Each checks that what is refused is refused in one line, and where the bytes name files that nothing is outside.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import json
import os
import random
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from jobagent import bencode, entry, manifest
from jobagent.central.packaging import torrents
from jobagent.central.services import announces, tokens
from jobagent.central.services.dealer import Dealer, DealingPolicy
from jobagent.central.services.peerwire import MAX_WISHES, PROTOCOL, Connection, DealtPackage
from jobagent.central.services.tracker import Refused
from jobagent.condor.language import ads, environment, jdl, longform, submit
from jobagent.errors import JobAgentError
from jobagent.node import wire
from jobagent_archives.unpacking import TarUnpacker
from jobagent_environment import initsh, modulefile
from jobagent_environment.places import NotUnderstood, Place
from tests.packages import signed

SIGNED_BYTES, SIGNED_FILES = 100_000, 30
PIECES, INFOHASH = 20, b"i" * 20
HANDSHAKE = PROTOCOL + bytes([0] * 7 + [0x14]) + INFOHASH + b"-XX0001-somebody-new"
PLACE = Place("Tool", "1", "slc7", Path("/cvmfs/tool"))


def text_of(data: bytes) -> str:
    """Text as it comes from a file or from a job ad, where bytes that are no UTF-8 are escaped."""
    return data.decode("utf-8", "surrogateescape" if data[:1] == b"\1" else "replace")


def refuse(read: Callable[[], object], *refusals: type[Exception]) -> None:
    """Call, and let it refuse in one line."""
    try:
        read()
    except (JobAgentError, *refusals) as error:
        assert "\n" not in str(error), repr(str(error))


class Ears(asyncio.Transport):
    """The other end of a peer's connection: takes what is written and gives it to nobody."""

    def __init__(self, line: socket.socket) -> None:
        super().__init__({"socket": line})
        self.written = 0
        self.is_aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += len(data)

    def get_write_buffer_size(self) -> int:
        return self.written

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """As asyncio's."""

    def is_closing(self) -> bool:
        return self.is_aborted

    def abort(self) -> None:
        self.is_aborted = True


class Targets:
    """The targets by name; `directory` is empty and on a fast file system."""

    def __init__(self, directory: Path) -> None:
        """Targets hold an event loop, which `close` ends."""
        self.directory = directory
        self._loop = asyncio.new_event_loop()
        self._line = socket.socket()
        self.all: dict[str, Callable[[bytes], None]] = {
            "jdl": lambda data: refuse(lambda: jdl.parse(text_of(data))),
            "submit": lambda data: refuse(lambda: submit.parse(text_of(data), base_directory=directory)),
            "ad": lambda data: refuse(lambda: ads.parse(text_of(data))),
            "environment": self.environment,
            "torrent": self.torrent,
            "entry": self.entry,
            "path": lambda data: refuse(lambda: entry.parse_path(text_of(data)), entry.EntryError),
            "manifest": lambda data: refuse(lambda: manifest.decode(data), ValueError),
            "wire": lambda data: refuse(lambda: wire.decode_request(data), wire.WireError),
            "announce": self.announce,
            "token": self.token,
            "peer": self.peer,
            "notation": self.notation,
            **{f: lambda data, f=f: self.archive(data, f) for f in ("tar", "tar.zst", "tar.gz", "tar.xz")},
        }

    def close(self) -> None:
        """End the event loop."""
        self._line.close()
        self._loop.close()

    def environment(self, data: bytes) -> None:
        """The environment of a job ad, in both of HTCondor's forms."""
        refuse(lambda: environment.of_job(longform.read(data)), ValueError)
        refuse(lambda: environment.parse(text_of(data)), ValueError)
        refuse(lambda: environment.parse_v1(text_of(data)))

    def torrent(self, data: bytes) -> None:
        """Bencoding has one form only, and a torrent is safe or refused."""
        refuse(lambda: torrents.check(data))
        try:
            value = bencode.decode(data)
        except ValueError:
            return
        assert bencode.encode(value) == data  # type: ignore[arg-type]

    def entry(self, data: bytes) -> None:
        """A signed entry of any JSON."""
        try:
            raw = json.loads(data)
        except (ValueError, RecursionError):
            return
        if isinstance(raw, dict):
            custom = raw.get("custom")
            made = entry.Entry(
                str(raw.get("path")),
                raw.get("length"),  # type: ignore[arg-type]
                raw.get("sha256"),  # type: ignore[arg-type]
                custom if isinstance(custom, dict) else {},
            )
            refuse(lambda: entry.decode(made), entry.EntryError)

    def announce(self, data: bytes) -> None:
        """Queries of announces and scrapes."""
        refuse(lambda: announces.parse(data, ipaddress.ip_address("10.0.0.1")), Refused)
        refuse(lambda: announces.scraped_infohashes(data), Refused)

    def token(self, data: bytes) -> None:
        """Announce tokens, as they are and with any claims."""
        claims = base64.urlsafe_b64encode(data[:400]).decode()
        for token in (data.decode("ascii", "replace"), f"{claims}.{claims}"):
            refuse(lambda token=token: tokens.verify(token, {}, now_s=0.0))  # type: ignore[misc]

    def peer(self, data: bytes) -> None:
        """What a peer says to the seeder that deals, in pieces of any length; the first byte says of which."""

        async def talk() -> None:
            dealer = Dealer(PIECES, DealingPolicy(), random.Random(1))
            package = DealtPackage("key", Path(__file__), INFOHASH, PIECES * 16384, 16384, dealer)
            host = SimpleNamespace(
                clock=lambda: 0.0,
                peer_id=b"-JS0100-fuzzing-here",
                packages={INFOHASH: package},
                connections=set(),
                wants_to_send=lambda connection: None,
            )
            connection, ears = Connection(host), Ears(self._line)
            connection.connection_made(ears)
            step = max(1, data[0] if data else 1)
            for start in range(1, len(data), step):
                if not ears.is_aborted:
                    connection.data_received(data[start : start + step])
                while connection.can_send() and ears.written < (1 << 20):
                    connection.send_block()
            assert len(connection.wishes) <= MAX_WISHES
            connection.connection_lost(None)
            package.close()
            assert not package.connections and not host.connections

        self._loop.run_until_complete(talk())

    def notation(self, data: bytes) -> None:
        """Environments as alibuild and modules write them."""
        for module in (initsh, modulefile):
            try:
                module.changes(text_of(data), PLACE, ())
            except NotUnderstood:
                continue

    def archive(self, data: bytes, archive_format: str) -> None:
        """Unpack; whatever comes of it lies in its directory and within the signed limits."""
        archive, into = self.directory / "archive", self.directory / "into"
        archive.write_bytes(data)
        into.mkdir()
        package = signed(SIGNED_BYTES, SIGNED_FILES, archive_format)
        try:
            refuse(lambda: TarUnpacker(1).unpack(archive, package, into))
            found = [
                p for root, directories, files in os.walk(into) for p in (Path(root, n) for n in directories + files)
            ]
            assert len(found) <= SIGNED_FILES
            assert sum(p.lstat().st_size for p in found if p.is_file() and not p.is_symlink()) <= SIGNED_BYTES * 2
            assert all(p.resolve().is_relative_to(into.resolve()) for p in found if p.is_symlink())
            assert {p.name for p in self.directory.iterdir()} == {"archive", "into"}
        finally:
            shutil.rmtree(into)
