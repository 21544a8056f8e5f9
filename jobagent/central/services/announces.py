"""Announces and scrapes on the wire: query strings in, bencoding out.  Bounded, and independent of any web server.

BEP 3, 7 (peers6), 23 (compact), 24 (external ip), 48 (scrape); the query is taken apart as bytes, because infohashes
and peer ids are not text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from jobagent import bencode
from jobagent.central.services.swarms import Address, Peer
from jobagent.central.services.tracker import Announce, Answer, Counts, Event, Refused

MAX_QUERY_BYTES = 2048  # a scrape of 25 infohashes; an announce has about 350
MAX_SCRAPED = 64
MAX_HOLD_S = 20  # the answer to a site's seeder; proxies and firewalls end connections that are silent for longer
DEFAULT_WANTED = 50


@dataclass(frozen=True, slots=True)
class AnnounceQuery:
    """A parsed announce query: the announce as its token has yet to qualify it, the token, the form of the answer."""

    announce: Announce
    token: str
    is_compact: bool


def split(query: bytes) -> list[tuple[bytes, bytes]]:
    """Return the pairs of a query string in order; raises Refused where it is too long."""
    if len(query) > MAX_QUERY_BYTES:
        raise Refused(f"query has more than {MAX_QUERY_BYTES} bytes")
    pairs = (part.partition(b"=") for part in query.split(b"&") if part)
    return [(unquote_to_bytes(key), unquote_to_bytes(value)) for key, _, value in pairs]


def parse(query: bytes, address: Address, server: Address | None = None) -> AnnounceQuery:
    """Read an announce that came from `address` to our address `server`; raises Refused naming a bad parameter."""
    pairs = split(query)
    values = dict(pairs)
    if len(values) != len(pairs):
        raise Refused("a parameter is given twice")
    infohash, peer_id = values.get(b"info_hash", b""), values.get(b"peer_id", b"")
    if len(infohash) != 20 or len(peer_id) != 20:
        raise Refused("info_hash and peer_id must have 20 bytes")
    port = _number(values, b"port", 0)
    if port > 65535:
        raise Refused("port is greater than 65535")
    name = values.get(b"event", b"").decode("ascii", "replace")
    announce = Announce(
        infohash=infohash,
        peer_id=peer_id,
        address=plain(address),
        port=port,
        left=_number(values, b"left", 1),
        downloaded=_number(values, b"downloaded", 0),
        event=Event(name) if name in set(Event) else Event.NONE,  # BEP 21's `paused` is a regular announce
        wanted=_wanted(values),
        server=plain(server) if server else None,
    )
    return AnnounceQuery(announce, token_of(query), values.get(b"compact", b"1") != b"0")


def token_of(query: bytes) -> str:
    """Return the token of a query that is no announce; raises Refused where the query is too long."""
    return dict(split(query)).get(b"k", b"").decode("ascii", "replace")


def hold_of(query: bytes) -> tuple[str, int]:
    """Return for how many seconds an answer may be held back while its tag is the one given."""
    values = dict(split(query))
    return values.get(b"tag", b"").decode("ascii", "replace"), min(MAX_HOLD_S, _number(values, b"hold", 0))


def encode_answer(answer: Answer, *, is_compact: bool, asker: Address) -> bytes:
    """Return the answer to an announce."""
    reply: dict[bytes, bencode.Encodable] = {
        b"complete": answer.complete,
        b"incomplete": answer.incomplete,
        b"interval": answer.interval_s,
        b"min interval": answer.min_interval_s,
        b"external ip": plain(asker).packed,
    }
    if is_compact:
        reply[b"peers"] = _compact(p for p in answer.peers if p.address.version == 4)
        six = _compact(p for p in answer.peers if p.address.version == 6)
        if six or asker.version == 6:
            reply[b"peers6"] = six
    else:
        reply[b"peers"] = [{b"peer id": p.peer_id, b"ip": str(p.address), b"port": p.port} for p in answer.peers]
    return bencode.encode(reply)


def encode_failure(reason: str) -> bytes:
    """Return a failure; clients show the reason."""
    return bencode.encode({b"failure reason": reason, b"retry in": 1})


def scraped_infohashes(query: bytes) -> list[bytes]:
    """Read a scrape; raises Refused where it names none, too many, or something else."""
    infohashes = [value for key, value in split(query) if key == b"info_hash"]
    if not 0 < len(infohashes) <= MAX_SCRAPED or any(len(i) != 20 for i in infohashes):
        raise Refused(f"a scrape names 1 to {MAX_SCRAPED} infohashes of 20 bytes")
    return infohashes


def encode_scrape(files: Mapping[bytes, Counts]) -> bytes:
    """Return the answer to a scrape, by raw infohash."""
    entries: dict[bytes, bencode.Encodable] = {
        infohash: {b"complete": c.complete, b"downloaded": c.downloaded, b"incomplete": c.incomplete}
        for infohash, c in files.items()
    }
    return bencode.encode({b"files": entries})


def _wanted(values: Mapping[bytes, bytes]) -> int:
    number = _number(values, b"numwant", DEFAULT_WANTED, lowest=-1)  # clients write -1 for "you choose"
    return number if number >= 0 else DEFAULT_WANTED


def _number(values: Mapping[bytes, bytes], key: bytes, default: int, *, lowest: int = 0) -> int:
    text = values.get(key)
    if text is None:
        return default
    digits = text.removeprefix(b"-")
    if not digits.isdigit() or len(digits) > 19 or int(text) < lowest:
        raise Refused(f"{key.decode('ascii', 'replace')} is not a number")
    return int(text)


def plain(address: Address) -> Address:
    """An IPv4 address that arrived on a dual-stack socket is an IPv4 address."""
    mapped = address.ipv4_mapped if address.version == 6 else None
    return mapped or address


def _compact(peers: Iterable[Peer]) -> bytes:
    return b"".join(p.address.packed + p.port.to_bytes(2, "big") for p in peers)
