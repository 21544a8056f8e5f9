"""Catalogue entries for archives that a test made, and the unpackers under test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jobagent.central.packaging.pack import Packed
from jobagent.contracts import ManifestEntry, Unpacker
from jobagent.model import Archive, Blob, Package, PackageId, Tree
from jobagent_archives.data import DataUnpacker
from jobagent_archives.unpacking import TarUnpacker


def package_of(packed: Packed, archive_format: str = "tar.zst", file_name: str = "a") -> Package:
    """The entry of a packed tree, its infohashes made up."""
    archive = Archive(file_name, archive_format, packed.archive.sha256, packed.archive.size_bytes, "0" * 40, "0" * 64)
    return Package(PackageId("alice", "ROOT", "v6"), "Linux-x86_64", archive, packed.tree, 0)


def signed(size_bytes: int, file_count: int, archive_format: str = "tar.zst") -> Package:
    """An entry that signs these limits, for archives that no packer would make."""
    archive = Archive("a", archive_format, "0" * 64, 1, "0" * 40, "0" * 64)
    tree = Tree(Blob("0" * 64, 0), size_bytes, file_count)
    return Package(PackageId("alice", "ROOT", "v6"), "Linux-x86_64", archive, tree, 0)


def unpack(archive: Path, package: Package, into: Path, workers: int = 2) -> Sequence[ManifestEntry]:
    """Unpack into `into`, which is made."""
    into.mkdir()
    unpackers: tuple[Unpacker, ...] = (TarUnpacker(workers), DataUnpacker())
    return next(u for u in unpackers if package.archive.format in u.formats).unpack(archive, package, into)
