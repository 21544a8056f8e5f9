"""Small packages for tests of caches: a catalogue entry and the builder that would have made it.

The archive is not a real one: a cache never looks into it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from jobagent import manifest
from jobagent.contracts import Builder, Built, Holder, Staging
from jobagent.model import Archive, Blob, Package, PackageId, Traffic, Tree
from jobagent.processes import start_ticks

FILES: Mapping[str, bytes] = {"bin/program": b"#!/bin/sh\necho works\n", "lib/data": b"data " * 400, "empty": b""}


@dataclass(frozen=True, slots=True)
class Sample:
    """A package and what is in it; picklable, so that other processes can build it.

    `log`, if given, gets one line per build: the pid of the builder.
    """

    package: Package
    files: Mapping[str, bytes]
    log: Path | None = None
    keep_archive: bool = True

    def __call__(self, staging: Staging) -> Built:
        """Build: an archive, then the tree, then the note in the log."""
        staging.archive.write_bytes(archive_of(self.files, self.package.archive.size_bytes))
        for name, content in self.files.items():
            path = staging.tree / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            path.chmod(0o755 if name.startswith("bin/") else 0o644)
        if self.log is not None:
            with open(self.log, "a", encoding="ascii") as stream:
                stream.write(f"{os.getpid()}\n")
        entries = manifest.scan(staging.tree)
        return Built(entries, self.keep_archive, Traffic(seeder_bytes=self.package.archive.size_bytes), {})

    def builds(self) -> int:
        """Return how often it was built, by all processes."""
        return len(self.log.read_text(encoding="ascii").splitlines()) if self.log and self.log.exists() else 0


def sample(
    name: str = "Alpha",
    version: str = "1.0",
    *,
    namespace: str = "test",
    files: Mapping[str, bytes] = FILES,
    log: Path | None = None,
    keep_archive: bool = True,
    archive_bytes: int = 2048,
) -> Sample:
    """Return a sample; its digest follows from `files`, so that equal content is one archive."""
    content = archive_of(files, archive_bytes)
    digest = hashlib.sha256(content).hexdigest()
    listing = repr(sorted(files.items())).encode()
    package = Package(
        id=PackageId(namespace, name, version),
        platform="Linux-x86_64",
        archive=Archive(f"{name}-{version}.tar.zst", "tar.zst", digest, len(content), digest[:40], digest),
        tree=Tree(
            manifest=Blob(hashlib.sha256(listing).hexdigest(), len(listing)),
            size_bytes=sum(map(len, files.values())),
            file_count=len(files),
        ),
        published_s=1_700_000_000,
    )
    return Sample(package, dict(files), log, keep_archive)


def archive_of(files: Mapping[str, bytes], size_bytes: int) -> bytes:
    """Return `size_bytes` bytes that depend on `files`."""
    seed = hashlib.sha256(repr(sorted(files.items())).encode()).digest()
    return (seed * (size_bytes // len(seed) + 1))[:size_bytes]


def holder(pid: int = 0, job_id: str = "job") -> Holder:
    """Return the holder for a running process, by default this one."""
    pid = pid or os.getpid()
    return Holder(pid, start_ticks(pid), job_id, os.geteuid())


def failing(error: Exception, *, after: Callable[[Staging], object] = lambda staging: None) -> Builder:
    """Return a builder that does `after` and then raises `error`."""

    def build(staging: Staging) -> Built:
        after(staging)
        raise error

    return build
