"""Making updates: from the archive of an earlier version to the tree of a new one (`jobagent.job.updates`)."""

from __future__ import annotations

import contextlib
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import zstandard

from jobagent import entry, manifest
from jobagent.central.packaging import pack, torrents
from jobagent.central.placing import Draft
from jobagent.contracts import ManifestEntry
from jobagent.job.relocation import RECORD, Record
from jobagent.job.updates import ARCHIVE_FORMAT, MAX_CHANGED_BYTES, Header, delta, platform_of, without
from jobagent.model import Archive, Package, PackageState

LEVEL = 12  # pythia8mc 8.317.1 → 8.317.2: see docs/performance.md
WORTHWHILE = 0.6  # an update is published where it has at most this share of the full archive's bytes
_VERSION = re.compile(r"\d+")


def draft(
    package: Package,
    tree: Path,
    entries: Sequence[ManifestEntry],
    known: Sequence[Package],
    catalogue: Path,
    work: Path,
) -> Draft | None:
    """Make the update to `package`, whose tree is `tree`, from the newest version before.

    Returns None where there is none of which the catalogue has the archive, or the update would save too little.
    """
    base = _before(package, known)
    if (
        base is None
        or package.archive.format != pack.FORMAT
        or any(e.size_bytes > MAX_CHANGED_BYTES for e in entries)
    ):
        return None
    base_archive = catalogue / entry.archive_path(base.archive)
    base_manifest = catalogue / entry.object_path(base.tree.manifest)
    if not base_archive.is_file() or not base_manifest.is_file():
        return None  # kept elsewhere: the update is a service, not a duty
    path = work / "update"
    size_bytes = make(base_archive, manifest.decode(base_manifest.read_bytes()), tree, entries, path)
    if size_bytes > WORTHWHILE * package.archive.size_bytes:
        return None
    digest = manifest.hash_file(path)
    name = f"{package.id.name}-{digest[:12]}.{ARCHIVE_FORMAT}"
    torrent = torrents.create(path, name)
    made = replace(
        package,
        platform=platform_of(package, base),
        archive=Archive(name, ARCHIVE_FORMAT, digest, size_bytes, torrent.infohash_v1, torrent.infohash_v2),
        dependencies=(),
        environment=(),
        pfns=(),
        provenance=None,
        description=f"update from {base.id.version}",
    )
    return Draft(made, path, torrent.data, (manifest.encode(entries),), is_ours=True)


def _before(package: Package, known: Sequence[Package]) -> Package | None:
    """Return the newest released version of the package besides itself."""
    before = [
        p
        for p in known
        if (p.id.namespace, p.id.name) == (package.id.namespace, package.id.name)
        and p.archive.format == pack.FORMAT
        and p.state is PackageState.RELEASED
        and p.id != package.id
        and p.key != package.key
    ]
    return max(before, key=lambda p: (p.published_s, p.id.version), default=None)


def make(
    base_archive: Path, base: Sequence[ManifestEntry], tree: Path, entries: Sequence[ManifestEntry], target: Path
) -> int:
    """Write the update to `tree` from what `base_archive` holds, a tar.zst with manifest `base`; return its size.

    Raises:
        OSError: Something cannot be read or written.
    """
    plain = _plain(base_archive, base)
    usable = {e.path: e for e in plain if e.kind == "f"}
    there = {e.sha256 for e in usable.values()}
    missing = {e.sha256: e for e in entries if e.kind == "f" and e.sha256 not in there}
    pairs = {sha256: found for sha256, entry in missing.items() if (found := _counterpart(entry, usable))}
    old = dict(_members(base_archive, {entry.path for entry in pairs.values()}))
    changed: list[tuple[str, int, int, str]] = []
    frames: list[bytes] = []
    for sha256, counterpart in pairs.items():
        entry = missing[sha256]
        frame = delta((tree / entry.path).read_bytes(), old[counterpart.path], LEVEL)
        changed.append((sha256, entry.size_bytes, len(frame), counterpart.path))
        frames.append(frame)
    new = [entry for sha256, entry in missing.items() if sha256 not in pairs]
    listing = manifest.encode(entries)
    first = delta(listing, manifest.encode(plain), LEVEL)
    header = Header(
        base=manifest.digest(base).sha256,
        tree=manifest.digest(entries).sha256,
        manifest=(len(listing), len(first)),
        changed=tuple(changed),
        new=tuple((e.sha256, e.size_bytes) for e in new),
    )
    with target.open("wb") as stream:
        stream.write(header.encode())
        stream.write(first)
        stream.writelines(frames)
        with zstandard.ZstdCompressor(level=LEVEL).stream_writer(stream, closefd=False) as writer:
            for entry in new:
                writer.write((tree / entry.path).read_bytes())
    return target.stat().st_size


def _counterpart(entry: ManifestEntry, usable: dict[str, ManifestEntry]) -> ManifestEntry | None:
    """Return the file of the base that an entry most likely came from: of its path, or that but for numbers."""
    if entry.path in usable:
        return usable[entry.path]
    shape = _VERSION.sub("0", entry.path)
    alike = [e for path, e in usable.items() if _VERSION.sub("0", path) == shape]
    return min(alike, key=lambda e: abs(e.size_bytes - entry.size_bytes), default=None)


def _plain(base_archive: Path, base: Sequence[ManifestEntry]) -> Sequence[ManifestEntry]:
    """Return the members that are the same on every node."""
    if not any(e.path == RECORD for e in base):
        return base
    ((_, data),) = _members(base_archive, {RECORD})
    return without(Record.decode(data), base)


def _members(archive: Path, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the content of some members of a tar.zst in which equal files are hard links to the first."""
    links: dict[str, list[str]] = {}
    with _opened(archive) as tar:
        for member in tar:
            if member.islnk() and member.name in wanted:
                links.setdefault(member.linkname, []).append(member.name)
            elif member.name in wanted and (stream := tar.extractfile(member)):
                yield member.name, stream.read()
    if links:
        for name, data in _members(archive, set(links)):
            for link in links[name]:
                yield link, data


@contextlib.contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile]:
    with (
        archive.open("rb") as stream,
        zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True) as expanded,
        tarfile.open(fileobj=expanded, mode="r|") as tar,
    ):
        yield tar
