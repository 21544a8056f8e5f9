"""Archives and inputs from web servers that behave, and from those that do not."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from jobagent.config import Config
from jobagent.contracts import Context, Order
from jobagent.errors import (
    ConfigurationError,
    DigestMismatch,
    DiskFull,
    JobError,
    PayloadNotRunnable,
    ScratchUnusable,
    SupplyError,
)
from jobagent.events import Events
from jobagent.model import InputFile, Traffic
from jobagent_http.inputs import Inputs
from jobagent_http.settings import HttpSettings
from jobagent_http.transport import Http
from tests.swarm_field import publish

Answer = Callable[[BaseHTTPRequestHandler], None]
SIZE = 1_000_000


@contextlib.contextmanager
def server(answer: Answer) -> Iterator[str]:
    """A web server that answers every GET with `answer`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with contextlib.suppress(ConnectionError):
                answer(self)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}/archive"
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()


def reply(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in (
        {"Content-Length": str(len(body))} | {k.replace("_", "-"): v for k, v in headers.items()}
    ).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


class Good:
    """A server that resumes; notes the ranges it was asked for."""

    def __init__(self, content: bytes, *, breaks_after: int = 0) -> None:
        self.content = content
        self.breaks_after = breaks_after
        self.ranges: list[str] = []

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range", "")
        self.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        body = self.content[start:]
        handler.send_response(206 if asked else 200)
        handler.send_header("Content-Length", str(len(body)))
        if asked:
            handler.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        handler.end_headers()
        if self.breaks_after:
            body, self.breaks_after = body[: self.breaks_after], 0
        handler.wfile.write(body)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


class World:
    """One published archive and a directory to fetch into."""

    def __init__(self, directory: Path, **settings: object) -> None:
        self.published = publish(directory, size_bytes=SIZE)
        self.content = self.published.path.read_bytes()
        self.target = directory / "fetched"
        self.directory = directory

    def http(self, **settings: object) -> Http:
        return Http(context(self.directory, **settings))

    def order(self, *urls: str, timeout_s: float = 20.0) -> Order:
        return Order(self.published.package, None, urls, self.target, time.monotonic() + timeout_s)

    def is_complete(self) -> bool:
        return self.target.read_bytes() == self.content


def context(directory: Path, **settings: object) -> Context:
    config = Config({"http": settings})
    config.declare("http", HttpSettings)
    return Context(config, directory, Events(), "Linux-x86_64")


def test_archive_is_fetched_and_accounted_as_web_traffic(world: World) -> None:
    with server(Good(world.content)) as url:
        seen: list[int] = []
        order = world.order(url)
        order.progress = seen.append
        assert world.http().can_fetch(order)
        assert world.http().fetch(order) == Traffic(web_bytes=SIZE)
    assert world.is_complete() and seen[-1] == SIZE


def test_archive_is_fetched_from_a_file_url(world: World) -> None:
    assert world.http().fetch(world.order(world.published.path.as_uri())) == Traffic(web_bytes=SIZE)
    assert world.is_complete()


def test_partial_file_is_resumed_by_range(world: World) -> None:
    world.target.write_bytes(world.content[:400_000])
    good = Good(world.content)
    with server(good) as url:
        assert world.http().fetch(world.order(url)) == Traffic(web_bytes=SIZE - 400_000)
    assert world.is_complete() and good.ranges == ["bytes=400000-"]


def test_server_that_cannot_resume_sends_all_again(world: World) -> None:
    world.target.write_bytes(b"x" * 400_000)
    with server(lambda h: reply(h, world.content)) as url:
        assert world.http().fetch(world.order(url)) == Traffic(web_bytes=SIZE)
    assert world.is_complete()


def test_connection_that_breaks_is_taken_up_where_it_broke(world: World) -> None:
    good = Good(world.content, breaks_after=300_000)
    with server(good) as url:
        world.http().fetch(world.order(url))
    assert world.is_complete() and good.ranges == ["", "bytes=300000-"]


def test_next_mirror_resumes_what_the_first_began(world: World) -> None:
    def breaking(handler: BaseHTTPRequestHandler) -> None:
        if handler.headers.get("Range"):
            reply(handler, b"gone", 503)
        else:
            Good(world.content, breaks_after=300_000)(handler)

    good = Good(world.content)
    with server(breaking) as first, server(good) as second:
        world.http().fetch(world.order(first, second))
    assert world.is_complete() and good.ranges == ["bytes=300000-"]


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(1000):
        handler.wfile.write(b"x" * 10_000)


HOSTILE: dict[str, tuple[Answer, str]] = {
    "an error page with status 200": (
        lambda h: reply(h, b"<html>login</html>", Content_Type="text/html"),
        "18 bytes of type text/html, expected are 1000000",
    ),
    "a status of absence": (lambda h: reply(h, b"no", 404), "HTTP status 404"),
    "more than was signed": (endless, "more than 1000000 bytes"),
    "compressed content": (lambda h: reply(h, b"x" * SIZE, Content_Encoding="gzip"), "changes the content"),
    "redirects without end": (lambda h: reply(h, b"", 302, Location="/archive"), "redirects"),
    "no HTTP at all": (lambda h: h.wfile.write(b"\x00\xff" * 100) and None, "127.0.0.1"),
}


@pytest.mark.acceptance(11)
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_mirror_is_left_for_the_next(world: World, case: str) -> None:
    answer, _ = HOSTILE[case]
    with server(answer) as bad, server(Good(world.content)) as good:
        world.http().fetch(world.order(bad, good))
    assert world.is_complete()


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_mirror_alone_is_an_error_with_its_reason(world: World, case: str) -> None:
    answer, reason = HOSTILE[case]
    with server(answer) as bad, pytest.raises(SupplyError, match=reason):
        world.http().fetch(world.order(bad))


def test_wrong_data_of_the_right_length_is_not_kept(world: World) -> None:
    with server(lambda h: reply(h, b"x" * SIZE)) as bad:
        with pytest.raises(DigestMismatch, match="not what was signed"):
            world.http().fetch(world.order(bad))
        assert world.target.stat().st_size == 0
        with server(Good(world.content)) as good:
            world.http().fetch(world.order(bad, good))
    assert world.is_complete()


@pytest.mark.acceptance(13)
def test_slow_drip_is_left_for_the_next_mirror(world: World) -> None:
    enough = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(SIZE))
        handler.end_headers()
        while not enough.wait(0.05):
            handler.wfile.write(b"x")

    http = world.http(minimum_rate_bytes=10_000, rate_window_s=0.5)
    with server(drip) as slow, server(lambda h: reply(h, world.content)) as good:
        start = time.monotonic()
        http.fetch(world.order(slow, good))
        assert time.monotonic() - start < 5
        world.target.unlink()
        with pytest.raises(SupplyError, match="the minimum is 10000"):
            http.fetch(world.order(slow))
        enough.set()


