"""The cache on disk: format 1.  Everything that knows where a thing lies is in this module.

FORMAT                    {"format": 1}; an agent refuses a format that it does not know
quota.lock                held while bytes are reserved, counted or freed
locks/KEY                 flock: exclusive to build, change or remove KEY, shared to lease it; never unlinked
packages/KEY/             one installed package, appears and goes by rename; KEY is the archive's sha256
    tree/                 what jobs see
    manifest              `jobagent.manifest`, of the tree as it is on disk
    record.json           the signed entry, sizes
    stamp.json            boot and fingerprint of the last check
    used                  its modification time is the last use
    names/                signed entries of other packages with the same archive
    damaged               present where a check failed while jobs held leases
archives/KEY              the archive, or a partial download of it; transports may add files KEY.*
staging/KEY.RANDOM/       a package being built
leases/KEY/ID             one lease, a record of its holder
sessions/ID               flock: exclusive while the agent lives that wrote leases with this session
reservations/KEY          bytes, inodes and VO of a build; counts while locks/KEY is held
progress/KEY              how far a build is, for those who wait
pins/KEY                  present where the package must not be evicted
store/XX/SHA256.MODE      every file of every tree once (hard links)
books.json                bytes and files in store/; rebuilt from it where in doubt
quarantine/KEY.RANDOM/    damaged packages, for inspection
trash/                    being deleted
state/                    of other plugins
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jobagent.plugin import ManifestEntry, SiteError, durable

FORMAT = 1
_KEY = re.compile(r"[0-9a-f]{64}")
_DIRECTORIES = (
    "locks", "packages", "archives", "staging", "leases", "sessions", "reservations", "progress", "pins", "store",
    "quarantine", "trash", "state",
)  # fmt: skip


def is_key(text: str) -> bool:
    """Whether `text` can be a key: the only names that are ever joined to a path."""
    return bool(_KEY.fullmatch(text))


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths below one root."""

    root: Path

    def prepare(self) -> None:
        """Make the directories, or check that the format is ours.

        Raises:
            SiteError: The root was written by another format.
            OSError: It cannot be written.
        """
        marker = self.root / "FORMAT"
        try:
            found = json.loads(marker.read_bytes())["format"]
        except FileNotFoundError:
            self._refuse_foreign()
            for name in _DIRECTORIES:
                (self.root / name).mkdir(exist_ok=True)
                # Payloads of other users read packages, and nothing else of ours.
                (self.root / name).chmod(0o755 if name == "packages" else 0o700)
            self.root.chmod(0o755)
            durable.write(marker, json.dumps({"format": FORMAT}).encode())
        except (ValueError, KeyError, TypeError) as error:
            raise SiteError(f"{marker} is not that of a cache", remedy="choose another directory") from error
        else:
            if found != FORMAT:
                raise SiteError(
                    f"cache {self.root} has format {found}, this agent knows {FORMAT}",
                    remedy="upgrade the agent, or give each version its own [sharedcache] root",
                )

    def _refuse_foreign(self) -> None:
        """A root that has anything but what an interrupted `prepare` made is somebody's: its mode is not ours."""
        made = {*_DIRECTORIES, "lost+found"}
        foreign = sorted(n for n in _names(self.root) if n not in made and not n.startswith(".FORMAT."))
        if foreign:
            raise SiteError(
                f"{self.root} is not empty and no cache: it has {', '.join(foreign[:3])[:200]}",
                remedy="give [sharedcache] root a directory of its own",
            )

    # Each member below is one line of the table above.

    @property
    def quota_lock(self) -> Path:
        return self.root / "quota.lock"

    @property
    def books(self) -> Path:
        return self.root / "books.json"

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def staging(self) -> Path:
        return self.root / "staging"

    @property
    def sessions(self) -> Path:
        return self.root / "sessions"

    @property
    def quarantine(self) -> Path:
        return self.root / "quarantine"

    @property
    def trash(self) -> Path:
        return self.root / "trash"

    def lock(self, key: str) -> Path:
        return self.root / "locks" / key

    def package(self, key: str) -> Path:
        return self.root / "packages" / key

    def tree(self, key: str) -> Path:
        return self.root / "packages" / key / "tree"

    def archive(self, key: str) -> Path:
        return self.root / "archives" / key

    def leases(self, key: str) -> Path:
        return self.root / "leases" / key

    def reservation(self, key: str) -> Path:
        return self.root / "reservations" / key

    def progress(self, key: str) -> Path:
        return self.root / "progress" / key

    def pin(self, key: str) -> Path:
        return self.root / "pins" / key

    def stored(self, entry: ManifestEntry) -> Path:
        """Where the one copy of a file is; the mode counts, because hard links share it."""
        return self.store / entry.sha256[:2] / f"{entry.sha256}.{'x' if entry.mode & 0o100 else 'r'}"

    def new_staging(self, key: str) -> Path:
        return self.staging / unique(key)

    def staged(self, key: str) -> list[Path]:
        """What builders of `key` left or are at work on: look only under its lock."""
        return [p for p in self.staging.iterdir() if p.name.startswith(key)]

    def progress_files(self, key: str) -> list[Path]:
        """What tells waiting agents how far a download of `key` is."""
        return [p for p in (self.root / "progress").iterdir() if p.name.startswith(key)]

    def archive_files(self, key: str) -> list[Path]:
        """The archive and what a transport put beside it."""
        return [p for p in (self.root / "archives").iterdir() if p.name == key or p.name.startswith(f"{key}.")]

    def archive_sizes(self) -> dict[str, int]:
        """Allocated bytes of archives and partial downloads, with what lies beside them, by key."""
        sizes: dict[str, int] = {}
        with os.scandir(self.root / "archives") as items:
            for item in items:
                key = item.name[:64]
                with contextlib.suppress(FileNotFoundError):
                    if is_key(key):
                        sizes[key] = sizes.get(key, 0) + item.stat(follow_symlinks=False).st_blocks * 512
        return sizes

    def package_keys(self) -> list[str]:
        return sorted(name for name in _names(self.root / "packages") if is_key(name))

    def leased_keys(self) -> list[str]:
        return sorted(name for name in _names(self.root / "leases") if is_key(name))

    def reserved_keys(self) -> list[str]:
        return sorted(name for name in _names(self.root / "reservations") if is_key(name))

    def archive_keys(self) -> set[str]:
        """Keys of complete archives."""
        return {name for name in _names(self.root / "archives") if is_key(name)}

    def unsettled_keys(self) -> set[str]:
        """Keys of what somebody uses or works on, or did when it ended."""
        named = {name[:64] for place in ("staging", "progress") for name in _names(self.root / place)}
        return {key for key in {*named, *self.leased_keys(), *self.reserved_keys()} if is_key(key)}


def unique(name: str) -> str:
    """Return `name` with a random suffix."""
    return f"{name}.{os.urandom(6).hex()}"


def _names(directory: Path) -> Iterator[str]:
    with os.scandir(directory) as items:
        for item in items:
            yield item.name
