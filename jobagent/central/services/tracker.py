"""The tracker's rules: who is in which swarm, and who is told of whom.  No I/O, no clock, no randomness of its own.

A swarm is known by the infohashes of a signed catalogue entry; nothing else is tracked, and where the catalogue
cannot be verified nothing is.  Peers of one site are told of each other first.  In a site with configured networks
only a few elected peers, and site seeders, are told of the outside, so that a package crosses the wide area about
once per site.  BEP 3, 7, 23, 24, 27, 48 and 52; `ip=` is never believed.
"""

from __future__ import annotations

import enum
import ipaddress
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from jobagent.errors import JobAgentError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_SEEDER_PREFIX = b"-JS"  # peer id of the project's own seeders


class Refused(JobAgentError):
    """The announce is not served; its text is the `failure reason` that the client sees."""


class Event(enum.StrEnum):
    """The `event` of an announce; a regular one has none."""

    NONE = ""
    STARTED = "started"
    STOPPED = "stopped"
    COMPLETED = "completed"


@dataclass(frozen=True, slots=True)
class Announce:
    """One announce, parsed.

    `address` is that of the connection, `server` the address of ours that it reached; `site` is signed, or empty;
    `downloaded` are bytes since the peer started.
    """

    infohash: bytes
    peer_id: bytes
    address: Address
    port: int
    left: int
    downloaded: int = 0
    event: Event = Event.NONE
    wanted: int = 50
    namespace: str | None = None
    site: str = ""
    server: Address | None = None


@dataclass(frozen=True, slots=True)
class Peer:
    """A member of a swarm; `joined` counts up, so that the first of a site are its elected ones."""

    peer_id: bytes
    address: Address
    port: int
    is_complete: bool
    site: str
    joined: int
    expires_s: float
    downloaded: int = 0

    @property
    def is_seeder(self) -> bool:
        """Whether it is one of the project's own seeders, central or at a site."""
        return self.peer_id.startswith(_SEEDER_PREFIX)


@dataclass(frozen=True, slots=True)
class Answer:
    """What an announcing peer is told."""

    peers: tuple[Peer, ...]
    interval_s: int
    min_interval_s: int
    complete: int
    incomplete: int


@dataclass(frozen=True, slots=True)
class Counts:
    """A swarm in numbers; `downloaded` counts completions, `transferred_bytes` what peers said they received, both
    since the tracker started.  `by_site` holds complete and incomplete peers.
    """

    complete: int
    incomplete: int
    downloaded: int
    transferred_bytes: int = 0
    by_site: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tracked:
    """A swarm that may exist: `key` joins its v1 and v2 infohashes, `namespace` is the VO that signed it."""

    key: str
    namespace: str


Home = Callable[[str], int]
"""Returns the port of the seeder that runs beside the tracker and offers the swarm of that key, else 0."""

AllowList = Callable[[], Mapping[bytes, Tracked] | None]
"""Returns tracked swarms by 20-byte infohash (v1, and v2 truncated), or None where that cannot be verified now."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits and intervals of a tracker.  Seconds and counts."""

    busy_interval_s: int = 20
    seeding_interval_s: int = 60
    idle_interval_s: int = 300
    min_interval_s: int = 5
    max_announces_per_s: int = 3000
    max_peers: int = 20_000
    max_peers_per_address: int = 64
    max_wanted: int = 100
    elected: int = 1
    needs_token: bool = False


class Sites:
    """Sites by network; the longest prefix wins."""

    def __init__(self, networks: Mapping[str, Iterable[Network]] | None = None) -> None:
        pairs = [(network, site) for site, nets in (networks or {}).items() for network in nets]
        self._networks = sorted(pairs, key=lambda pair: -pair[0].prefixlen)

    def of(self, address: Address) -> str:
        """Return the site of an address, empty where no network has it."""
        return next((site for net, site in self._networks if address.version == net.version and address in net), "")


class _Swarm:
    def __init__(self) -> None:
        self.peers: dict[tuple[bytes, Address], Peer] = {}  # nobody can replace a peer from another address
        self.downloaded = 0
        self.transferred_bytes = 0


def _no_home(key: str) -> int:
    return 0


