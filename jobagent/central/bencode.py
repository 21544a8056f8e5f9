"""Bencoding in its canonical form (BEP 3): what torrents are written in and trackers answer with.

Decoding is for hostile input: bounded in bytes, depth and number of values, and strict, so that
`encode(decode(data)) == data` always holds.  Knows nothing of torrents.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Value = int | bytes | list["Value"] | dict[bytes, "Value"]
Encodable = int | bytes | str | Sequence["Encodable"] | Mapping[bytes, "Encodable"] | Mapping[str, "Encodable"]

_INTEGER = re.compile(rb"i(0|-?[1-9][0-9]{0,18})e")
_LENGTH = re.compile(rb"(0|[1-9][0-9]{0,9}):")


class Malformed(ValueError):
    """The data is not canonical bencoding, or passes a limit; the message says where."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of what is decoded: bytes of input, nesting, and number of values."""

    size_bytes: int = 4 << 20  # 100 GB in 16 MiB pieces need 0.4 MB
    depth: int = 10
    values: int = 10_000


def encode(value: Encodable) -> bytes:
    """Return the canonical form; text becomes UTF-8, keys are sorted by their bytes."""
    parts: list[bytes] = []
    _encode(value, parts)
    return b"".join(parts)


def _encode(value: Encodable, parts: list[bytes]) -> None:
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        parts += (b"%d:" % len(value), value)
    elif isinstance(value, int):
        parts.append(b"i%de" % value)
    elif isinstance(value, Mapping):
        items = {k.encode() if isinstance(k, str) else k: v for k, v in value.items()}
        parts.append(b"d")
        for key in sorted(items):
            parts += (b"%d:" % len(key), key)
            _encode(items[key], parts)
        parts.append(b"e")
    else:
        parts.append(b"l")
        for item in value:
            _encode(item, parts)
        parts.append(b"e")


def decode(data: bytes, limits: Limits | None = None) -> Value:
    """Return the value that `data` encodes; raises Malformed where it is anything but canonical and within limits."""
    limits = limits or Limits()
    if len(data) > limits.size_bytes:
        raise Malformed(f"{len(data)} bytes, at most {limits.size_bytes} are accepted")
    reader = _Reader(data, limits)
    value = reader.value(depth=0)
    if reader.at != len(data):
        raise Malformed(f"{len(data) - reader.at} bytes follow the end")
    return value


class _Reader:
    def __init__(self, data: bytes, limits: Limits) -> None:
        self.at = 0
        self._data = data
        self._limits = limits
        self._values_left = limits.values

    def value(self, depth: int) -> Value:
        """Read one value; recursion is bounded by the depth limit."""
        self._values_left -= 1
        if self._values_left < 0:
            raise Malformed(f"more than {self._limits.values} values")
        if depth > self._limits.depth:
            raise Malformed(f"nested deeper than {self._limits.depth}")
        kind = self._data[self.at : self.at + 1]
        if kind == b"i":
            return self._integer()
        if kind == b"l":
            return self._list(depth)
        if kind == b"d":
            return self._dictionary(depth)
        return self._string()

    def _integer(self) -> int:
        match = _INTEGER.match(self._data, self.at)
        if match is None:
            raise Malformed(f"no canonical integer at byte {self.at}")
        self.at = match.end()
        return int(match[1])

    def _string(self) -> bytes:
        match = _LENGTH.match(self._data, self.at)
        if match is None:
            raise Malformed(f"no value at byte {self.at}" if self.at < len(self._data) else "ends too early")
        end = match.end() + int(match[1])
        if end > len(self._data):
            raise Malformed(f"the string at byte {self.at} is longer than the data")
        self.at = end
        return self._data[match.end() : end]

    def _list(self, depth: int) -> list[Value]:
        self.at += 1
        items: list[Value] = []
        while not self._at_end():
            items.append(self.value(depth + 1))
        return items

    def _dictionary(self, depth: int) -> dict[bytes, Value]:
        self.at += 1
        items: dict[bytes, Value] = {}
        previous: bytes | None = None
        while not self._at_end():
            key = self._string()
            if previous is not None and key <= previous:
                raise Malformed(f"key {key[:40]!r} is not in order at byte {self.at}")
            previous = key
            items[key] = self.value(depth + 1)
        return items

    def _at_end(self) -> bool:
        if self._data[self.at : self.at + 1] != b"e":
            return False
        self.at += 1
        return True
