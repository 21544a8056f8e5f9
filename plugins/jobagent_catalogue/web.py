"""Bounded downloads of small files over http, https and file URLs.

Every answer is hostile: size and time are limited, redirects are refused, nothing is decompressed.  What the bytes
are worth is for others to say.  Imports what HTTP needs when something is fetched: a warm agent fetches nothing.
"""

from __future__ import annotations

import os
import threading
import time
import urllib.parse
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, NamedTuple

from jobagent_catalogue.settings import CatalogueSettings

if TYPE_CHECKING:
    import urllib3

CHUNK_BYTES = 64 * 1024


class WebError(Exception):
    """A file cannot be had; `status` is the HTTP status, 404 also for a missing local file, else 0."""

    def __init__(self, message: str, *, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class TooLong(WebError):
    """The server sent more than was asked for."""


class TooSlow(WebError):
    """The server is slower than the site allows."""


class ClockReading(NamedTuple):
    """What a server said the time is, when this node's clock said `local_s` (both seconds since the epoch)."""

    server_s: float
    local_s: float

    @property
    def behind_s(self) -> float:
        """How far this node's clock is behind the server's."""
        return self.server_s - self.local_s


class Web:
    """Downloads with the limits of the settings.  Thread-safe; connections are kept."""

    def __init__(self, settings: CatalogueSettings, *, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._pools: dict[str, urllib3.PoolManager] = {}
        self.clock_reading: ClockReading | None = None

    def fetch(self, url: str, *, max_bytes: int) -> bytes:
        """Return the whole file; raises WebError."""
        parts: list[bytes] = []
        for chunk in self.chunks(url, max_bytes=max_bytes):
            parts.append(chunk)
        return b"".join(parts)

    def chunks(self, url: str, *, max_bytes: int) -> Iterator[bytes]:
        """Yield the file as it comes; raises WebError as soon as it is too long or too slow."""
        received = 0
        source = self._file(url) if url.startswith("file:") else self._http(url, max_bytes)
        try:
            for chunk in source:
                received += len(chunk)
                if received > max_bytes:
                    raise TooLong(f"{url} is longer than the {max_bytes} bytes that were expected")
                yield chunk
        finally:
            source.close()  # the connection, now and not when the garbage is collected

    def _file(self, url: str) -> Generator[bytes, None, None]:
        path = urllib.parse.unquote(urllib.parse.urlsplit(url).path)
        try:
            with open(path, "rb") as stream:
                while chunk := stream.read(CHUNK_BYTES):
                    yield chunk
        except (FileNotFoundError, NotADirectoryError) as error:
            raise WebError(f"{path} is not there", status=404) from error
        except OSError as error:
            raise WebError(f"cannot read {path}: {error.strerror}") from error

    def _http(self, url: str, max_bytes: int) -> Generator[bytes, None, None]:
        import urllib3

        start = time.monotonic()
        try:
            response = self._request(url)
            try:
                self._check(url, response, max_bytes)
                received = 0
                while chunk := response.read1(CHUNK_BYTES):
                    received += len(chunk)
                    self._check_rate(url, received, time.monotonic() - start)
                    yield chunk
            except BaseException:
                response.close()
                raise
            response.release_conn()
        except urllib3.exceptions.NewConnectionError as error:  # although urllib3 takes it for a time-out
            raise WebError(f"{url}: {_reason(error)}") from error
        except urllib3.exceptions.TimeoutError as error:
            raise TooSlow(f"{url}: no answer within {self._settings.timeout_s:g} s") from error
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise WebError(f"{url}: {_reason(error)}") from error

    def _request(self, url: str) -> urllib3.BaseHTTPResponse:
        """Ask once more where the server has closed the connection that was kept; nothing else is repeated."""
        import urllib3

        for is_last in (False, True):
            try:
                return self._pool(url).request(
                    "GET",
                    url,
                    headers={"Accept-Encoding": "identity"},
                    preload_content=False,
                    decode_content=False,
                    redirect=False,
                    retries=False,
                )
            except urllib3.exceptions.ProtocolError:
                if is_last:
                    raise
        raise AssertionError("unreachable")

    def _check(self, url: str, response: urllib3.BaseHTTPResponse, max_bytes: int) -> None:
        self._read_clock(response)
        if 300 <= response.status < 400:
            raise WebError(f"{url}: the server redirects elsewhere, which is not followed", status=response.status)
        if response.status != 200:
            raise WebError(f"{url}: HTTP status {response.status}", status=response.status)
        length = response.headers.get("Content-Length", "")
        if length.isdecimal() and int(length) > max_bytes:
            raise TooLong(f"{url} is {length[:20]} bytes long, at most {max_bytes} were expected")

    def _check_rate(self, url: str, received: int, elapsed_s: float) -> None:
        if elapsed_s > self._settings.timeout_s and received < self._settings.min_rate_bytes_s * elapsed_s:
            raise TooSlow(f"{url}: {received} bytes in {elapsed_s:.0f} s is too slow")

    def _read_clock(self, response: urllib3.BaseHTTPResponse) -> None:
        import email.utils

        try:
            date = email.utils.parsedate_to_datetime(response.headers.get("Date", ""))
            age_s = float(response.headers.get("Age", "0"))  # a proxy says how long ago that was
            self.clock_reading = ClockReading(date.timestamp() + age_s, self._clock())
        except (ValueError, TypeError, OverflowError):
            return  # no date, or none that can be read: nothing to compare with

    def _pool(self, url: str) -> urllib3.PoolManager:
        import urllib3

        proxy = self._proxy_for(url)
        with self._lock:
            if proxy not in self._pools:
                timeout = urllib3.Timeout(connect=self._settings.timeout_s, read=self._settings.timeout_s)
                if proxy:
                    self._pools[proxy] = urllib3.ProxyManager(proxy, timeout=timeout)
                else:
                    self._pools[proxy] = urllib3.PoolManager(timeout=timeout)
            return self._pools[proxy]

    def _proxy_for(self, url: str) -> str:
        import urllib.request

        if self._settings.proxy:
            return self._settings.proxy
        parts = urllib.parse.urlsplit(url)
        if not os.environ.keys() & {"http_proxy", "https_proxy", "all_proxy", "HTTPS_PROXY", "ALL_PROXY"}:
            return ""
        if urllib.request.proxy_bypass(parts.hostname or ""):
            return ""
        proxies = urllib.request.getproxies()
        return proxies.get(parts.scheme) or proxies.get("all") or ""


def _reason(error: Exception) -> str:
    cause = getattr(error, "reason", None) or error
    return str(cause).rpartition("): ")[2] or type(cause).__name__  # urllib3 puts the object before the reason