class Tracker:
    """All swarms.  Not thread-safe: one event loop owns it.

    Args:
        allowed: What may be tracked, asked at each announce.
        clock: Monotonic seconds.
        choice: Randomness of peer lists.
        home: The seeder in the same process; each peer is told of it under the address by which it reached us.
    """

    def __init__(
        self,
        allowed: AllowList,
        *,
        clock: Callable[[], float],
        choice: random.Random,
        sites: Sites | None = None,
        home: Home = _no_home,
        policy: Policy | None = None,
    ) -> None:
        self._allowed = allowed
        self._clock = clock
        self._choice = choice
        self._sites = sites or Sites()
        self._home = home
        self.policy = policy or Policy()
        self._swarms: dict[str, _Swarm] = {}
        self._joined = 0
        self._peer_count = 0
        self._swept_s = clock()
        self.announces = 0
        self.refusals = 0

    def announce(self, announce: Announce) -> Answer:
        """Note the peer and return others for it.

        Raises:
            Refused: The swarm is not in the catalogue, or that cannot be verified, or the token is for another VO.
        """
        self.announces += 1
        try:
            tracked = self._tracked(announce.infohash)
            if announce.namespace is not None and announce.namespace != tracked.namespace:
                raise Refused(f"the token is for VO {announce.namespace}, the package belongs to {tracked.namespace}")
        except Refused:
            self.refusals += 1
            raise
        now = self._clock()
        self._sweep(now)
        swarm = self._swarms.setdefault(tracked.key, _Swarm())
        is_complete = announce.left == 0
        busy = any(not p.is_complete for p in swarm.peers.values()) or not is_complete
        interval = self._interval_s(is_complete=is_complete, is_busy=busy)
        if announce.event is Event.STOPPED:
            self._remove(swarm, announce)
            asker = None
        else:
            asker = self._note(swarm, announce, now + 2 * interval + 30)
        complete = sum(p.is_complete for p in swarm.peers.values())
        incomplete = len(swarm.peers) - complete
        home = self._home_peer(tracked.key, announce)
        wanted = min(announce.wanted, self.policy.max_wanted)
        peers = self._select(swarm, asker, wanted, home) if asker else ()
        if not peers and not is_complete:
            interval = self.policy.min_interval_s  # it may have come before the seeder did
        return Answer(peers, interval, self.policy.min_interval_s, complete + len(home), incomplete)

    def scrape(self, infohash: bytes) -> Counts | None:
        """Return the numbers of a swarm, None where it is not tracked; zeros where it is empty.

        Raises:
            Refused: The catalogue cannot be verified.
        """
        self._sweep(self._clock())
        allowed = self._allow_list()
        return self.counts(allowed[infohash].key) if infohash in allowed else None

    def wanted(self, address: Address, site: str = "") -> list[str]:
        """Return the keys of the swarms in which nodes of the asker's site are; its `site` may be signed.

        Raises:
            Refused: The asker is of no known site.
        """
        self._sweep(self._clock())
        site = site or self._sites.of(address)
        if not site:
            raise Refused(f"no site of {address} is known")
        return [
            key
            for key, swarm in self._swarms.items()
            if any(p.site == site and not p.is_seeder for p in swarm.peers.values())
        ]

    def counts(self, key: str) -> Counts:
        """Return the numbers of the swarm of that key."""
        swarm = self._swarms.get(key) or _Swarm()
        by_site: dict[str, tuple[int, int]] = {}
        for peer in swarm.peers.values():
            complete, incomplete = by_site.get(peer.site, (0, 0))
            by_site[peer.site] = (complete + peer.is_complete, incomplete + (not peer.is_complete))
        total = sum(c for c, _ in by_site.values())
        incomplete = len(swarm.peers) - total
        total += bool(self._home(key))
        return Counts(total, incomplete, swarm.downloaded, swarm.transferred_bytes, by_site)

    @property
    def peer_count(self) -> int:
        """Members of all swarms."""
        return self._peer_count

    def _allow_list(self) -> Mapping[bytes, Tracked]:
        allowed = self._allowed()
        if allowed is None:
            raise Refused("the catalogue cannot be verified now")
        return allowed

    def _tracked(self, infohash: bytes) -> Tracked:
        tracked = self._allow_list().get(infohash)
        if tracked is None:
            raise Refused("this torrent is not in the catalogue")
        return tracked

    def _interval_s(self, *, is_complete: bool, is_busy: bool) -> int:
        policy = self.policy
        wanted = policy.busy_interval_s if not is_complete else policy.seeding_interval_s
        if not is_busy:
            wanted = policy.idle_interval_s
        return max(wanted, 2 * self._peer_count // policy.max_announces_per_s)  # hybrid torrents announce twice

    def _note(self, swarm: _Swarm, announce: Announce, expires_s: float) -> Peer:
        key = (announce.peer_id, announce.address)
        known = swarm.peers.get(key)
        is_complete = announce.left == 0
        if announce.event is Event.COMPLETED and (known is None or not known.is_complete):
            swarm.downloaded += 1
        if known is None:
            self._make_place(swarm, announce.address)
            self._joined += 1
            self._peer_count += 1
        site = announce.site or self._sites.of(announce.address)
        joined = known.joined if known else self._joined
        peer = Peer(
            announce.peer_id,
            announce.address,
            announce.port,
            is_complete,
            site,
            joined,
            expires_s,
            announce.downloaded,
        )
        swarm.transferred_bytes += max(0, announce.downloaded - (known.downloaded if known else 0))
        swarm.peers[key] = peer
        return peer

    def _make_place(self, swarm: _Swarm, address: Address) -> None:
        """Evict the peer that announced longest ago where the swarm or the address has too many."""
        full = len(swarm.peers) >= self.policy.max_peers
        same = [k for k, p in swarm.peers.items() if p.address == address]
        if full or len(same) >= self.policy.max_peers_per_address:
            among = swarm.peers if len(same) < self.policy.max_peers_per_address else same
            self._drop(swarm, min(among, key=lambda k: swarm.peers[k].expires_s))

    def _remove(self, swarm: _Swarm, announce: Announce) -> None:
        key = (announce.peer_id, announce.address)
        if key in swarm.peers:
            self._drop(swarm, key)

    def _drop(self, swarm: _Swarm, key: tuple[bytes, Address]) -> None:
        del swarm.peers[key]
        self._peer_count -= 1

    def _sweep(self, now: float) -> None:
        """Drop expired peers, at most once a second."""
        if now - self._swept_s < 1:
            return
        self._swept_s = now
        for name, swarm in list(self._swarms.items()):
            for key in [k for k, p in swarm.peers.items() if p.expires_s <= now]:
                self._drop(swarm, key)
            if not swarm.peers and not swarm.downloaded:
                del self._swarms[name]

    def _home_peer(self, key: str, announce: Announce) -> list[Peer]:
        port = self._home(key)
        if not port or announce.server is None:
            return []
        return [Peer(b"-JS0000-in-this-host", announce.server, port, True, "", 0, self._clock())]

    def _select(self, swarm: _Swarm, asker: Peer, wanted: int, home: list[Peer]) -> tuple[Peer, ...]:
        """Return peers for `asker`: its own site first, then what its site may see of the outside."""
        home = [] if asker.is_complete else home[:wanted]
        wanted -= len(home)
        useful = [
            p
            for p in swarm.peers.values()
            if p.port and p.peer_id != asker.peer_id and not (p.is_complete and asker.is_complete)
        ]
        if not asker.site:
            return (*home, *self._sample(self._visible_outside(swarm, useful, ""), wanted))
        near = [p for p in useful if p.site == asker.site]
        chosen = self._sample(near, wanted)
        gateways = self._gateways(swarm, asker.site)
        if asker in gateways or not any(g.peer_id != asker.peer_id for g in gateways):
            far = self._visible_outside(swarm, [p for p in useful if p.site != asker.site], asker.site)
            chosen = chosen[: max(wanted // 2, wanted - len(far))]
            chosen += self._sample(far, wanted - len(chosen)) + home
        return tuple(chosen)

    def _visible_outside(self, swarm: _Swarm, peers: list[Peer], own_site: str) -> list[Peer]:
        """Of peers elsewhere: those without a site, and the gateways of theirs."""
        gateways = {s: self._gateways(swarm, s) for s in {p.site for p in peers} if s and s != own_site}
        return [p for p in peers if not p.site or p in gateways.get(p.site, ())]

    def _gateways(self, swarm: _Swarm, site: str) -> list[Peer]:
        """The peers of a site that talk to the outside: its seeders, else the first that came."""
        members = sorted((p for p in swarm.peers.values() if p.site == site), key=lambda p: p.joined)
        seeders = [p for p in members if p.is_seeder]
        return seeders or members[: self.policy.elected]

    def _sample(self, peers: list[Peer], count: int) -> list[Peer]:
        return self._choice.sample(peers, min(count, len(peers)))
