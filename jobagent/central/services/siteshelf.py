"""The archives that a site seeder keeps, within a quota: what the site used last stays longest.

    DIRECTORY/lock                       one seeder at a time
    DIRECTORY/archives/SHA256/FILE       complete; the time of the directory is when the site last used it
    DIRECTORY/archives/SHA256/FILE.part  being fetched, or left over from an interrupted fetch

Knows nothing of swarms and catalogues.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path

from jobagent.errors import ConfigurationError, DiskFull, ScratchUnusable
from jobagent.model import Archive

_DIGEST = re.compile(r"[0-9a-f]{64}")


class SiteShelf:
    """A directory of archives.  Thread-safe as far as each archive is handled by one thread.

    Raises:
        ScratchUnusable: The directory cannot be made or locked.
        ConfigurationError: Another seeder uses it.
    """

    def __init__(self, directory: Path, quota_bytes: int) -> None:
        self.directory = directory
        self._archives = directory / "archives"
        self.quota_bytes = quota_bytes
        try:
            self._archives.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ScratchUnusable(f"cannot use {directory}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise ConfigurationError(
                f"{directory} is used by another site seeder", remedy="give each a directory of its own"
            ) from error

    def close(self) -> None:
        """Let another seeder use the directory."""
        os.close(self._lock)

    def path_of(self, archive: Archive) -> Path:
        """Where an archive is or will be."""
        return self._archives / archive.sha256 / archive.file_name

    def kept(self) -> list[str]:
        """Digests of what is there, complete or not, last used first."""
        entries = [e for e in os.scandir(self._archives) if _DIGEST.fullmatch(e.name)]
        return [e.name for e in sorted(entries, key=lambda e: e.stat().st_mtime_ns, reverse=True)]

    def used(self, digest: str) -> None:
        """Note that the site uses it now."""
        (self._archives / digest).mkdir(exist_ok=True)
        os.utime(self._archives / digest)

    def drop(self, digest: str) -> None:
        """Delete an archive; idempotent."""
        shutil.rmtree(self._archives / digest, ignore_errors=True)

    def used_bytes(self) -> int:
        """Disk space of all that is there."""
        return sum(self._bytes_of(digest) for digest in self.kept())

    def plan(self, archive: Archive, needed: Collection[str]) -> list[str]:
        """Return what must be dropped to make room for an archive: the longest unused first, nothing of `needed`.

        Raises:
            DiskFull: The quota does not hold it beside what is needed.
        """
        kept = self.kept()
        sizes = {digest: self._bytes_of(digest) for digest in kept}
        excess = sum(n for d, n in sizes.items() if d != archive.sha256) + archive.size_bytes - self.quota_bytes
        victims: list[str] = []
        for digest in reversed(kept):
            if excess <= 0:
                break
            if digest not in needed and digest != archive.sha256:
                victims.append(digest)
                excess -= sizes[digest]
        if excess > 0:
            raise DiskFull(
                f"the quota of {self.quota_bytes} bytes is {excess} bytes too small for {archive.file_name} and what "
                "else the site uses now",
                remedy="give --quota more",
            )
        return victims

    def _bytes_of(self, digest: str) -> int:
        """Allocated bytes: a fetch reserves all of its file at its start."""
        try:
            return sum(max(e.stat().st_size, 512 * e.stat().st_blocks) for e in os.scandir(self._archives / digest))
        except OSError:
            return 0  # it went meanwhile
