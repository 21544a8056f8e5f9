"""A real signed catalogue on a real web server on loopback, and the things an attacker may do to either."""

from __future__ import annotations

import atexit
import functools
import hashlib
import http.server
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuf.ngclient._internal import trusted_metadata_set

from jobagent.central.catalogue.keys import KeyStore
from jobagent.central.catalogue.repository import Draft, Repository, Validity
from jobagent.central.packaging import torrents
from jobagent.events import Event, Events
from jobagent.model import Archive, Blob, Package, PackageId, Tree
from jobagent_catalogue.client import SignedCatalogue
from jobagent_catalogue.settings import CatalogueSettings

VALIDITY = Validity()

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


def no_passphrase(name: str) -> bytes | None:
    return None


def blob_of(content: bytes) -> Blob:
    return Blob(hashlib.sha256(content).hexdigest(), len(content))


def entry_for(name: str, version: str = "1", *, namespace: str = "alice", **fields: Any) -> Package:
    """A package whose files nobody needs."""
    archive = Archive(f"{name}-{version}.tar.zst", "tar.zst", "a" * 64, 10, "b" * 40, "c" * 64)
    tree = Tree(Blob("d" * 64, 9), 50, 2)
    return Package(PackageId(namespace, name, version), "Linux-x86_64", archive, tree, 1_700_000_000, **fields)


def draft(directory: Path, name: str, version: str = "1", *, namespace: str = "alice", **fields: Any) -> Draft:
    """A package with all its files."""
    archive = directory / f"{name}-{version}.tar.zst"
    archive.write_bytes(f"archive of {namespace} {name} {version}".encode() * 50)
    torrent = torrents.create(archive, archive.name)
    objects = (f"manifest of {name}".encode(), f"sbom of {name}".encode())
    described = Archive(
        archive.name,
        "tar.zst",
        hashlib.sha256(archive.read_bytes()).hexdigest(),
        archive.stat().st_size,
        torrent.infohash_v1,
        torrent.infohash_v2,
    )
    package = Package(
        PackageId(namespace, name, version),
        "Linux-x86_64",
        described,
        Tree(blob_of(objects[0]), 50, 2),
        1_700_000_000,
        provenance=blob_of(objects[1]),
        **fields,
    )
    return Draft(package, archive, torrent.data, objects)


@dataclass
class Server:
    """A web server of one directory; `answers` replace what it says, by path, as an attacker would."""

    directory: Path
    answers: dict[str, bytes | Answer] = field(default_factory=dict)
    clock: Callable[[], float] = time.time
    headers: dict[str, str] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    url: str = ""
    _server: http.server.ThreadingHTTPServer | None = None

    def start(self) -> None:
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, owner: Server, *args: Any) -> None:
        self.owner = owner
        super().__init__(*args)

    def do_GET(self) -> None:
        path = self.path.lstrip("/").partition("?")[0]
        self.owner.requests.append(path)
        answer = self.owner.answers.get(path)
        if callable(answer):
            answer(self)
            return
        file = self.owner.directory / path
        if answer is None and not file.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = answer if answer is not None else file.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def end_headers(self) -> None:
        for name, value in self.owner.headers.items():
            self.send_header(name, value)
        super().end_headers()

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string(int(self.owner.clock()) if timestamp is None else timestamp)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def make_catalogue(directory: Path, validity: Validity = VALIDITY, clock: Callable[[], float] = time.time) -> None:
    """Make keys and a catalogue of the VOs alice and bob."""
    keys = KeyStore(directory / "keys", passphrase=no_passphrase)
    repository, _ = Repository.create(directory / "catalogue", keys, validity=validity, clock=clock)
    for vo in ("alice", "bob"):
        repository.add_vo(vo, [keys.new(f"{vo}-1").key])


@functools.cache
def _template() -> Path:
    """One fresh catalogue a test process: each test works on a copy, which takes no fsync."""
    made = Path(tempfile.mkdtemp(prefix="jobagent-catalogue-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    make_catalogue(made)
    return made


class Field:
    """A catalogue of the VOs alice and bob, its keys, its server, and clients of it."""

    def __init__(self, directory: Path, *, validity: Validity = VALIDITY, clock: Callable[[], float] = time.time):
        self.base = directory
        if validity is VALIDITY and clock is time.time:
            shutil.copytree(_template(), directory, dirs_exist_ok=True)
        else:
            make_catalogue(directory, validity, clock)
        self.keys = KeyStore(directory / "keys", passphrase=no_passphrase)
        self.catalogue = directory / "catalogue"
        self.repository = Repository(self.catalogue, self.keys, validity=validity, clock=clock)
        self.root = directory / "root.json"
        self.root.write_bytes(self.repository.root_bytes())
        self.server = Server(self.catalogue)
        self.server.start()
        self.events: list[Event] = []

    def metadata(self, name: str) -> bytes:
        return (self.catalogue / "metadata" / name).read_bytes()

    def client(
        self,
        *,
        state: str = "state",
        clock: Callable[[], float] = time.time,
        mirrors: tuple[str, ...] = (),
        **settings: Any,
    ) -> SignedCatalogue:
        """A client; those of one `state` share what they verified, as agents of one node do."""
        events = Events()
        events.subscribe(self.events.append)
        values: dict[str, Any] = {"refresh_interval_s": 0.0, "timeout_s": 5.0, **settings}
        chosen = CatalogueSettings(urls=mirrors or (self.server.url,), root=self.root, **values)
        return SignedCatalogue(chosen, self.base / state, events, clock=clock)

    def warnings(self) -> list[str]:
        return [str(e.fields["message"]) for e in self.events if e.name == "warning"]


@contextmanager
def field_in(directory: Path, **options: Any) -> Iterator[Field]:
    made = Field(directory, **options)
    try:
        yield made
    finally:
        made.server.stop()


@contextmanager
def tuf_time(now_s: float) -> Iterator[None]:
    """Let TUF's client believe that it is `now_s`: the one thing that is mocked here is time."""

    class Then(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime.fromtimestamp(now_s, tz or UTC)

    original = trusted_metadata_set.datetime
    patched = type("datetime_module", (), {"datetime": Then, "timezone": original.timezone})
    trusted_metadata_set.datetime = patched  # type: ignore[assignment]
    try:
        yield
    finally:
        trusted_metadata_set.datetime = original
