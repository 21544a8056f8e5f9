"""Putting a package's files where the web server has them, before anything is signed.

Each file is checked against what is about to be signed; a name that holds a digest is never written twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from jobagent import durable, entry, manifest
from jobagent.errors import DigestMismatch, DiskFull, JobAgentError, ManagerError
from jobagent.model import Blob, Package


@dataclass(frozen=True, slots=True)
class Draft:
    """A package that is ready to be published: what will be signed, and the files that it names.

    `archive` may be anywhere; it is copied, or linked where it `is_ours`: nobody else will ever write to it.
    `objects` are the manifest, the SBOM and others by content.
    """

    package: Package
    archive: Path
    torrent: bytes
    objects: tuple[bytes, ...] = ()
    is_ours: bool = False


def place(base: Path, draft: Draft) -> None:
    """Put archive, torrent and objects below the catalogue directory `base`, durably.

    Raises:
        DigestMismatch: A file is not what the package says.
        ManagerError: A file that the package names is missing.
        DiskFull: No room.
    """
    archive = draft.package.archive
    try:
        entry.check_torrent(draft.torrent, archive)
    except ValueError as error:
        raise DigestMismatch(f"torrent of {draft.package.id}: {error}") from error
    contents = {hashlib.sha256(content).hexdigest(): content for content in draft.objects}
    for wanted in (draft.package.tree.manifest, draft.package.provenance):
        if wanted is not None:
            _check_object(base, draft.package, wanted, contents)
    try:
        _place_archive(base, draft)
        for sha256, content in contents.items():
            _place_bytes(base / "objects" / sha256, content)
        _place_bytes(base / entry.torrent_path(archive), draft.torrent)
    except OSError as error:
        raise _storage_error(base, error) from error


def _check_object(base: Path, package: Package, wanted: Blob, contents: dict[str, bytes]) -> None:
    content = contents.get(wanted.sha256)
    stored = base / entry.object_path(wanted)
    size_bytes = len(content) if content is not None else stored.stat().st_size if stored.is_file() else None
    if size_bytes is None:
        raise ManagerError(f"{package.id} names object {wanted.sha256[:16]}…, which is not given")
    if size_bytes != wanted.size_bytes:
        raise DigestMismatch(f"object {wanted.sha256[:16]}… of {package.id} is not {wanted.size_bytes} bytes long")


def _place_archive(base: Path, draft: Draft) -> None:
    archive = draft.package.archive
    target = base / entry.archive_path(archive)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mktemp(prefix=".", suffix=".tmp", dir=target.parent))
        try:
            _bring(draft, temporary)
            if temporary.stat().st_size != archive.size_bytes or manifest.hash_file(temporary) != archive.sha256:
                raise DigestMismatch(f"{draft.archive} is not what {draft.package.id} says: {archive.sha256[:16]}…")
            with open(temporary, "rb") as stream:
                os.fchmod(stream.fileno(), 0o444)
                os.fsync(stream.fileno())
            os.rename(temporary, target)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
        durable.sync_directory(target.parent)
    elif target.stat().st_size != archive.size_bytes:
        raise ManagerError(f"{target} is damaged: {target.stat().st_size} bytes", remedy="remove it, publish again")


def _bring(draft: Draft, target: Path) -> None:
    if draft.is_ours:
        with contextlib.suppress(OSError):  # another file system, or none with hard links
            os.link(draft.archive, target)
            return
    shutil.copyfile(draft.archive, target)


def _place_bytes(path: Path, content: bytes) -> None:
    if not path.exists():
        durable.write(path, content)


def _storage_error(base: Path, error: OSError) -> JobAgentError:
    if error.errno in {28, 122}:  # ENOSPC, EDQUOT
        return DiskFull(f"no room below {base}: {error.strerror}")
    return ManagerError(f"cannot write below {base}: {error.filename or ''} {error.strerror}")
