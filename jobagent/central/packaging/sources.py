"""Directories, tarballs and data files as sources of packages."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from jobagent import manifest
from jobagent.central.packaging.content import Content, usual_changes
from jobagent.central.packaging.provenance import Origin
from jobagent.central.packaging.relocatable import Report, make_relocatable
from jobagent.errors import DiskFull, HostileArchive, PublishError
from jobagent.job.relocation import is_prefix
from jobagent.model import Archive, Blob, Package, PackageId, Tree
from jobagent_archives.unpacking import TarUnpacker

MAX_MEMBERS = 10_000_000
# A tarball with one of these alone at the top is a tree as it is, not a tree within a directory.
_TREE_TOPS = frozenset({"bin", "etc", "include", "lib", "lib64", "libexec", "opt", "sbin", "share", "usr", "var"})
_MAGIC = ((b"\x28\xb5\x2f\xfd", "tar.zst"), (b"\x1f\x8b", "tar.gz"), (b"\xfd7zXZ\0", "tar.xz"))


@dataclass(frozen=True, slots=True)
class Directory:
    """An installed tree.  It is copied, never changed.

    `prefix` is the path that it was built for; empty means where it is now.
    """

    path: Path
    name: str = ""
    version: str = ""
    prefix: str = ""

    def make(self, work: Path, report: Report) -> Content:
        """See `Source`."""
        tree = work / "tree"
        try:
            shutil.copytree(self.path, tree, symlinks=True)
        except shutil.Error as error:
            source, _, reason = error.args[0][0]
            raise PublishError(f"{source} cannot be copied: {reason}") from error
        except OSError as error:
            raise PublishError(
                f"{error.filename or self.path} cannot be copied: {error.strerror}",
                remedy="--tree names an installed tree that you can read",
            ) from error
        return _installed(tree, self.prefix or os.path.abspath(self.path), Origin("directory"), report)


@dataclass(frozen=True, slots=True)
class Tarball:
    """A tar of an installed tree, compressed or not; a directory around it is left out."""

    path: Path
    name: str = ""
    version: str = ""
    prefix: str = ""

    def make(self, work: Path, report: Report) -> Content:
        """See `Source`."""
        tree = work / "tree"
        unpack(self.path, tree)
        tops = list(tree.iterdir())
        if len(tops) == 1 and tops[0].is_dir() and not tops[0].is_symlink() and tops[0].name not in _TREE_TOPS:
            report(f"{self.path.name} has all in {tops[0].name}/, which is left out")
            tree = tops[0]
        origin = Origin(
            "tarball", properties={"jobagent:file": self.path.name, "jobagent:sha256": manifest.hash_file(self.path)}
        )
        return _installed(tree, self.prefix, origin, report)


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file that is not unpacked: jobs find it in the package's directory under its own name."""

    path: Path
    name: str = ""
    version: str = ""

    def make(self, work: Path, report: Report) -> Content:
        """See `Source`."""
        if not self.path.is_file():
            raise PublishError(f"{self.path} is not a file")
        return Content(self.path, Origin("file", properties={"jobagent:file": self.path.name}), is_data=True)


def unpack(archive: Path, tree: Path) -> None:
    """Unpack a tarball of the publisher's into the new directory `tree`, by the rules of every node.

    Raises:
        PublishError: It is no tar, or holds what a package may not.
    """
    tree.mkdir(parents=True)
    try:
        with open(archive, "rb") as stream:
            head = stream.read(8)
        kind = next((kind for magic, kind in _MAGIC if head.startswith(magic)), "tar")
        free_bytes = shutil.disk_usage(tree).free
        TarUnpacker().unpack(archive, _unsigned(archive, kind, free_bytes), tree)
    except HostileArchive as error:
        raise PublishError(f"{archive}: {error.cause_line}") from error
    except DiskFull as error:
        raise DiskFull(f"{archive} does not fit into {tree}", remedy="set TMPDIR to a larger disk") from error
    except OSError as error:
        raise PublishError(f"{archive} cannot be read: {error.strerror}") from error


def _unsigned(archive: Path, kind: str, size_bytes: int) -> Package:
    """Return an entry that limits a tarball which nobody signed yet."""
    nothing = "0" * 64
    return Package(
        PackageId("unsigned", "tarball", "0"),
        "any",
        Archive(archive.name, kind, nothing, archive.stat().st_size, "", nothing),
        Tree(Blob(nothing, 0), size_bytes, MAX_MEMBERS),
        0,
    )


def _installed(tree: Path, prefix: str, origin: Origin, report: Report) -> Content:
    if prefix and is_prefix(prefix):
        make_relocatable(tree, prefix, report)
    return Content(tree, origin, environment=usual_changes(tree))
