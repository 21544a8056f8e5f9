"""Tar stream → members: reads POSIX (pax) and GNU headers, and refuses whatever a package has no use for.

`tarfile` is not used: its filters can be escaped, and it seeks, guesses and repairs.  This reader does none of that.
It knows nothing of files: names are checked and data is handed on, in order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from jobagent.plugin import HostileArchive

BLOCK_BYTES = 512
MAX_EXTENSION_BYTES = 16 << 10  # of all extended headers of one member: a path and a link target fit twice
MEMBER_OVERHEAD_BYTES = MAX_EXTENSION_BYTES + 8 * 512  # headers and padding, at most
MAX_TRAILER_BYTES = 1 << 20  # zeros after the end: tar fills records of up to this size
_REGULAR, _HARD_LINK, _SYMLINK, _DIRECTORY = b"0", b"1", b"2", b"5"
_PAX, _PAX_GLOBAL, _GNU_NAME, _GNU_LINK = b"x", b"g", b"L", b"K"
_EXTENSIONS = frozenset({_PAX, _PAX_GLOBAL, _GNU_NAME, _GNU_LINK})
_KINDS = {_REGULAR: "f", b"\0": "f", _HARD_LINK: "h", _SYMLINK: "l", _DIRECTORY: "d"}
_PAX_RECORD = re.compile(rb"(\d{1,6}) ([^=\n]+)=")
_FORBIDDEN_BITS = 0o6000  # set-id; sticky is dropped like every bit but u+x
_ZERO_BLOCK = bytes(BLOCK_BYTES)


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a tar: `kind` is `f` file, `d` directory, `l` symlink or `h` hard link to an earlier member."""

    path: str
    kind: str
    mode: int = 0
    size_bytes: int = 0
    target: str = ""


class Source:
    """The uncompressed bytes, read once; counts them against a limit."""

    def __init__(self, buffers: Iterator[bytes], limit_bytes: int) -> None:
        self._buffers = buffers
        self._buffer = memoryview(b"")
        self._left_bytes = limit_bytes

    def piece(self, limit: int) -> memoryview:
        """Return up to `limit` bytes that lie together, at least one; empty at the end."""
        if not self._buffer:
            self._buffer = memoryview(next(self._buffers, b""))
            self._left_bytes -= len(self._buffer)
            if self._left_bytes < 0:
                raise HostileArchive("archive unpacks to more than was signed")
        piece, self._buffer = self._buffer[:limit], self._buffer[limit:]
        return piece

    def pieces(self, size_bytes: int) -> Iterator[memoryview]:
        """Yield exactly `size_bytes`; raises HostileArchive where the archive ends before."""
        while size_bytes:
            piece = self.piece(size_bytes)
            if not piece:
                raise HostileArchive("archive is truncated")
            size_bytes -= len(piece)
            yield piece

    def read(self, size_bytes: int) -> bytes:
        """Return exactly `size_bytes`."""
        piece = self.piece(size_bytes)
        if len(piece) == size_bytes:
            return bytes(piece)
        return bytes(piece) + b"".join(self.pieces(size_bytes - len(piece)))


def members(source: Source) -> Iterator[Member]:
    """Yield the members; the caller takes the data of each (`source.pieces`) and its padding before the next.

    Raises:
        HostileArchive: Anything that is not a plain tar of files, directories and links.
    """
    extended: dict[str, bytes] = {}
    extension_bytes = 0
    while (header := source.read(BLOCK_BYTES)) != _ZERO_BLOCK:
        _check_sum(header)
        kind = header[156:157]
        size_bytes = _number(header[124:136], "size")
        if kind in _EXTENSIONS:
            extension_bytes += size_bytes + BLOCK_BYTES
            if extension_bytes > MAX_EXTENSION_BYTES:
                raise HostileArchive(f"archive has extended headers of {extension_bytes} bytes for one member")
            data = source.read(size_bytes + padding(size_bytes))[:size_bytes]
            _extend(extended, kind, data)
            continue
        yield _member(header, size_bytes, extended)
        extended, extension_bytes = {}, 0
    _check_end(source)


def padding(size_bytes: int) -> int:
    """Return how many bytes fill the last block of `size_bytes`."""
    return -size_bytes % BLOCK_BYTES


