"""Rate limits by time of day and by link: which bytes per second hold now, and for whom.

An entry of `[swarm] schedule` is `[DAYS ]HH:MM-HH:MM[ upload=BYTES][ download=BYTES]`, DAYS as in `Mon-Fri` or
`Sat,Sun`, times of the node's own clock; what ends before it begins goes over midnight.  The first entry that fits
holds, and where it says nothing the plain limit does.  No I/O, no clock of its own.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from jobagent.plugin import ConfigurationError
from jobagent_swarm.settings import SwarmSettings

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_REMEDY = "write it as in `Mon-Fri 08:00-18:00 upload=1000000 download=5000000`"
_ENTRY = re.compile(
    r"(?:(?P<days>[A-Za-z,-]+) )?(?P<begin>\d\d:\d\d)-(?P<end>\d\d:\d\d)"
    r"(?: upload=(?P<upload>\d+))?(?: download=(?P<download>\d+))?"
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes per second; 0 is no limit."""

    upload_bytes: int
    download_bytes: int


@dataclass(frozen=True, slots=True)
class Period:
    """An entry of the schedule; None is what it does not change."""

    days: frozenset[int]
    begin: datetime.time
    end: datetime.time
    upload_bytes: int | None
    download_bytes: int | None

    def has(self, now: datetime.datetime) -> bool:
        """Whether it holds at a local time."""
        today, yesterday = now.weekday() in self.days, (now.weekday() - 1) % 7 in self.days
        if self.begin < self.end:
            return today and self.begin <= now.time() < self.end
        return (today and now.time() >= self.begin) or (yesterday and now.time() < self.end)


@dataclass(frozen=True, slots=True)
class Schedule:
    """All entries in order, over the plain limits."""

    plain: Limits
    periods: tuple[Period, ...] = ()

    @classmethod
    def of(cls, settings: SwarmSettings) -> Schedule:
        """Read the settings; raises ConfigurationError naming the bad entry."""
        plain = Limits(settings.upload_rate_bytes, settings.download_rate_bytes)
        return cls(plain, tuple(map(_period, settings.schedule)))

    def at(self, now: datetime.datetime) -> Limits:
        """The limits at a local time."""
        period = next((p for p in self.periods if p.has(now)), None)
        if period is None:
            return self.plain
        upload, download = period.upload_bytes, period.download_bytes
        return Limits(
            self.plain.upload_bytes if upload is None else upload,
            self.plain.download_bytes if download is None else download,
        )


def networks(entries: Iterable[str]) -> list[tuple[str, str]]:
    """Return first and last address of networks; raises ConfigurationError naming the bad one."""
    ranges = []
    for entry in entries:
        try:
            network = ipaddress.ip_network(entry)
        except ValueError as error:
            raise ConfigurationError(
                f"[swarm] local_networks has {entry!r}: {error}", remedy="write networks, as in 128.141.0.0/16"
            ) from error
        ranges.append((str(network[0]), str(network[-1])))
    return ranges


def _period(entry: str) -> Period:
    match = _ENTRY.fullmatch(entry)
    try:
        if match is None:
            raise ValueError("that is no entry")
        begin, end = (datetime.time.fromisoformat(match[name]) for name in ("begin", "end"))
        days = frozenset(_days(match["days"] or "mon-sun"))
    except ValueError as error:
        raise ConfigurationError(f"[swarm] schedule has {entry!r}: {error}", remedy=_REMEDY) from error
    upload, download = (None if match[n] is None else int(match[n]) for n in ("upload", "download"))
    return Period(days, begin, end, upload, download)


def _days(text: str) -> Iterable[int]:
    for part in text.lower().split(","):
        first, _, last = part.partition("-")
        at = _day(first)
        yield at
        while last and at != _day(last):
            at = (at + 1) % 7
            yield at


def _day(name: str) -> int:
    if name not in DAYS:
        raise ValueError(f"{name!r} is no day")
    return DAYS.index(name)
