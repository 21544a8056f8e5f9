"""Input files of jobs by URL or by path."""

from __future__ import annotations

import errno
import os
import shutil
import time
import urllib.parse
from pathlib import Path

from jobagent.plugin import (
    Context,
    DiskFull,
    InputFile,
    JobError,
    PayloadNotRunnable,
    ScratchUnusable,
    SupplyError,
)
from jobagent_http.download import DownloadFailed, chunks
from jobagent_http.settings import HttpSettings

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Inputs:
    """Stages `http:`, `https:` and `file:` URLs, and plain paths relative to the job's directory.  Thread-safe."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @property
    def schemes(self) -> frozenset[str]:
        """The empty scheme is a plain path."""
        return frozenset({"http", "https", "file", ""})

    def stage(self, item: InputFile, target: Path, *, base_directory: Path, deadline: float) -> int:
        """Write `target` and return its bytes; a directory is copied with what is in it.

        Raises:
            PayloadNotRunnable: There is no such file.
            JobError: It is larger than the site allows.
            SupplyError: The server does not deliver, or not before `deadline`.
            DiskFull, ScratchUnusable: It cannot be written.
        """
        scheme = urllib.parse.urlsplit(item.url).scheme.lower()
        partial = target.with_name(f".{target.name}.part")
        try:
            if scheme in ("http", "https"):
                self._fetch(item, partial, deadline)
            else:
                _copy(_path_of(item.url, scheme, base_directory), partial, item)
            os.replace(partial, target)
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise DiskFull(f"no room for input {item.name}: {error.strerror}") from error
            raise ScratchUnusable(f"cannot stage input {item.name}: {error.strerror}") from error
        finally:
            _remove(partial)
        return _bytes_of(target)

    def _fetch(self, item: InputFile, partial: Path, deadline: float) -> None:
        settings = self._context.config.get(HttpSettings)
        try:
            with partial.open("wb") as stream:
                for position, chunk in chunks(item.url, settings, offset=0, size_bytes=None):
                    if position + len(chunk) > settings.max_input_bytes:
                        raise JobError(f"input {item.url} is larger than {settings.max_input_bytes} bytes")
                    if time.monotonic() >= deadline:
                        raise SupplyError(f"input {item.url} did not arrive in time")
                    stream.write(chunk)
        except DownloadFailed as error:
            if error.is_absent:
                raise PayloadNotRunnable(f"input {error}", remedy="check the job's input files") from error
            raise SupplyError(f"input {error}") from error


def _path_of(url: str, scheme: str, base_directory: Path) -> Path:
    path = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)) if scheme == "file" else Path(url)
    return base_directory / path


def _copy(source: Path, partial: Path, item: InputFile) -> None:
    try:
        if source.is_dir():
            shutil.copytree(source, partial, symlinks=True)
        else:
            shutil.copyfile(source, partial)
            shutil.copymode(source, partial)
    except (FileNotFoundError, PermissionError) as error:
        if error.filename is None or Path(os.fsdecode(error.filename)) == partial:
            raise
        raise PayloadNotRunnable(
            f"input {item.url} cannot be read: {error.strerror}", remedy="check the job's input files"
        ) from error


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _bytes_of(path: Path) -> int:
    if path.is_dir():
        return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    return path.stat().st_size
