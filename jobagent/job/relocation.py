"""Making a tree work at the path where it was installed, although it was built for another.

The publisher finds what names the build prefix and writes the record `.jobagent/relocate` into the tree; here the
record is carried out, after the tree was compared with its signed manifest and before the cache makes it visible.

Form of the record, UTF-8, fields separated by tabs, one line each:

    /the/build/prefix                            the first line: what is replaced
    text<TAB>bin/foo-config                      every occurrence in this file becomes the installed path
    loader<TAB>lib/ld-linux-x86-64.so.2<TAB>bin/foo
                                                 this program's PT_INTERP becomes the first path, installed

A loader field has `LOADER_BYTES` of room (the kernel wants a fixed place); a shorter path is padded with slashes in
front, which changes nothing about its meaning.  ELF search paths need no record: they are relative to $ORIGIN.
"""

from __future__ import annotations

import os
import re
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from jobagent.contracts import ManifestEntry
from jobagent.errors import HostileArchive, ScratchUnusable

RECORD = ".jobagent/relocate"
LOADER_BYTES = 1000  # batch systems nest their scratch directories deeply; the kernel allows 4096
LOADER_PLACEHOLDER = "/" + "P" * (LOADER_BYTES - 1)
MAX_RECORD_BYTES = 16 << 20
MAX_TEXT_BYTES = 64 << 20  # of one rewritten file, before and after
MIN_PREFIX_PARTS = 2  # `/usr` would rewrite half of every script
_ELF_PT_INTERP = 3


@dataclass(frozen=True, slots=True)
class Record:
    """What must be rewritten.  `loaders` are pairs of the loader and the program, both relative to the tree."""

    prefix: str
    texts: tuple[str, ...] = ()
    loaders: tuple[tuple[str, str], ...] = ()

    def encode(self) -> bytes:
        """Return the record's file; raises ValueError where a path cannot be written in it."""
        lines = [self.prefix]
        lines += [f"text\t{path}" for path in sorted(self.texts)]
        lines += [f"loader\t{loader}\t{path}" for loader, path in sorted(self.loaders)]
        if any(c in field for field in (self.prefix, *self.texts, *sum(self.loaders, ())) for c in "\t\n"):
            raise ValueError("a path has a tab or newline")
        return "".join(f"{line}\n" for line in lines).encode(errors="surrogateescape")

    @classmethod
    def decode(cls, data: bytes) -> Record:
        """Parse the record's file; raises HostileArchive where it is malformed."""
        prefix, *lines = data.decode(errors="surrogateescape").removesuffix("\n").split("\n")
        if not is_prefix(prefix):
            raise HostileArchive(f"relocation record has the build prefix {prefix[:200]!r}")
        texts, loaders = [], []
        for line in lines:
            match line.split("\t"):
                case ["text", path]:
                    texts.append(path)
                case ["loader", loader, path]:
                    loaders.append((loader, path))
                case _:
                    raise HostileArchive(f"relocation record has the line {line[:200]!r}")
        return cls(prefix, tuple(texts), tuple(loaders))


def is_prefix(path: str) -> bool:
    """Whether `path` is specific enough to be searched for and replaced."""
    parts = path.split("/")
    return parts[0] == "" and len(parts) > MIN_PREFIX_PARTS and {"", ".", ".."}.isdisjoint(parts[1:])


def occurrences(prefix: str) -> re.Pattern[bytes]:
    """Return the pattern of `prefix` as a whole path: `/opt/a` is not found in `/opt/ab` nor in `/x/opt/a`."""
    return re.compile(rb"(?<![A-Za-z0-9_.+~-])" + re.escape(os.fsencode(prefix)) + rb"(?![A-Za-z0-9_.+~-])")