def test_silent_server_times_out(world: World) -> None:
    enough = threading.Event()
    with server(lambda h: enough.wait(20) and None) as silent:
        with pytest.raises(SupplyError, match="timed out"):
            world.http(timeout_s=0.3).fetch(world.order(silent))
        enough.set()


def test_nobody_listening_is_one_line(world: World) -> None:
    with pytest.raises(SupplyError, match=r"127\.0\.0\.1:9/a: Connection refused") as raised:
        world.http().fetch(world.order("http://127.0.0.1:9/a"))
    assert "\n" not in str(raised.value) and "0x" not in str(raised.value)


def test_cancelled_or_late_download_stops_and_keeps_what_came(world: World) -> None:
    with server(Good(world.content)) as url:
        order = world.order(url)
        order.cancelled.set()
        with pytest.raises(SupplyError, match="cancelled"):
            world.http().fetch(order)
        assert 0 < world.target.stat().st_size < SIZE
        with pytest.raises(SupplyError, match="in time"):
            world.http().fetch(world.order(url, timeout_s=0.0))
        world.http().fetch(world.order(url))
    assert world.is_complete()


def test_disk_without_room_is_found_before_the_download(world: World) -> None:
    huge = dataclasses.replace(world.published.package.archive, size_bytes=1 << 60)
    order = world.order("http://127.0.0.1:9/a")
    order.package = dataclasses.replace(order.package, archive=huge)
    with pytest.raises(DiskFull, match=r"need \d+ bytes for fetched, have \d+"):
        world.http().fetch(order)
    assert not world.target.exists()


def test_target_that_cannot_be_written_is_a_site_error(world: World) -> None:
    world.target = world.directory / "absent" / "fetched"
    with pytest.raises(ScratchUnusable, match="No such file"):
        world.http().fetch(world.order("http://127.0.0.1:9/a"))


