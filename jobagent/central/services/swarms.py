"""Who is in which swarm: the tracker's memory.  An answer takes as long in a crowd as among few.

A hundred thousand nodes may want one package at once; whatever an announce needs (numbers, the first peers of a site,
some peers at random) is kept so that nobody counts or sorts them all.  Knows no rules; not thread-safe.
"""

from __future__ import annotations

import ipaddress
import itertools
from dataclasses import dataclass

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_SEEDER_PREFIX = b"-JS"  # peer id of the project's own seeders


Key = tuple[bytes, Address]
"""Peer id and address: nobody can replace a peer from another address."""


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
    def key(self) -> Key:
        """What it is known by."""
        return self.peer_id, self.address

    @property
    def is_seeder(self) -> bool:
        """Whether it is one of the project's own seeders, central or at a site."""
        return self.peer_id.startswith(_SEEDER_PREFIX)


class _Bag:
    """Peers by key, of which any number can be drawn at random in a time that does not grow with all of them."""

    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self._at: dict[Key, int] = {}

    def put(self, key: Key, peer: Peer) -> None:
        """Add or replace."""
        at = self._at.setdefault(key, len(self.peers))
        self.peers[at : at + 1] = [peer]

    def drop(self, key: Key) -> None:
        """Remove, where it is there; the last one takes its place."""
        at = self._at.pop(key, None)
        if at is None:
            return
        last = self.peers.pop()
        if at < len(self.peers):
            self.peers[at] = last
            self._at[last.key] = at


class Place:
    """The members of a swarm at one site since `began_s`; those that nobody can connect to are only counted."""

    def __init__(self, began_s: float) -> None:
        self.began_s = began_s
        self.members: dict[Key, Peer] = {}  # in the order of joining
        self.seeders: dict[Key, Peer] = {}
        self.complete = 0
        self.givers, self.takers = _Bag(), _Bag()

    def put(self, peer: Peer) -> None:
        """Add or replace."""
        known = self.members.get(peer.key)
        if known is not None and known.is_complete != peer.is_complete:
            (self.givers if known.is_complete else self.takers).drop(peer.key)
        self.complete += peer.is_complete - (known is not None and known.is_complete)
        self.members[peer.key] = peer
        if peer.is_seeder:
            self.seeders[peer.key] = peer
        bag = self.givers if peer.is_complete else self.takers
        if peer.port:
            bag.put(peer.key, peer)
        else:
            bag.drop(peer.key)

    def drop(self, key: Key) -> None:
        """Remove."""
        self.complete -= self.members.pop(key).is_complete
        self.seeders.pop(key, None)
        self.givers.drop(key)
        self.takers.drop(key)

    @property
    def has_nodes(self) -> bool:
        """Whether anybody but the project's seeders is there."""
        return len(self.members) > len(self.seeders)

    def gateways(self, elected: int) -> list[Peer]:
        """The peers that talk to the outside: the site's seeders, else the first that came."""
        return list(self.seeders.values()) or list(itertools.islice(self.members.values(), elected))


class Swarm:
    """The peers of one swarm."""

    def __init__(self) -> None:
        self.peers: dict[Key, Peer] = {}  # in the order of their last announces
        self.at_address: dict[Address, dict[Key, None]] = {}  # likewise
        self.places: dict[str, Place] = {}
        self.complete = 0
        self.downloaded = 0
        self.transferred_bytes = 0

    @property
    def incomplete(self) -> int:
        """Peers that want something."""
        return len(self.peers) - self.complete

    def put(self, peer: Peer, now_s: float) -> None:
        """Add or replace a peer, as the one that announced last."""
        if peer.key in self.peers:
            if self.peers[peer.key].site != peer.site:
                self.drop(peer.key)
            else:
                self.complete -= self.peers.pop(peer.key).is_complete
        self.peers[peer.key] = peer
        self.complete += peer.is_complete
        at_address = self.at_address.setdefault(peer.address, {})
        at_address.pop(peer.key, None)
        at_address[peer.key] = None
        self.places.setdefault(peer.site, Place(now_s)).put(peer)

    def drop(self, key: Key) -> None:
        """Remove a peer."""
        peer = self.peers.pop(key)
        self.complete -= peer.is_complete
        place, at_address = self.places[peer.site], self.at_address[peer.address]
        place.drop(key)
        del at_address[key]
        if not place.members:
            del self.places[peer.site]
        if not at_address:
            del self.at_address[peer.address]