def relocate(tree: Path, final_tree: Path, entries: Sequence[ManifestEntry]) -> list[ManifestEntry]:
    """Rewrite the recorded files of `tree` for `final_tree`; return the manifest of what is on disk then.

    Files are replaced, not changed in place: another tree may share their inodes.

    Raises:
        HostileArchive: The record is malformed or names what is not a file of the tree.
        ScratchUnusable: The installed path is too long for a loader field.
    """
    by_path = {entry.path: entry for entry in entries}
    if RECORD not in by_path:
        return list(entries)
    if by_path[RECORD].size_bytes > MAX_RECORD_BYTES:
        raise HostileArchive(f"relocation record has {by_path[RECORD].size_bytes} bytes")
    record = Record.decode((tree / RECORD).read_bytes())
    for path in (*record.texts, *(path for pair in record.loaders for path in pair)):
        if path not in by_path or by_path[path].kind != "f":
            raise HostileArchive(f"relocation record names {path[:200]!r}, which is no file of the package")
    pattern = occurrences(record.prefix)
    for path in record.texts:
        if by_path[path].size_bytes > MAX_TEXT_BYTES:
            raise HostileArchive(f"relocation record names {path[:200]!r} of {by_path[path].size_bytes} bytes")
        data = _replaced((tree / path).read_bytes(), pattern, os.fsencode(final_tree))
        by_path[path] = _rewrite(tree, by_path[path], data)
    for loader, path in record.loaders:
        data = _with_loader((tree / path).read_bytes(), loader_field(final_tree / loader), path)
        by_path[path] = _rewrite(tree, by_path[path], data)
    return list(by_path.values())


def loader_field(loader: Path) -> bytes:
    """Return a loader's path padded to the fixed length; raises ScratchUnusable where it is longer."""
    raw = os.fsencode(loader)
    if len(raw) > LOADER_BYTES:
        raise ScratchUnusable(
            f"{loader} is longer than the {LOADER_BYTES} bytes that a program's loader field holds",
            remedy="use a cache or scratch directory with a shorter path",
        )
    return raw.rjust(LOADER_BYTES, b"/")


def interpreter_span(stream: BinaryIO) -> tuple[int, int] | None:
    """Return offset and length of a 64-bit little-endian ELF program's PT_INTERP, or None where it has none.

    The layout is that of elf(5): e_phoff at 32, e_phentsize at 54; p_type, p_flags, p_offset, …, p_filesz.
    """
    header = stream.read(64)
    if len(header) < 64 or header[:6] != b"\x7fELF\x02\x01":
        return None
    (table,) = struct.unpack_from("<Q", header, 32)
    size, count = struct.unpack_from("<HH", header, 54)
    stream.seek(table)
    for _ in range(count):
        item = stream.read(size)
        if len(item) < 56:
            return None
        if struct.unpack_from("<I", item)[0] == _ELF_PT_INTERP:
            return struct.unpack_from("<Q", item, 8)[0], struct.unpack_from("<Q", item, 32)[0]
    return None


def _replaced(data: bytes, pattern: re.Pattern[bytes], path: bytes) -> bytes:
    count = sum(1 for _ in pattern.finditer(data))
    if len(data) + count * len(path) > MAX_TEXT_BYTES:
        raise HostileArchive(f"relocation would grow a file past {MAX_TEXT_BYTES >> 20} MB")
    return pattern.sub(lambda _: path, data)


def _with_loader(data: bytes, field: bytes, path: str) -> bytes:
    span = interpreter_span(BytesIO(data))
    if span is None or span[1] != LOADER_BYTES + 1 or span[0] + span[1] > len(data):
        raise HostileArchive(f"relocation record names {path[:200]!r}, which has no loader field to fill")
    return data[: span[0]] + field + b"\0" + data[span[0] + span[1] :]


def _rewrite(tree: Path, entry: ManifestEntry, data: bytes) -> ManifestEntry:
    target = tree / entry.path
    descriptor, temporary = tempfile.mkstemp(prefix=".relocate-", dir=target.parent)
    with open(descriptor, "wb") as stream:
        stream.write(data)
        os.fchmod(stream.fileno(), entry.mode)
    os.replace(temporary, target)
    return replace(entry, size_bytes=len(data), sha256=sha256(data).hexdigest())