def test_symlink_as_target_is_not_followed(world: World) -> None:
    world.target.symlink_to(world.directory / "victim")
    with pytest.raises(ScratchUnusable):
        world.http().fetch(world.order("http://127.0.0.1:9/a"))
    assert not (world.directory / "victim").exists()


def test_other_schemes_are_left_to_others(world: World) -> None:
    assert not world.http().can_fetch(world.order("root://eos/archive", "gopher://x/"))


def stage(directory: Path, url: str, **settings: object) -> Path:
    target = directory / "staged"
    item = InputFile(url, "staged")
    count = Inputs(context(directory, **settings)).stage(
        item, target, base_directory=directory, deadline=time.monotonic() + 10
    )
    if target.is_file():
        assert count == target.stat().st_size
    return target


def test_input_is_staged_by_url_path_and_file_url(tmp_path: Path) -> None:
    source = tmp_path / "a file"
    source.write_bytes(b"content")
    source.chmod(0o755)
    with server(lambda h: reply(h, b"content")) as url:
        for address in (url, "a file", str(source), source.as_uri()):
            assert stage(tmp_path, address).read_bytes() == b"content"
    assert stage(tmp_path, "a file").stat().st_mode & 0o777 == 0o755


def test_input_directory_is_copied_with_its_content(tmp_path: Path) -> None:
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "deep" / "file").write_text("x")
    assert (stage(tmp_path, "data") / "deep" / "file").read_text() == "x"


def test_absent_input_is_the_users_error(tmp_path: Path) -> None:
    with server(lambda h: reply(h, b"", 404)) as url:
        for address in (url, "absent", "file:///absent"):
            with pytest.raises(PayloadNotRunnable, match=r"absent|404"):
                stage(tmp_path, address)
    assert list(tmp_path.iterdir()) == []


def test_unreachable_server_of_an_input_is_retried_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(SupplyError, match="Connection refused"):
        stage(tmp_path, "http://127.0.0.1:9/x")


def test_input_that_is_too_large_is_refused(tmp_path: Path) -> None:
    with server(lambda h: reply(h, b"x" * 1000)) as url, pytest.raises(JobError, match="larger than 500 bytes"):
        stage(tmp_path, url, max_input_bytes=500)
    assert list(tmp_path.iterdir()) == []


def test_content_is_what_the_server_has(tmp_path: Path) -> None:
    content = b"".join(hashlib.sha256(bytes([i])).digest() * 4000 for i in range(8))
    with server(lambda h: reply(h, content)) as url:
        assert stage(tmp_path, url).read_bytes() == content


def test_pfn_of_a_federation_is_fetched_through_its_gateway(tmp_path: Path) -> None:
    published = publish(tmp_path, size_bytes=SIZE)
    asked: list[str] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        reply(handler, published.path.read_bytes())

    with server(answer) as url:
        gateway = url.removesuffix("/archive")
        config = Config({"http": {"gateways": [f"osdf={gateway}/osdf", f"root={gateway}"]}})
        config.declare("http", HttpSettings)
        transport = Http(Context(config, tmp_path, Events(), ""))
        for pfn in ("osdf:///vo/a b.tar.zst", "root://host.example.org//eos/vo/a.tar.zst"):
            target = tmp_path / "fetched"
            order = Order(published.package, None, (pfn,), target, time.monotonic() + 20)
            assert transport.can_fetch(order)
            assert transport.fetch(order) == Traffic(web_bytes=SIZE)
            target.unlink()
        assert asked == ["/osdf/vo/a%20b.tar.zst", "/eos/vo/a.tar.zst"]
        unknown = Order(published.package, None, ("gsiftp://host/a",), tmp_path / "x", time.monotonic() + 20)
        assert not transport.can_fetch(unknown)


@pytest.mark.parametrize("entry", ["osdf", "osdf=ftp://x", "https=https://x", "=https://x"])
def test_bad_gateway_is_a_clear_error(tmp_path: Path, entry: str) -> None:
    config = Config({"http": {"gateways": [entry]}})
    config.declare("http", HttpSettings)
    published = publish(tmp_path, size_bytes=1000)
    order = Order(published.package, None, ("osdf:///a",), tmp_path / "x", time.monotonic() + 20)
    with pytest.raises(ConfigurationError, match="SCHEME=URL"):
        Http(Context(config, tmp_path, Events(), "")).can_fetch(order)
