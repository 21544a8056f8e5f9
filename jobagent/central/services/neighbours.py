"""Who near by has a file that pilots fetch before they know of swarms: rules without I/O, clock and network.

The first stage is the one thing that every landing needs and plain `wget` must be able to fetch.  The first pilot of
a site gets it from the central server; the others are held until that one offers it, and are sent there.  Each helper
gets few at a time, and whoever has been helped helps: the copies grow like a tree.  Nobody is believed: the pilot
script knows the digest, and goes to the central server where a neighbour fails.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, field

from jobagent.central.services.swarms import Address
from jobagent.central.services.tracker import Sites

DEFAULT_PREFIXES = {4: 24, 6: 48}  # what counts as one site where none is configured


@dataclass(frozen=True, slots=True)
class Policy:
    """Seconds and counts.  `patience_s` must be below the read timeout of the pilot script's downloader (30 s)."""

    helped_at_a_time: int = 4
    help_s: float = 10.0  # what a download from a neighbour is thought to take at most
    patience_s: float = 20.0
    offer_s: float = 180.0  # an offer is renewed every minute
    max_helpers: int = 256  # of one file at one site


@dataclass(frozen=True, slots=True)
class FromHere:
    """The central server sends the file itself."""


@dataclass(frozen=True, slots=True)
class FromNeighbour:
    """A neighbour sends it."""

    address: Address
    port: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask again in a moment: somebody at the site is about to have it."""


@dataclass(slots=True)
class _Helper:
    port: int
    expires_s: float
    helped: dict[Address, float] = field(default_factory=dict)  # until when each is thought to be busy with it


@dataclass(slots=True)
class _Place:
    """One file at one site."""

    helpers: dict[Address, _Helper] = field(default_factory=dict)
    leader_until_s: float = 0.0


class Neighbourhood:
    """Not thread-safe: one event loop owns it.  `clock` gives monotonic seconds."""

    def __init__(
        self, *, clock: Callable[[], float], sites: Sites | None = None, policy: Policy | None = None
    ) -> None:
        self._clock = clock
        self._sites = sites or Sites()
        self._policy = policy or Policy()
        self._places: dict[tuple[str, str], _Place] = {}

    def ask(self, digest: str, asker: Address, *, waited_s: float = 0.0) -> FromHere | FromNeighbour | Wait:
        """Decide from where `asker`, who has been held for `waited_s` already, gets the file of that digest."""
        now = self._clock()
        place = self._place(digest, asker)
        free = {a: h for a, h in self._living(place, now).items() if a != asker}
        for helper in free.values():
            helper.helped = {a: until for a, until in helper.helped.items() if until > now}
        is_last_chance = waited_s >= self._policy.patience_s
        if free:
            address, helper = min(free.items(), key=lambda item: (len(item[1].helped), str(item[0])))
            if len(helper.helped) >= self._policy.helped_at_a_time and not is_last_chance:
                return Wait()
            helper.helped[asker] = now + self._policy.help_s
            return FromNeighbour(address, helper.port)
        if place.leader_until_s > now and not is_last_chance:
            return Wait()
        place.leader_until_s = now + self._policy.patience_s
        return FromHere()

    def failed(self, digest: str, asker: Address) -> None:
        """Forget the neighbour that `asker` was sent to and came back from."""
        place = self._place(digest, asker)
        now = self._clock()
        place.helpers = {a: h for a, h in place.helpers.items() if h.helped.get(asker, 0.0) <= now}

    def offer(self, digest: str, helper: Address, port: int) -> None:
        """Note that `helper` serves the file on `port` from now on, or with port 0 no longer."""
        now = self._clock()
        place = self._place(digest, helper)
        for other in place.helpers.values():
            other.helped.pop(helper, None)
        living = self._living(place, now)
        if not port:
            living.pop(helper, None)
        elif helper in living:
            living[helper].port, living[helper].expires_s = port, now + self._policy.offer_s
        elif len(living) < self._policy.max_helpers:
            living[helper] = _Helper(port, now + self._policy.offer_s)
        place.leader_until_s = 0.0

    def _living(self, place: _Place, now: float) -> dict[Address, _Helper]:
        place.helpers = {a: h for a, h in place.helpers.items() if h.expires_s > now}
        return place.helpers

    def _place(self, digest: str, address: Address) -> _Place:
        site = self._sites.of(address)
        if not site:
            prefix = DEFAULT_PREFIXES[address.version]
            site = str(ipaddress.ip_network((address, prefix), strict=False))
        return self._places.setdefault((digest, site), _Place())
