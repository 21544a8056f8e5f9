"""Names of AliEn's file catalogue (`LF:/alice/…`) where that catalogue is not at hand.

A JDL that ran on the grid runs anywhere when the files that it names lie beside it: the file for a name is the one
under the job's directory with the longest common end of path, so `LF:/alice/cern.ch/user/j/jdoe/sim/run.C` is
`sim/run.C` there, or `run.C`.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from jobagent.plugin import DiskFull, InputFile, PayloadNotRunnable, ScratchUnusable

PREFIX = "LF:"
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


def is_alien_name(url: str) -> bool:
    """Whether `url` is a name of AliEn's catalogue."""
    return url[: len(PREFIX)].upper() == PREFIX


def beside(url: str, is_file: Callable[[str], bool]) -> str | None:
    """Return the relative path of the file that stands for `url`, by `is_file` of a relative path; or `None`."""
    return next((path for path in _ends(url) if is_file(path)), None)


def _ends(url: str) -> Iterator[str]:
    parts = [part for part in url[len(PREFIX) :].split("/") if part]
    if ".." in parts or "." in parts:
        return
    for start in range(len(parts)):
        yield "/".join(parts[start:])


class FilesBesideTheJob:
    """Stages `LF:` inputs from the job's own directory.  Thread-safe."""

    @property
    def schemes(self) -> frozenset[str]:
        """The scheme that `LF:/…` is, read as a URL."""
        return frozenset({"lf"})

    def stage(self, item: InputFile, target: Path, *, base_directory: Path, deadline: float) -> int:
        """Copy the file and return its bytes.

        Raises:
            PayloadNotRunnable: There is none beside the job.
            DiskFull, ScratchUnusable: It cannot be written.
        """
        found = beside(item.url, lambda path: (base_directory / path).is_file())
        if found is None:
            raise PayloadNotRunnable(
                f"{item.url} is a name of AliEn's catalogue, and no file of that name is in {base_directory}",
                remedy="copy it there, or name it as torrent:// or http:// URL",
            )
        partial = target.with_name(f".{target.name}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(base_directory / found, partial)
            os.replace(partial, target)
            return target.stat().st_size
        except OSError as error:
            partial.unlink(missing_ok=True)
            if error.errno in _NO_ROOM:
                raise DiskFull(f"no room for input {item.name}: {error.strerror}") from error
            raise ScratchUnusable(f"cannot stage input {item.name}: {error.strerror}") from error
