"""One download from one server: resumed, bounded, never slower than allowed.  What the bytes are worth others say."""

from __future__ import annotations

import re
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jobagent_http.settings import HttpSettings

if TYPE_CHECKING:
    import requests

CHUNK_BYTES = 256 * 1024
MAX_REDIRECTS = 5  # federations redirect to a cache near by
_ERRNO = re.compile(r"^\[Errno -?\d+\] ")
SCHEMES = frozenset({"http", "https", "file"})


class DownloadFailed(Exception):
    """This server cannot give the file now; one line that says why.

    `is_absent`: it says that there is no such file.  `is_hopeless`: asking it again is of no use.
    """

    def __init__(self, message: str, *, is_absent: bool = False, is_hopeless: bool = False) -> None:
        super().__init__(message)
        self.is_absent = is_absent
        self.is_hopeless = is_hopeless


@dataclass(slots=True)
class RateGuard:
    """Raises DownloadFailed when less than the minimum rate came over a window.  Times are monotonic seconds."""

    url: str
    minimum_rate_bytes: int
    window_s: float
    start_s: float
    received: int = 0

    def take(self, count: int, now_s: float) -> None:
        """Note `count` more bytes."""
        self.received += count
        elapsed = now_s - self.start_s
        if elapsed < self.window_s:
            return
        rate = self.received / elapsed
        if rate < self.minimum_rate_bytes:
            slow = f"{self.url}: {rate:.0f} bytes/s, the minimum is {self.minimum_rate_bytes}"
            raise DownloadFailed(slow, is_hopeless=True)
        self.start_s, self.received = now_s, 0


def chunks(
    url: str,
    settings: HttpSettings,
    *,
    offset: int,
    size_bytes: int | None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[tuple[int, bytes]]:
    """Yield (position, bytes) of the file at `url`, from `offset` where the server allows it, else from 0.

    With `size_bytes` a file of any other length is refused before its content is yielded: an error page that comes
    with status 200 is no archive.

    Raises:
        DownloadFailed: For every reason.
    """
    scheme = urllib.parse.urlsplit(url).scheme.lower()
    if scheme == "file":
        source = _local(url, offset, size_bytes)
    elif scheme in SCHEMES:
        source = _remote(url, settings, offset, size_bytes)
    else:
        raise DownloadFailed(f"{url}: scheme {scheme!r} is unknown")
    guard = RateGuard(url, settings.minimum_rate_bytes, settings.rate_window_s, clock())
    end = offset
    for position, chunk in source:
        end = position + len(chunk)
        if size_bytes is not None and end > size_bytes:
            raise DownloadFailed(f"{url}: the server sends more than {size_bytes} bytes", is_hopeless=True)
        guard.take(len(chunk), clock())
        yield position, chunk
    if size_bytes is not None and end != size_bytes:
        raise DownloadFailed(f"{url}: the connection ended after {end} of {size_bytes} bytes")


def _local(url: str, offset: int, size_bytes: int | None) -> Iterator[tuple[int, bytes]]:
    path = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path))
    try:
        with path.open("rb") as stream:
            size = path.stat().st_size
            if size_bytes is not None and size != size_bytes:
                raise DownloadFailed(f"{path} has {size} bytes, expected are {size_bytes}")
            stream.seek(offset)
            while chunk := stream.read(CHUNK_BYTES):
                yield offset, chunk
                offset += len(chunk)
    except OSError as error:
        absent = isinstance(error, FileNotFoundError | NotADirectoryError)
        raise DownloadFailed(f"cannot read {path}: {error.strerror}", is_absent=absent) from error


def _remote(url: str, settings: HttpSettings, offset: int, size_bytes: int | None) -> Iterator[tuple[int, bytes]]:
    import requests
    import urllib3

    headers = {"Accept-Encoding": "identity", "User-Agent": "jobagent"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    ca = settings.ca_file
    try:
        with requests.Session() as session:
            session.max_redirects = MAX_REDIRECTS
            verify: bool | str = str(ca) if ca != Path() else True
            with session.get(
                url, headers=headers, stream=True, timeout=(settings.timeout_s, settings.timeout_s), verify=verify
            ) as response:
                position = _checked_start(url, response, offset, size_bytes)
                while chunk := response.raw.read1(CHUNK_BYTES, decode_content=False):
                    yield position, chunk
                    position += len(chunk)
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        raise DownloadFailed(f"{url}: {_reason(error)}") from error


def _checked_start(url: str, response: requests.Response, offset: int, size_bytes: int | None) -> int:
    """Return the position of the first byte that will come; raises DownloadFailed where it is not the file."""
    if response.status_code not in (200, 206):
        is_absent = response.status_code in (404, 410)
        raise DownloadFailed(f"{url}: HTTP status {response.status_code} {response.reason}", is_absent=is_absent)
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise DownloadFailed(f"{url}: the server changes the content")
    start = 0
    if response.status_code == 206:
        expected = f"bytes {offset}-"
        if not response.headers.get("Content-Range", "").startswith(expected):
            raise DownloadFailed(f"{url}: the server answers with another range than asked for")
        start = offset
    length = response.headers.get("Content-Length")
    if size_bytes is not None and length is not None and length != str(size_bytes - start):
        kind = response.headers.get("Content-Type", "unknown")
        raise DownloadFailed(f"{url}: {length} bytes of type {kind}, expected are {size_bytes - start}")
    return start


def _reason(error: BaseException) -> str:
    """The innermost cause in one line: requests wraps urllib3 wraps OSError."""
    cause: BaseException = error
    while True:
        inner = getattr(cause, "reason", None) or (cause.args[0] if cause.args else None)
        if not isinstance(inner, BaseException):
            break
        cause = inner
    if isinstance(cause, OSError) and cause.strerror:
        return str(cause.strerror)
    return _ERRNO.sub("", str(cause).rpartition(": ")[2]) or type(cause).__name__
