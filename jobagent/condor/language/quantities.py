"""Times and sizes as users write them."""

from __future__ import annotations

import math
import re

from jobagent.errors import JobSyntaxError

_DURATION = re.compile(r"\s*(\d{1,12}(?:\.\d{1,6})?)\s*([A-Za-z]*)\s*,?")
_SIZE = re.compile(r"\s*(\d{1,18}(?:\.\d{1,6})?)\s*(?:([KMGTP]?)i?B?)\s*", re.IGNORECASE)
_NUMBER = re.compile(r"\d{1,20}(\.\d+)?(e[+-]?\d{1,3})?", re.IGNORECASE)
_SECONDS = {"s": 1, "sec": 1, "second": 1, "min": 60, "m": 60, "minute": 60, "h": 3600, "hour": 3600}
_SECONDS |= {"d": 86400, "day": 86400, "w": 604800, "week": 604800}
_BYTES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
MAX_BYTES = 1 << 60
MAX_CORES = 100_000
MAX_SECONDS = 10 * 365 * 86400


def seconds(text: str) -> int:
    """Return the seconds of `28000`, `5 hours 2 minutes` or `1.5h`; raises JobSyntaxError."""
    total, position = 0.0, 0
    while position < len(text.rstrip()):
        found = _DURATION.match(text, position)
        unit = found[2].lower() if found else ""
        scale = _SECONDS.get(unit) or _SECONDS.get(unit.removesuffix("s")) or (0 if unit else 1)
        if found is None or not scale:
            raise _wrong(text, "a time")
        total += float(found[1]) * scale
        position = found.end()
    if not text.strip() or total > MAX_SECONDS:
        raise _wrong(text, "a time")
    return round(total)


def size_bytes(text: str, *, default_unit: str) -> int:
    """Return the bytes of `5000MB`, `2 GB` or, in `default_unit` (K, M, G or empty for bytes), `500`.

    Units are powers of 1024, as in AliEn and HTCondor.

    Raises:
        JobSyntaxError: Not of that form.
    """
    found = _SIZE.fullmatch(text)
    if found is None:
        raise _wrong(text, "a size")
    has_unit = found[2] or found[0].strip().upper().endswith("B")
    unit = found[2].upper() if has_unit else default_unit
    total = round(float(found[1]) * _BYTES.get(unit, 1))
    if total > MAX_BYTES:
        raise _wrong(text, "a size")
    return total


def whole(text: str) -> int:
    """Return a number of at least 0 rounded up; raises JobSyntaxError."""
    if not _NUMBER.fullmatch(text) or float(text) > MAX_BYTES:
        raise JobSyntaxError(f"{text[:40]!r} is not a number of at least 0")
    return math.ceil(float(text))


def cores(text: str) -> int:
    """Return the number of cores; raises JobSyntaxError."""
    if not text.isdecimal() or len(text) > 6 or int(text) > MAX_CORES:
        raise JobSyntaxError(f"{text[:40]!r} is not a number of cores")
    return int(text)


def _wrong(text: str, what: str) -> JobSyntaxError:
    example = "28000 (seconds) or 5 hours 2 minutes" if what == "a time" else "5000MB, 2 GB or a plain number"
    return JobSyntaxError(f"{text[:80]!r} is not {what}", remedy=f"write {example}")
