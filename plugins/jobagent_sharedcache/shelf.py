"""Installed packages on disk: written, read, checked, set aside, removed.

Callers hold the lock of the key, exclusively where a method changes something, and the quota lock where it says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jobagent.plugin import Built, CacheTampered, HostileArchive, ManifestEntry, Package, entry, manifest
from jobagent_sharedcache import filesystem
from jobagent_sharedcache.filesystem import on_disk
from jobagent_sharedcache.layout import Layout, unique


class Record(NamedTuple):
    """What is remembered of an installed package.  `outside_bytes` are those of its files that the store lacks."""

    package: Package
    has_archive: bool
    tree_bytes: int
    outside_bytes: int
    members: int
    stored_files: int
    installed_s: float


class Shelf:
    """The packages of one cache."""

    def __init__(self, layout: Layout, boot: str) -> None:
        self._layout = layout
        self._boot = boot
        self._guard = threading.Lock()
        self._records: dict[str, tuple[tuple[int, int], Record]] = {}

    # --- reading

    def record(self, key: str) -> Record | None:
        """Return what is installed as `key`; None where nothing is, or what is there is damaged."""
        directory = self._layout.package(key)
        path = directory / "record.json"
        try:
            status = path.stat()
        except FileNotFoundError:
            return None
        if (directory / "damaged").exists():
            return None
        mark = (status.st_ino, status.st_mtime_ns)
        with self._guard:
            known = self._records.get(key)
        if known is not None and known[0] == mark:
            return known[1]
        try:
            record = _decode(json.loads(path.read_bytes()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        with self._guard:
            self._records[key] = (mark, record)
        return record

    def manifest(self, key: str) -> Sequence[ManifestEntry] | None:
        """Return the manifest of the tree as it was installed; None where it cannot be read."""
        try:
            return manifest.decode((self._layout.package(key) / "manifest").read_bytes())
        except (OSError, HostileArchive):
            return None

    def state(self, key: str) -> tuple[int, int] | None:
        """Return what changes with every installation and every check; None where nothing is installed."""
        try:
            status = (self._layout.package(key) / "stamp.json").stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns

    def packages(self, key: str) -> list[Package]:
        """Return all packages whose archive is `key`, the one that was installed first."""
        record = self.record(key)
        if record is None:
            return []
        found = [record.package]
        with contextlib.suppress(FileNotFoundError):
            for path in sorted((self._layout.package(key) / "names").iterdir()):
                with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                    found.append(_decode_package(json.loads(path.read_bytes())))
        return found

    def last_used_s(self, key: str) -> float:
        """When a lease on it was last given, seconds since the epoch."""
        try:
            return (self._layout.package(key) / "used").stat().st_mtime
        except FileNotFoundError:
            return 0.0

    # --- writing

    def touch(self, key: str, package: Package) -> None:
        """Note that the package is used now, and under which name."""
        directory = self._layout.package(key)
        record = self.record(key)
        os.utime(directory / "used")
        if record is None or (record.package.id, record.package.platform) == (package.id, package.platform):
            return
        name = directory / "names" / hashlib.sha256(f"{package.id} {package.platform}".encode()).hexdigest()[:16]
        if not name.exists():
            name.parent.mkdir(exist_ok=True)
            _write(name, json.dumps(_encode_package(package)))

    def describe(
        self, staged: Path, package: Package, built: Built, outside_bytes: int, *, has_archive: bool
    ) -> None:
        """Write manifest, record and stamp of a staged package: the last files before it is renamed in."""
        entries = built.manifest
        record = Record(
            package=package,
            has_archive=has_archive,
            tree_bytes=sum(on_disk(e.size_bytes) for e in entries),
            outside_bytes=outside_bytes,
            members=len(entries) + 4,
            stored_files=sum(e.kind == "f" and e.size_bytes > 0 for e in entries),
            installed_s=time.time(),
        )
        (staged / "manifest").write_bytes(manifest.encode(entries))
        (staged / "used").touch()
        self._stamp(staged)
        (staged / "record.json").write_text(json.dumps(_encode(record)), encoding="utf-8")

    def place(self, staged: Path, key: str) -> None:
        """Make a staged package visible; a damaged one in its place goes to quarantine in the same step."""
        final = self._layout.package(key)
        filesystem.sync(staged)
        try:
            os.rename(staged, final)
        except OSError:
            if not final.is_dir():
                raise
            # Jobs that hold leases on the damaged one find the paths of their packages at every instant.
            filesystem.exchange(staged, final)
            os.rename(staged, self._layout.quarantine / unique(key))

    def drop_archive(self, key: str) -> None:
        """Remove the archive with what lies beside it, and remember that there is none."""
        for path in self._layout.archive_files(key):
            filesystem.remove_tree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path = self._layout.package(key) / "record.json"
        with contextlib.suppress(FileNotFoundError):
            fields = json.loads(path.read_bytes())
            if fields["has_archive"]:
                _write(path, json.dumps(fields | {"has_archive": False}))

    def take_away(self, key: str) -> Path | None:
        """Make a package invisible by one rename; return where it is to be deleted from, None where it is absent."""
        doomed = self._layout.trash / unique(key)
        try:
            os.rename(self._layout.package(key), doomed)
        except FileNotFoundError:
            return None
        return doomed

    def set_aside(self, key: str, reason: str, *, is_leased: bool) -> None:
        """Take a damaged package out of use: into quarantine, or marked in its place while jobs still use it."""
        directory = self._layout.package(key)
        (directory / "damaged").write_text(reason, encoding="utf-8", errors="replace")
        if not is_leased:
            os.rename(directory, self._layout.quarantine / unique(key))

    # --- checking

    def is_fresh(self, key: str) -> bool:
        """Whether the tree was checked in this boot: after a power loss every byte is doubted once."""
        return self._read_stamp(key).get("boot") == self._boot

    def is_unchanged(self, key: str) -> bool:
        """Whether no file was touched since the last check, by sizes, modes, times and inodes: no reading of data."""
        return self._read_stamp(key).get("fingerprint") == fingerprint(self._layout.tree(key))

    def check(self, key: str) -> list[ManifestEntry]:
        """Hash the whole tree and compare; stamp it where it is as installed.

        Returns:
            The members that are missing, changed, or there although they should not be.

        Raises:
            CacheTampered: There is not even a manifest to compare with.
        """
        expected = self.manifest(key)
        if expected is None:
            raise CacheTampered(f"{self._layout.package(key)} has no readable manifest")
        try:
            found = {e.path: e for e in manifest.scan(self._layout.tree(key))}
        except OSError as error:
            raise CacheTampered(f"{self._layout.tree(key)} cannot be read: {error.strerror}") from error
        wrong = [e for e in expected if found.pop(e.path, None) != e]
        wrong += found.values()
        if not wrong:
            self._stamp(self._layout.package(key))
        return wrong

    def _stamp(self, directory: Path) -> None:
        stamp = {"boot": self._boot, "fingerprint": fingerprint(directory / "tree")}
        _write(directory / "stamp.json", json.dumps(stamp))

    def _read_stamp(self, key: str) -> dict[str, Any]:
        try:
            stamp = json.loads((self._layout.package(key) / "stamp.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return stamp if isinstance(stamp, dict) else {}


def fingerprint(tree: Path) -> str:
    """Return a digest of all that stat(2) says about the members of a tree.

    The change time (ctime) is in it: a payload of the same user can set every other time back.
    """
    digest = hashlib.sha256()
    pending = [os.fspath(tree)]
    while pending:
        directory = pending.pop()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(directory) as items:
            for item in sorted(items, key=lambda i: i.name):
                s = item.stat(follow_symlinks=False)
                facts = (item.name, s.st_mode, s.st_size, s.st_ino, s.st_mtime_ns, s.st_ctime_ns)
                digest.update(repr(facts).encode(errors="surrogateescape"))
                if item.is_dir(follow_symlinks=False):
                    pending.append(item.path)
    return digest.hexdigest()


def changed(entries: Iterable[ManifestEntry]) -> str:
    """Return damaged members in a few words, for a message."""
    names = [e.path for e in entries]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.rename(temporary, path)


def _encode(record: Record) -> dict[str, object]:
    return {
        "package": _encode_package(record.package),
        "has_archive": record.has_archive,
        "tree_bytes": record.tree_bytes,
        "outside_bytes": record.outside_bytes,
        "members": record.members,
        "stored_files": record.stored_files,
        "installed_s": record.installed_s,
    }


def _decode(fields: dict[str, Any]) -> Record:
    return Record(
        package=_decode_package(fields["package"]),
        has_archive=bool(fields["has_archive"]),
        tree_bytes=int(fields["tree_bytes"]),
        outside_bytes=int(fields["outside_bytes"]),
        members=int(fields["members"]),
        stored_files=int(fields["stored_files"]),
        installed_s=float(fields["installed_s"]),
    )


def _encode_package(package: Package) -> dict[str, object]:
    signed = entry.encode(package)
    return {
        "path": signed.path, "size": signed.size_bytes, "sha256": signed.sha256, "custom": dict(signed.custom),
    }  # fmt: skip


def _decode_package(fields: dict[str, Any]) -> Package:
    return entry.decode(entry.Entry(fields["path"], fields["size"], fields["sha256"], fields["custom"]))
