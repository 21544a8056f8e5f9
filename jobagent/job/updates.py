"""A new version from one that the node has: what changed travels, what stayed is linked.

The publisher makes, beside the full archive, an *update*: an entry of the same package whose platform ends in `~` and
the first digits of the base's archive, and whose archive is the file described here.  It is signed, fetched, verified
and seeded like any other.  The tree that comes of it is compared with the same signed manifest as an unpacked one, so
an update can be wrong but cannot do harm; where it does not work out, the full archive is fetched.

Form of the file: one line of JSON, then zstd frames.

    {"format": 1, "base": DIGEST, "tree": DIGEST, "manifest": [SIZE, FRAME_BYTES],
     "changed": [[SHA256, SIZE, FRAME_BYTES, PATH], …], "new": [[SHA256, SIZE], …]}

`base` and `tree` are the digests of the signed manifests.  The first frame is the manifest of the new tree,
compressed against that of the base without what relocation rewrites: `Base.plain`, which publisher and node both
have.  `changed` are files compressed against the file PATH of the base, one frame each, in this order; `new` are all
others that the base has not, one behind another in a last frame.  Compressed against means zstd's raw-content
dictionary.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import zstandard

from jobagent import manifest
from jobagent.contracts import ManifestEntry
from jobagent.errors import HostileArchive
from jobagent.job.relocation import RECORD, Record
from jobagent.model import UPDATE_MARK, Blob, Installed, Package

ARCHIVE_FORMAT = "update"  # of `Archive.format`
FORMAT = 1
BASE_DIGITS = 16
MAX_HEADER_BYTES = 64 << 20
MAX_CHANGED_BYTES = 512 << 20  # of one file, before and after: both are in memory
MAX_WINDOW_BYTES = 1 << 30
_CHUNK_BYTES = 1 << 20


def platform_of(package: Package, base: Package) -> str:
    """Return the platform of the entry that leads from `base` to `package`."""
    return f"{package.platform}{UPDATE_MARK}{base.key[:BASE_DIGITS]}"


def choose(
    versions: Sequence[Package], package: Package, bases: Sequence[Installed]
) -> tuple[Package, Installed] | None:
    """Return the smallest update to `package` from what is installed; None where there is none worth its while."""
    by_platform = {platform_of(package, base.package): base for base in bases}
    found = [
        (entry, by_platform[entry.platform])
        for entry in versions
        if entry.id == package.id and entry.platform in by_platform and entry.archive.format == ARCHIVE_FORMAT
    ]
    smallest = min(found, key=lambda pair: pair[0].archive.size_bytes, default=None)
    if smallest is None or smallest[0].archive.size_bytes >= package.archive.size_bytes:
        return None
    return smallest


@dataclass(frozen=True, slots=True)
class Base:
    """The tree that an update starts from: its signed manifest's digest, and the members that are as signed."""

    tree: Path
    digest: str
    plain: Sequence[ManifestEntry]

    @classmethod
    def installed(cls, installed: Installed) -> Base:
        """Return the base that an installed package is; reads and hashes all of it.

        Raises:
            OSError: It is not there any more.
        """
        entries = manifest.scan(installed.tree)
        if any(e.path == RECORD for e in entries):
            entries = without(Record.decode((installed.tree / RECORD).read_bytes()), entries)
        return cls(installed.tree, installed.package.tree.manifest.sha256, entries)


def without(record: Record, entries: Sequence[ManifestEntry]) -> tuple[ManifestEntry, ...]:
    """Return the members whose content does not depend on where the tree is installed."""
    rewritten = {*record.texts, *(program for _, program in record.loaders)}
    return tuple(e for e in entries if e.path not in rewritten)


