"""The metadata files of a catalogue directory: reading, writing, waiting, locking.

    metadata/N.<role>.json   signed role metadata; once written a file never changes
    metadata/timestamp.json  the one file that is replaced: it is what commits a new state
    pending/<role>.json      role metadata that waits for signatures
    .lock                    held by whoever changes anything

Knows files and versions, not keys and rules.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tuf.api.metadata import Metadata
from tuf.api.serialization import DeserializationError

from jobagent import durable
from jobagent.errors import ManagerError

LOCK_TIMEOUT_S = 60.0
LOCK_POLL_S = 0.05
KEPT_VERSIONS = 16  # older ones may go: no reader is that slow
_FILE = re.compile(r"([1-9][0-9]{0,9})\.([A-Za-z0-9_.+~-]+)\.json")

AnyMetadata = Metadata[Any]


class Shelf:
    """Metadata files of one catalogue directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._metadata = directory / "metadata"
        self._pending = directory / "pending"

    def make(self) -> None:
        """Make the directories of an empty catalogue."""
        for name in ("metadata", "pending", "archives", "torrents", "objects"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the catalogue against other publishers; raises ManagerError after LOCK_TIMEOUT_S."""
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        try:
            descriptor = os.open(self.directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ManagerError(f"cannot lock catalogue {self.directory}: {error.strerror}") from error
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError as error:
                    if error.errno not in {errno.EWOULDBLOCK, errno.EINTR}:
                        raise
                if time.monotonic() > deadline:
                    raise ManagerError(f"catalogue {self.directory} is held by another publisher for over a minute")
                time.sleep(LOCK_POLL_S)
            yield
        finally:
            os.close(descriptor)

    def versions(self) -> Mapping[str, list[int]]:
        """Return the versions of each role on disk, newest first."""
        found: dict[str, list[int]] = {}
        try:
            names = os.listdir(self._metadata)
        except OSError as error:
            raise ManagerError(
                f"{self.directory} is no catalogue: {error.strerror}", remedy="jobagent catalogue init DIR"
            ) from error
        for name in names:
            if match := _FILE.fullmatch(name):
                found.setdefault(match[2], []).append(int(match[1]))
        for versions in found.values():
            versions.sort(reverse=True)
        return found

    def path(self, role: str, version: int) -> Path:
        """Return where a version of a role lies."""
        return self._metadata / f"{version}.{role}.json"

    @property
    def timestamp_path(self) -> Path:
        """Return where the timestamp lies."""
        return self._metadata / "timestamp.json"

    def read(self, path: Path) -> AnyMetadata:
        """Parse a metadata file; raises ManagerError where it is not one."""
        try:
            return Metadata.from_bytes(path.read_bytes())
        except OSError as error:
            raise ManagerError(f"cannot read {path}: {error.strerror}") from error
        except (DeserializationError, ValueError) as error:
            raise ManagerError(f"{path} is no metadata file: {error}") from error

    def write(self, role: str, metadata: AnyMetadata, *, is_unpublished: bool = False) -> None:
        """Put a signed version of a role there; a version that is there with another content is an error.

        `is_unpublished` says that no reader knows the version yet: a crash before the commit left the other content.
        """
        path, data = self.path(role, metadata.signed.version), metadata.to_bytes()
        if not is_unpublished and path.exists() and path.read_bytes() != data:
            raise ManagerError(f"{path} exists with another content", remedy="remove it if nobody published it")
        durable.write(path, data)

    def write_timestamp(self, metadata: AnyMetadata) -> None:
        """Commit: readers see the new state from here on."""
        durable.write(self.timestamp_path, metadata.to_bytes())

    def pending(self) -> Mapping[str, AnyMetadata]:
        """Return what waits for signatures, by role."""
        paths = sorted(self._pending.glob("*.json")) if self._pending.is_dir() else []
        return {path.name.removesuffix(".json"): self.read(path) for path in paths}

    def put_pending(self, role: str, metadata: AnyMetadata) -> None:
        """Let a role wait, replacing what waited under that name."""
        self._pending.mkdir(exist_ok=True)
        durable.write(self._pending / f"{role}.json", metadata.to_bytes())

    def drop_pending(self, role: str) -> None:
        """Let a role wait no longer; idempotent."""
        (self._pending / f"{role}.json").unlink(missing_ok=True)

    def prune(self, current: Mapping[str, int]) -> None:
        """Remove versions long before the current ones; roots stay for ever, old clients follow them."""
        for role, versions in self.versions().items():
            for version in versions:
                if role != "root" and version <= current.get(role, 0) - KEPT_VERSIONS:
                    self.path(role, version).unlink(missing_ok=True)
