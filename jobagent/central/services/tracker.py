"""The tracker's rules: who is in which swarm, and who is told of whom.  No I/O, no clock, no randomness of its own.

A swarm is known by the infohashes of a signed catalogue entry; nothing else is tracked, and where the catalogue
cannot be verified nothing is.  Peers of one site are told of each other first.  In a site with configured networks
only a few elected peers, or the site's seeders, are told of the outside, so that a package crosses the wide area
about once per site; where a seeder listens for what its site wants, nodes wait a moment for it.  BEP 3, 7, 23, 24,
27, 48 and 52; `ip=` is never believed.
"""

from __future__ import annotations

import enum
import ipaddress
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from jobagent.central.services.swarms import Address, Key, Peer, Place, Swarm
from jobagent.errors import JobAgentError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
LISTENING_S = 2.0  # after a site's seeder was seen to listen it counts as there
SITE_SEEDER_PATIENCE_S = 6.0  # of a site's nodes, until one of them is told of the outside all the same


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
    """A swarm that may exist: `key` joins its v1 and v2 infohashes, `namespaces` are the VOs that signed it."""

    key: str
    namespaces: frozenset[str]


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
    max_peers: int = 200_000
    max_peers_per_address: int = 64
    max_wanted: int = 100
    elected: int = 1
    needs_token: bool = False
    needs_site: bool = False


