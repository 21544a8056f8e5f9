"""The receipt of a verification: which files were verified, when, and until when they are good.

While a receipt is young, an agent reads the named files without asking a mirror and without the cost of checking
signatures again: their digests are compared instead.  That is as safe as the directory: who can write it can also
write the cache of packages.  So a receipt counts only in a directory that nobody else may write.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

FORMAT = 1
TOP_LEVEL = ("root", "timestamp", "snapshot", "targets")
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was verified.  Times are seconds since the epoch.

    `checked_s` is when a mirror was last asked, `verified_s` when one last answered; `versions` are those of all
    roles in the snapshot, `expires` the expiry by role of what was verified, `files` the digests by path.
    """

    source: str
    version: int
    checked_s: float
    verified_s: float
    versions: Mapping[str, int] = field(default_factory=dict)
    expires: Mapping[str, float] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_stale(self) -> bool:
        """Whether the last attempt to ask a mirror failed."""
        return self.checked_s > self.verified_s

    @property
    def expires_s(self) -> float:
        """When the first of the top-level roles expires."""
        return min(self.expires.get(role, 0.0) for role in TOP_LEVEL)

    def with_file(self, path: str, data: bytes, role: str, expires_s: float) -> Receipt:
        """Return the receipt with one more verified file."""
        digest = hashlib.sha256(data).hexdigest()
        return dataclasses.replace(
            self, files={**self.files, path: digest}, expires={**self.expires, role: expires_s}
        )


def load(directory: Path) -> Receipt | None:
    """Return the receipt of a directory; `None` where there is none, or none that counts."""
    try:
        if directory.stat().st_mode & _OTHERS_WRITE:
            return None
        raw = json.loads((directory / "receipt.json").read_bytes())
        if raw["format"] != FORMAT:
            return None
        return Receipt(
            source=str(raw["source"]),
            version=int(raw["version"]),
            checked_s=float(raw["checked_s"]),
            verified_s=float(raw["verified_s"]),
            versions={str(role): int(version) for role, version in raw["versions"].items()},
            expires={str(role): float(when) for role, when in raw["expires"].items()},
            files={str(path): str(digest) for path, digest in raw["files"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def save(directory: Path, receipt: Receipt) -> None:
    """Write the receipt of a directory."""
    raw = {"format": FORMAT, **dataclasses.asdict(receipt)}
    replace(directory / "receipt.json", json.dumps(raw, separators=(",", ":")).encode())


def read_verified(directory: Path, path: str, receipt: Receipt) -> bytes | None:
    """Return a file if it is still the one that was verified, else `None`."""
    try:
        data = (directory / path).read_bytes()
    except OSError:
        return None
    return data if hashlib.sha256(data).hexdigest() == receipt.files.get(path) else None


def replace(path: Path, data: bytes) -> None:
    """Replace a file in one rename.  Not synced: after a power loss a bad file is a file that was never fetched."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
