"""Bencoding (BEP 3) of untrusted data: a strict decoder with limits before allocation, and an encoder.

Strict means canonical: sorted unique dictionary keys, no leading zeros, no `-0`, nothing behind the value.  So the
bytes of a value are the only bytes of that value, and an infohash is the hash of a slice of the torrent as it came.
Pure; knows nothing of torrents but `raw_member`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

Value: TypeAlias = "int | bytes | list[Value] | dict[bytes, Value]"
Encodable: TypeAlias = "int | bytes | str | Sequence[Encodable] | Mapping[bytes, Encodable]"

MAX_BYTES = 10 * 1024 * 1024  # a torrent of a 400 GB archive in 1 MiB pieces has 20 MB; none of ours comes near
MAX_DEPTH = 32  # BEP 52 file trees nest one level a directory; ours have one file
MAX_DIGITS = 20  # 64 bits and a sign
MAX_VALUES = 200_000  # a two-byte empty list costs 56 bytes of memory


def decode(data: bytes, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> Value:
    """Return the one value that `data` holds.

    Raises:
        ValueError: Not canonical bencoding, too big, too deep, or followed by more bytes; says at which offset.
    """
    value, end = _Decoder(data, max_bytes, max_depth).value(0, 0)
    if end != len(data):
        raise ValueError(f"{len(data) - end} bytes follow the value at offset {end}")
    return value


def raw_member(data: bytes, key: bytes, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> memoryview:
    """Return the encoded bytes of one member of the top-level dictionary, as they stand in `data`.

    Raises:
        ValueError: As in `decode`, or `data` is no dictionary, or has no such member.
    """
    decoder = _Decoder(data, max_bytes, max_depth)
    if data[:1] != b"d":
        raise ValueError("not a dictionary")
    found: memoryview | None = None
    position, previous = 1, None
    while data[position : position + 1] != b"e":
        name, start = decoder.key(position, previous)
        _, position = decoder.value(start, 1)
        if name == key:
            found = memoryview(data)[start:position]
        previous = name
    if position + 1 != len(data):
        raise ValueError(f"{len(data) - position - 1} bytes follow the value at offset {position + 1}")
    if found is None:
        raise ValueError(f"the dictionary has no member {key.decode(errors='replace')!r}")
    return found


def encode(value: Encodable) -> bytes:
    """Return the canonical encoding; text is encoded as UTF-8, keys are sorted."""
    parts: list[bytes] = []
    _encode(value, parts)
    return b"".join(parts)


def _encode(value: Encodable, parts: list[bytes]) -> None:
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        parts.append(b"%d:%b" % (len(value), value))
    elif isinstance(value, bool):
        raise TypeError("bencoding has no booleans")
    elif isinstance(value, int):
        parts.append(b"i%de" % value)
    elif isinstance(value, Mapping):
        parts.append(b"d")
        for key in sorted(value):
            _encode(key, parts)
            _encode(value[key], parts)
        parts.append(b"e")
    elif isinstance(value, Sequence):
        parts.append(b"l")
        for item in value:
            _encode(item, parts)
        parts.append(b"e")
    else:
        raise TypeError(f"cannot bencode {type(value).__name__}")


class _Decoder:
    """Recursive descent over one buffer; every method takes an offset and returns the value and its end."""

    __slots__ = ("_count", "_data", "_max_depth")

    def __init__(self, data: bytes, max_bytes: int, max_depth: int) -> None:
        if len(data) > max_bytes:
            raise ValueError(f"{len(data)} bytes, at most {max_bytes} are accepted")
        self._data = data
        self._max_depth = max_depth
        self._count = 0

    def value(self, position: int, depth: int) -> tuple[Value, int]:
        self._count += 1
        if self._count > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES} values at offset {position}")
        kind = self._data[position : position + 1]
        if kind == b"i":
            return self._integer(position + 1, b"e")
        if kind.isdigit():
            return self._string(position)
        if kind not in (b"l", b"d"):
            raise ValueError(f"no value at offset {position}")
        if depth >= self._max_depth:
            raise ValueError(f"nested deeper than {self._max_depth} at offset {position}")
        return self._list(position + 1, depth) if kind == b"l" else self._dictionary(position + 1, depth)

    def key(self, position: int, previous: bytes | None) -> tuple[bytes, int]:
        name, end = self._string(position)
        if previous is not None and name <= previous:
            raise ValueError(f"dictionary keys are not sorted and unique at offset {position}")
        return name, end

    def _integer(self, position: int, terminator: bytes) -> tuple[int, int]:
        end = self._data.find(terminator, position, position + MAX_DIGITS + 1)
        digits = self._data[position:end] if end >= 0 else b""
        unsigned = digits[1:] if digits[:1] == b"-" and terminator == b"e" else digits
        if not unsigned.isdigit() or (unsigned[:1] == b"0" and digits != b"0"):
            raise ValueError(f"no canonical integer at offset {position}")
        return int(digits), end + 1

    def _string(self, position: int) -> tuple[bytes, int]:
        length, start = self._integer(position, b":")
        if length > len(self._data) - start:
            raise ValueError(f"string of {length} bytes passes the end at offset {position}")
        return self._data[start : start + length], start + length

    def _list(self, position: int, depth: int) -> tuple[Value, int]:
        items: list[Value] = []
        while self._data[position : position + 1] != b"e":
            item, position = self.value(position, depth + 1)
            items.append(item)
        return items, position + 1

    def _dictionary(self, position: int, depth: int) -> tuple[Value, int]:
        members: dict[bytes, Value] = {}
        previous: bytes | None = None
        while self._data[position : position + 1] != b"e":
            name, position = self.key(position, previous)
            members[name], position = self.value(position, depth + 1)
            previous = name
        return members, position + 1