class Sites:
    """Sites by network; the longest prefix wins.  A look-up costs as much as there are lengths of prefixes."""

    def __init__(self, networks: Mapping[str, Iterable[Network]] | None = None) -> None:
        found: dict[tuple[int, int], dict[int, str]] = {}
        for site, nets in (networks or {}).items():
            for network in nets:
                host_bits = network.max_prefixlen - network.prefixlen
                prefix = int(network.network_address) >> host_bits
                found.setdefault((network.version, host_bits), {}).setdefault(prefix, site)
        self._by_host_bits = sorted(found.items())

    def of(self, address: Address) -> str:
        """Return the site of an address, empty where no network has it."""
        number = int(address)
        for (version, host_bits), sites in self._by_host_bits:
            if version == address.version and (site := sites.get(number >> host_bits)):
                return site
        return ""


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
        self._swarms: dict[str, Swarm] = {}
        self._joined = 0
        self._peer_count = 0
        self._swept_s = clock()
        self._site_received: Counter[str] = Counter()
        self._life = choice.getrandbits(32)  # tells the tags of one tracker from those of the next
        self._demands: Counter[str] = Counter()  # by site, how often it came to want something
        self._heard_s: dict[str, float] = {}  # by site, when its seeder was last seen to listen
        self.announces = 0
        self.refusals = 0
        self.received_bytes = 0  # by all peers since the start, from whomever

    def announce(self, announce: Announce) -> Answer:
        """Note the peer and return others for it.

        Raises:
            Refused: The swarm is not in the catalogue, or that cannot be verified, or the token is for another VO,
                or the peer is not of a site that may take part.
        """
        self.announces += 1
        try:
            tracked = self._tracked(announce.infohash)
            self._check_bearer(announce, tracked)
        except Refused:
            self.refusals += 1
            raise
        now = self._clock()
        self._sweep(now)
        swarm = self._swarms.setdefault(tracked.key, Swarm())
        is_complete = announce.left == 0
        busy = swarm.incomplete > 0 or not is_complete
        interval = self._interval_s(is_complete=is_complete, is_busy=busy)
        if announce.event is Event.STOPPED:
            self._remove(swarm, announce)
            asker = None
        else:
            asker = self._note(swarm, announce, now + 2 * interval + 30)
        home = self._home_peer(tracked.key, announce)
        wanted = min(announce.wanted, self.policy.max_wanted)
        peers = self._select(swarm, asker, wanted, home) if asker else ()
        awaits_seeder = asker is not None and self._awaits_seeder(asker.site, swarm.places[asker.site])
        if not is_complete and (awaits_seeder or not peers):
            interval = self.policy.min_interval_s  # it may have come before the seeder did
        return Answer(peers, interval, self.policy.min_interval_s, swarm.complete + len(home), swarm.incomplete)

    def _check_bearer(self, announce: Announce, tracked: Tracked) -> None:
        if announce.namespace is not None and announce.namespace not in tracked.namespaces:
            owners = ", ".join(sorted(tracked.namespaces))
            raise Refused(f"the token is for VO {announce.namespace}, the package belongs to {owners}")
        if self.policy.needs_site:
            site = self._sites.of(announce.address)
            if not site:
                raise Refused(f"{announce.address} is in no network of a site of this tracker")
            if announce.site not in {"", site}:
                raise Refused(f"the token is for site {announce.site}, {announce.address} is of {site}")

    def scrape(self, infohash: bytes) -> Counts | None:
        """Return the numbers of a swarm, None where it is not tracked; zeros where it is empty.

        Raises:
            Refused: The catalogue cannot be verified.
        """
        self._sweep(self._clock())
        allowed = self._allow_list()
        return self.counts(allowed[infohash].key) if infohash in allowed else None

    def site_of(self, address: Address, site: str = "") -> str:
        """Return the site of an asker; `site` may be signed.

        Raises:
            Refused: It is of no known site.
        """
        site = site or self._sites.of(address)
        if not site:
            raise Refused(f"no site of {address} is known")
        return site

    def listen(self, site: str) -> str:
        """Note that a site's seeder listens at this moment; return a tag that changes when the site wants more."""
        self._heard_s[site] = self._clock()
        return f"{self._life:08x}-{self._demands[site]}"

    def listens(self, site: str) -> bool:
        """Whether a site's seeder listens, as far as is known."""
        return self._clock() - self._heard_s.get(site, -math.inf) < LISTENING_S

    def wanted(self, site: str) -> list[str]:
        """Return the keys of the swarms in which nodes of a site are."""
        self._sweep(self._clock())
        places = ((key, swarm.places.get(site)) for key, swarm in self._swarms.items())
        return [key for key, place in places if place is not None and place.has_nodes]

    def counts(self, key: str) -> Counts:
        """Return the numbers of the swarm of that key."""
        swarm = self._swarms.get(key) or Swarm()
        by_site = {site: (p.complete, len(p.members) - p.complete) for site, p in swarm.places.items()}
        complete = swarm.complete + bool(self._home(key))
        return Counts(complete, swarm.incomplete, swarm.downloaded, swarm.transferred_bytes, by_site)

    def sites(self) -> dict[str, dict[str, int]]:
        """Complete and incomplete memberships, and bytes received since the start, by site; "" is elsewhere."""
        found = {s: {"complete": 0, "incomplete": 0, "received_bytes": n} for s, n in self._site_received.items()}
        for swarm in self._swarms.values():
            for site, place in swarm.places.items():
                found[site]["complete"] += place.complete
                found[site]["incomplete"] += len(place.members) - place.complete
        return dict(sorted(found.items()))

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

    def _note(self, swarm: Swarm, announce: Announce, expires_s: float) -> Peer:
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
        place = swarm.places.get(site)
        if not peer.is_seeder and (place is None or not place.has_nodes):
            self._demands[site] += 1
        received = max(0, announce.downloaded - (known.downloaded if known else 0))
        swarm.transferred_bytes += received
        self.received_bytes += received
        self._site_received[site] += received
        swarm.put(peer, self._clock())
        return peer

    def _make_place(self, swarm: Swarm, address: Address) -> None:
        """Evict the peer that announced longest ago where the swarm or the address has too many."""
        same = swarm.at_address.get(address, {})
        if len(same) >= self.policy.max_peers_per_address:
            self._drop(swarm, next(iter(same)))
        elif len(swarm.peers) >= self.policy.max_peers:
            self._drop(swarm, next(iter(swarm.peers)))

    def _remove(self, swarm: Swarm, announce: Announce) -> None:
        key = (announce.peer_id, announce.address)
        if key in swarm.peers:
            self._drop(swarm, key)

    def _drop(self, swarm: Swarm, key: Key) -> None:
        swarm.drop(key)
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

    def _select(self, swarm: Swarm, asker: Peer, wanted: int, home: list[Peer]) -> tuple[Peer, ...]:
        """Return peers for `asker`: its own site first, then what its site may see of the outside."""
        home = [] if asker.is_complete else home[:wanted]
        wanted -= len(home)
        if not asker.site:
            return (*home, *self._sample(self._outside(swarm, asker), wanted, asker))
        place = swarm.places[asker.site]
        chosen = self._sample(_useful(place, asker), wanted, asker)
        gateways = place.gateways(self.policy.elected)
        is_gateway = asker in gateways or not any(g.peer_id != asker.peer_id for g in gateways)
        if is_gateway and not self._awaits_seeder(asker.site, place):
            outside = self._outside(swarm, asker)
            chosen = chosen[: max(wanted // 2, wanted - sum(map(len, outside)))]
            chosen += [*self._sample(outside, wanted - len(chosen), asker), *home]
        return tuple(chosen)

    def _awaits_seeder(self, site: str, place: Place) -> bool:
        """Whether a site's seeder is about to join: it listens, and had little time since the first node came."""
        is_new = self._clock() - place.began_s < SITE_SEEDER_PATIENCE_S
        return is_new and not place.seeders and self.listens(site)

    def _outside(self, swarm: Swarm, asker: Peer) -> list[list[Peer]]:
        """Peers elsewhere: those without a site, and the gateways of theirs."""
        gateways = [
            gateway
            for site, place in swarm.places.items()
            if site and site != asker.site and not self._awaits_seeder(site, place)
            for gateway in place.gateways(self.policy.elected)
            if gateway.port and not (gateway.is_complete and asker.is_complete)
        ]
        nowhere = swarm.places.get("")
        return [gateways, *(_useful(nowhere, asker) if nowhere else ())]

    def _sample(self, lists: list[list[Peer]], count: int, asker: Peer) -> list[Peer]:
        """Draw from several lists as if they were one, leaving out whoever asks."""
        total = sum(map(len, lists))
        places = self._choice.sample(range(total), min(count + 1, total))
        drawn = [peer for place in places if (peer := _at(lists, place)).peer_id != asker.peer_id]
        return drawn[: max(0, count)]


def _useful(place: Place, asker: Peer) -> list[list[Peer]]:
    """Who may be of use to a peer: everybody, but to a complete one only those that are not."""
    return [place.takers.peers] if asker.is_complete else [place.takers.peers, place.givers.peers]


def _at(lists: list[list[Peer]], place: int) -> Peer:
    """The peer at a place of several lists in a row."""
    for peers in lists:
        if place < len(peers):
            return peers[place]
        place -= len(peers)
    raise IndexError(place)