def _member(header: bytes, size_bytes: int, extended: dict[str, bytes]) -> Member:
    raw_kind = header[156:157]
    if raw_kind not in _KINDS:
        raise HostileArchive(
            f"archive has a member of type {raw_kind!r}: only files, directories and links are allowed"
        )
    kind = _KINDS[raw_kind]
    name = extended.get("path", _full_name(header))
    link = extended.get("linkpath", _string(header[157:257]))
    if "size" in extended:
        size_bytes = _decimal(extended["size"])
    mode = _number(header[100:108], "mode")
    path, target = _name(name), _name(link) if kind == "h" else _decoded(link)
    if mode & _FORBIDDEN_BITS:
        raise HostileArchive(f"archive member {path[:200]!r} has a set-id bit")
    if kind != "f" and size_bytes:
        raise HostileArchive(f"archive member {path[:200]!r} has data without being a file")
    if raw_kind == b"\0" and path.endswith("/"):
        kind = "d"  # as tar did before POSIX
    if kind == "d":
        path = path.rstrip("/")
    return Member(path, kind, 0o755 if mode & 0o100 else 0o644, size_bytes, target)


def _extend(extended: dict[str, bytes], kind: bytes, data: bytes) -> None:
    if kind == _GNU_NAME:
        extended["path"] = _string(data)
    elif kind == _GNU_LINK:
        extended["linkpath"] = _string(data)
    else:
        records = _pax_records(data)
        if kind == _PAX:
            extended.update(records)
        elif not records.keys().isdisjoint({"path", "linkpath", "size"}):
            raise HostileArchive("archive has a global header that renames members")


def _pax_records(data: bytes) -> dict[str, bytes]:
    """Parse `length key=value\\n` records; keeps what changes a member, refuses sparse files, ignores the rest."""
    records: dict[str, bytes] = {}
    offset = 0
    while offset < len(data):
        match = _PAX_RECORD.match(data, offset)
        end = offset + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            raise HostileArchive("archive has a malformed pax header")
        key = match[2].decode(errors="replace")
        if key.startswith("GNU.sparse."):
            raise HostileArchive("archive has a sparse file")
        if key in {"path", "linkpath", "size"}:
            records[key] = data[match.end() : end - 1]
        offset = end
    return records


def _full_name(header: bytes) -> bytes:
    name = _string(header[:100])
    if header[257:263] != b"ustar\0":  # GNU keeps other things there
        return name
    prefix = _string(header[345:500])
    return prefix + b"/" + name if prefix else name


def _check_sum(header: bytes) -> None:
    if header[257:262] != b"ustar":
        raise HostileArchive("archive is no tar, or is damaged")
    # The sum of all bytes with the field itself taken as blanks (POSIX pax interchange format).
    if sum(header) - sum(header[148:156]) + 8 * 0x20 != _number(header[148:156], "checksum"):
        raise HostileArchive("archive has a damaged header")


def _check_end(source: Source) -> None:
    left = MAX_TRAILER_BYTES
    while piece := source.piece(left + 1):
        left -= len(piece)
        if left < 0 or piece.tobytes().count(0) != len(piece):
            raise HostileArchive("archive has data after its end")


def _number(field: bytes, what: str) -> int:
    """Read an octal field, or GNU's binary one; neither may be negative."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big", signed=False) & ((1 << (8 * len(field) - 1)) - 1)
        if field[0] & 0x40 or value >= 1 << 62:
            raise HostileArchive(f"archive has a member with {what} out of range")
        return value
    digits = field.strip(b" \0")
    if digits and not re.fullmatch(rb"[0-7]+", digits):
        raise HostileArchive(f"archive has a member with a malformed {what}")
    return int(digits or b"0", 8)


def _decimal(value: bytes) -> int:
    if not re.fullmatch(rb"\d{1,18}", value):
        raise HostileArchive("archive has a member with a malformed size")
    return int(value)


def _string(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _name(raw: bytes) -> str:
    name = _decoded(raw)
    while name.startswith("./"):  # as `tar -c .` writes every name
        name = name[2:]
    return name


def _decoded(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