@dataclass(frozen=True, slots=True)
class Header:
    """The first line of an update."""

    base: str
    tree: str
    manifest: tuple[int, int]
    changed: tuple[tuple[str, int, int, str], ...]
    new: tuple[tuple[str, int], ...]

    def encode(self) -> bytes:
        """Return the line."""
        return json.dumps({"format": FORMAT, **asdict(self)}, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def read(cls, stream: BinaryIO) -> Header:
        """Read the line; raises HostileArchive where it is malformed or of another format."""
        line = stream.readline(MAX_HEADER_BYTES)
        try:
            fields = json.loads(line)
            if fields["format"] != FORMAT:
                raise HostileArchive(f"update has format {str(fields['format'])[:20]}, known is {FORMAT}")
            changed = tuple((str(h), int(s), int(c), manifest.checked_path(p)) for h, s, c, p in fields["changed"])
            new = tuple((str(h), int(s)) for h, s in fields["new"])
            size_bytes, frame_bytes = map(int, fields["manifest"])
            header = cls(str(fields["base"]), str(fields["tree"]), (size_bytes, frame_bytes), changed, new)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise HostileArchive(f"update's header is malformed: {error!r}") from error
        return header


def apply(update: Path, base: Base, wanted: Blob, into: Path) -> None:
    """Build the tree whose manifest is `wanted` in the empty directory `into`.

    Each file's content is checked as it is written or, where it is linked, left to the caller, who compares the whole
    tree with its manifest anyway.

    Raises:
        HostileArchive: The update is malformed, for another base or tree, or lacks a file.
        OSError: The base has gone, or there is no room.
    """
    with update.open("rb") as stream:
        header = Header.read(stream)
        if (header.base, header.tree, header.manifest[0]) != (base.digest, wanted.sha256, wanted.size_bytes):
            raise HostileArchive("update is for another base or tree")
        listing = _expanded(stream.read(_limited(header.manifest)), manifest.encode(base.plain), wanted.size_bytes)
        entries = manifest.decode(_checked(wanted.sha256, listing))
        manifest.check(entries)
        places = _directories(entries, into)
        for sha256, content in _contents(stream, header, base):
            for entry in places.pop(sha256, ()):
                _write(into / entry.path, entry, content)
    sources = {e.sha256: e for e in base.plain if e.kind == "f"}
    for sha256, there in places.items():
        if sha256 not in sources:
            raise HostileArchive(f"update lacks {there[0].path[:200]}")
        for entry in there:
            _take(base.tree / sources[sha256].path, sources[sha256], into / entry.path, entry)
    for entry in entries:
        if entry.kind == "l":
            os.symlink(entry.target, into / entry.path)


def _directories(entries: Sequence[ManifestEntry], into: Path) -> dict[str, list[ManifestEntry]]:
    """Make all directories; return the files by digest."""
    places: dict[str, list[ManifestEntry]] = {}
    for entry in entries:
        if entry.kind == "d":
            (into / entry.path).mkdir(parents=True, exist_ok=True)
        elif entry.kind == "f":
            (into / entry.path).parent.mkdir(parents=True, exist_ok=True)
            places.setdefault(entry.sha256, []).append(entry)
    return places


def delta(content: bytes, base: bytes, level: int) -> bytes:
    """Return `content` compressed against `base`."""
    window_log = max(10, min(30, (len(content) + len(base)).bit_length()))
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, source_size=len(content), dict_size=len(base), window_log=window_log, enable_ldm=True
    )
    return zstandard.ZstdCompressor(dict_data=_dictionary(base), compression_params=parameters).compress(content)


def _dictionary(base: bytes) -> zstandard.ZstdCompressionDict | None:
    return zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if base else None


def _contents(stream: BinaryIO, header: Header, base: Base) -> Iterator[tuple[str, bytes]]:
    """Yield digest and content of every file that the update brings, checked."""
    sizes = {e.path: e.size_bytes for e in base.plain if e.kind == "f"}
    for sha256, size_bytes, frame_bytes, path in header.changed:
        if sizes.get(path, MAX_CHANGED_BYTES + 1) > MAX_CHANGED_BYTES:
            raise HostileArchive(f"update builds on {path[:200]}, which the base has not, or not so large")
        frame = stream.read(_limited((size_bytes, frame_bytes)))
        yield sha256, _checked(sha256, _expanded(frame, (base.tree / path).read_bytes(), size_bytes))
    with zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).stream_reader(stream) as reader:
        for sha256, size_bytes in header.new:
            if not 0 <= size_bytes <= MAX_CHANGED_BYTES:
                raise HostileArchive(f"update has a new file of {size_bytes} bytes")
            yield sha256, _checked(sha256, _read(reader, size_bytes))


def _limited(sizes: tuple[int, int]) -> int:
    """Return the length of a frame; raises HostileArchive where it or its content is beyond all measure."""
    size_bytes, frame_bytes = sizes
    if not 0 <= size_bytes <= MAX_CHANGED_BYTES or not 0 <= frame_bytes <= size_bytes + _CHUNK_BYTES:
        raise HostileArchive(f"update has {size_bytes} bytes in a frame of {frame_bytes}")
    return frame_bytes


def _expanded(frame: bytes, base: bytes, size_bytes: int) -> bytes:
    decompressor = zstandard.ZstdDecompressor(dict_data=_dictionary(base), max_window_size=MAX_WINDOW_BYTES)
    try:
        if zstandard.frame_content_size(frame) != size_bytes:
            raise HostileArchive("update has a frame of another size than its header says")
        return decompressor.decompress(frame, max_output_size=size_bytes)
    except zstandard.ZstdError as error:
        raise HostileArchive(f"update cannot be expanded: {error}") from error


def _read(reader: zstandard.ZstdDecompressionReader, size_bytes: int) -> bytes:
    parts, missing = [], size_bytes
    try:
        while missing and (part := reader.read(min(missing, _CHUNK_BYTES))):
            parts.append(part)
            missing -= len(part)
    except zstandard.ZstdError as error:
        raise HostileArchive(f"update cannot be expanded: {error}") from error
    if missing:
        raise HostileArchive("update ends early")
    return b"".join(parts)


def _checked(sha256: str, content: bytes) -> bytes:
    if hashlib.sha256(content).hexdigest() != sha256:
        raise HostileArchive(f"update makes a file that is not {sha256[:16]}…")
    return content


def _write(path: Path, entry: ManifestEntry, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, entry.mode)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        os.fchmod(stream.fileno(), entry.mode)


def _take(source: Path, source_entry: ManifestEntry, path: Path, entry: ManifestEntry) -> None:
    """Link a file of the base, or copy it where its mode or the file system forbids that."""
    if source_entry.mode == entry.mode:
        with contextlib.suppress(OSError):
            os.link(source, path, follow_symlinks=False)
            return
    _write(path, entry, source.read_bytes())
