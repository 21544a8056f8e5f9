"""Dealing: one copy leaves the seeder, nobody starves, hostile peers are cut off."""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobagent.central.packaging import torrents
from jobagent.central.services.dealer import LONGEST_FACTOR, Dealer, DealingPolicy, Mode
from jobagent.central.services.dealing import DealingSeeder
from jobagent.central.services.peerwire import (
    BITFIELD,
    HASH_REQUEST,
    HAVE,
    HAVE_ALL,
    HAVE_NONE,
    MAX_BLOCK_BYTES,
    PIECE,
    REJECT,
    RELIEF_BYTES,
    RELIEF_MESSAGES,
    REQUEST,
    STUCK_S,
    UNCHOKE,
)
from jobagent.errors import ConfigurationError, NoFreePort
from tests.swarm_field import address, agents, central, publish, wait_until

PIECES = 40
PIECE_BYTES = torrents.piece_size_for(300_000)
OVERDUE_S = 15.1  # where nobody gets anything from anybody, patience is longest
PLAIN = DealingPolicy(spare_copies=0.0, help_copies=100.0)


def dealer(policy: DealingPolicy = PLAIN, pieces: int = PIECES) -> Dealer:
    return Dealer(pieces, policy, random.Random(1))


def deal_all(deals: Dealer, peers: range, now_s: float = 0.0) -> dict[int, list[int]]:
    """Deal until nothing is left; each peer gets what it was dealt at once."""
    got: dict[int, list[int]] = {peer: [] for peer in peers}
    while any(dealt := {peer: deals.deal(peer, now_s) for peer in peers}.values()):
        for peer, pieces in dict(zip(peers, dealt, strict=True)).items():
            got[peer] += pieces
            for piece in pieces:
                deals.has(peer, piece, now_s)
    return got


def test_each_piece_is_dealt_to_one_peer_and_all_peers_get_about_the_same() -> None:
    deals = dealer()
    peers = range(8)
    for peer in peers:
        deals.join(peer, 0.0)
    got = deal_all(deals, peers)
    assert sorted(p for pieces in got.values() for p in pieces) == list(range(PIECES))
    assert max(map(len, got.values())) - min(map(len, got.values())) <= PLAIN.window
    assert not deals.is_needed and deals.dealt == PIECES


def test_peer_holds_no_more_than_its_window_until_it_drains_it() -> None:
    deals = dealer()
    deals.join("a", 0.0)
    assert len(deals.deal("a", 0.0)) == PLAIN.window
    assert deals.deal("a", 0.0) == []
    deals.drained("a")
    assert len(deals.deal("a", 0.0)) == 1


def test_what_a_leaving_peer_alone_had_is_dealt_again() -> None:
    deals = dealer()
    for peer in "ab":
        deals.join(peer, 0.0)
    first, second = deals.deal("a", 0.0), deals.deal("b", 0.0)
    deals.has("a", first[0], 0.0)
    deals.has("b", first[1], 0.0)  # from a, which had it for a moment
    assert sorted(deals.leave("a", 0.0)) == sorted(first[2:])
    deals.revise(OVERDUE_S)  # long enough for others to tell that they had it from a
    for piece in second:
        deals.has("b", piece, 0.0)
    dealt = set(second)
    while pieces := deals.deal("b", 0.0):
        dealt |= set(pieces)
        for piece in pieces:
            deals.has("b", piece, 0.0)
    assert dealt == set(range(PIECES)) - {first[1]}


def test_what_others_got_from_a_peer_that_left_us_is_not_dealt_again() -> None:
    deals = dealer(pieces=PLAIN.window)
    deals.join("a", 0.0)
    deals.join("b", 0.0)
    first, *others = deals.deal("a", 0.0)
    for piece in (first, *others):
        deals.has("a", piece, 0.0)
    assert deals.leave("a", 1.0) == []
    deals.revise(2.0)
    assert deals.deal("b", 2.0) == []
    deals.has("b", first, 3.0)
    deals.revise(OVERDUE_S + 2)
    assert sorted(deals.deal("b", OVERDUE_S + 2)) == sorted(others)


def test_while_all_go_on_what_is_out_of_sight_is_missed_late() -> None:
    deals = dealer()
    for peer in "ab":
        deals.join(peer, 0.0)
    while pieces := deals.deal("a", 0.0):
        for piece in pieces:
            deals.has("a", piece, 0.0)
    deals.leave("a", 0.0)
    longest_s = LONGEST_FACTOR * PLAIN.neglected_s
    for second in range(1, int(longest_s)):
        deals.has("b", second, float(second))  # its neighbours serve it: it has no need of us
        deals.revise(float(second))
        assert deals.deal("b", float(second)) == []
    deals.revise(longest_s + 1)
    assert deals.deal("b", longest_s + 1)


def test_who_comes_when_all_have_gone_waits_for_nothing() -> None:
    deals = dealer(pieces=PLAIN.window)
    deals.join("a", 0.0)
    deals.join("b", 0.0)
    for number, piece in enumerate(deals.deal("a", 0.0)):
        deals.has("a" if number % 2 else "b", piece, 0.0)
    deals.leave("a", 1.0)
    deals.leave("b", 2.0)
    deals.join("c", 2.0)
    assert sorted(deals.deal("c", 2.0)) == list(range(PLAIN.window))


def test_nobody_is_neglected_while_the_first_copy_is_on_its_way() -> None:
    deals = dealer(pieces=PLAIN.window)
    deals.join("a", 0.0)
    *taken, last = deals.deal("a", 0.0)
    deals.has_many("a", taken, 0.0)
    deals.join("b", 0.0)
    for second in range(1, 30):
        deals.waits("a", float(second))
        deals.revise(float(second))
        assert deals.deal("b", float(second)) == []
    deals.has("a", last, 30.0)
    deals.revise(30.0)
    assert deals.deal("b", 30.0) == []
    deals.revise(29.0 + OVERDUE_S)
    assert sorted(deals.deal("b", 29.0 + OVERDUE_S)) == sorted([*taken, last])


def test_overdue_piece_is_dealt_to_somebody_else_and_not_to_the_same_peer() -> None:
    deals = dealer()
    deals.join("slow", 0.0)
    stuck = deals.deal("slow", 0.0)
    for piece in set(range(PIECES)) - set(stuck):
        deals.join(piece, 0.0)
        deals.has(piece, piece, 0.0)
    deals.join("quick", 0.0)
    assert deals.deal("quick", 0.0) == []
    assert deals.revise(OVERDUE_S)
    assert deals.deal("slow", OVERDUE_S) == []
    assert sorted(deals.deal("quick", OVERDUE_S)) == sorted(stuck)


def test_nothing_is_overdue_with_who_waits_for_our_link() -> None:
    deals = dealer(pieces=PLAIN.window)
    deals.join("a", 0.0)
    deals.join("b", 0.0)
    waiting = deals.deal("a", 0.0)
    for second in range(1, 30):
        deals.waits("a", float(second))
        assert not deals.revise(float(second)) or second > PLAIN.neglected_s
    deals.has("b", waiting[0], 29.0)
    assert deals.revise(29.0 + OVERDUE_S)
    assert set(deals.deal("b", 29.0 + OVERDUE_S)) == set(waiting[1:])


def test_who_takes_one_piece_after_another_is_not_overdue() -> None:
    deals = dealer()
    deals.join("slow", 0.0)
    first, *others = deals.deal("slow", 0.0)
    rest = [piece for piece in range(PIECES) if piece not in (first, *others)]
    for peer in ("full", "x", "y", "z"):
        deals.join(peer, 0.0)
    deals.has_many("full", rest, 0.0)

    def dealt_again(second: int) -> set[int]:
        for peer in ("x", "y", "z"):  # all are served by their neighbours
            deals.has(peer, rest[second], float(second))
        deals.revise(float(second))
        return set(deals.deal("x", float(second)))

    assert dealt_again(3) == set()
    deals.has("slow", first, 3.0)
    assert dealt_again(6) == set()
    assert dealt_again(8) == set(others)


def test_in_a_slow_crowd_nobody_is_neglected_but_who_waits_longer() -> None:
    deals = dealer()
    deals.join("seed", 0.0)
    deals.has_many("seed", range(PIECES), 0.0)
    for peer in range(9):
        deals.join(peer, 0.0)
        deals.has(peer, 0, 5.0 if peer else 0.0)
    assert PLAIN.neglected_s < 7.0
    deals.revise(7.0)
    assert deals.deal(1, 7.0) == [] and deals.deal(0, 7.0)
    deals.revise(100.0)
    assert deals.deal(1, 100.0)


def test_after_so_much_help_only_who_waits_longest_is_helped() -> None:
    deals = dealer(DealingPolicy(spare_copies=0.0, help_copies=0.1))
    deals.join("seed", 0.0)
    deals.has_many("seed", range(PIECES), 0.0)
    deals.join("walled", 0.0)
    helped: list[int] = []
    for now_s in (3.5, 4.0, 4.5):
        deals.revise(now_s)
        for piece in deals.deal("walled", now_s):
            helped.append(piece)
            deals.has("walled", piece, now_s)
    assert len(helped) == PIECES // 10
    deals.revise(15.5)
    assert deals.deal("walled", 15.5)


def test_who_is_neglected_in_a_crowd_that_goes_on_goes_as_fast_as_the_crowd() -> None:
    deals = dealer()
    for peer in ("seed", "a", "b", "c", "walled"):
        deals.join(peer, 0.0)
    deals.has_many("seed", range(PIECES), 0.0)

    def helped(now_s: float) -> int:
        deals.revise(now_s)
        count = 0
        while pieces := deals.deal("walled", now_s):
            deals.has_many("walled", pieces, now_s)
            deals.drained("walled")
            count += len(pieces)
        return count

    total = 0
    for second in range(20):
        for peer in "abc":
            deals.has(peer, second, float(second))
        total += helped(float(second))
    since = 20 - math.ceil(PLAIN.neglected_s)
    assert since <= total <= since + PLAIN.window
    assert helped(20.0 + PLAIN.neglected_s) == PIECES - total  # the crowd stands still


def test_dealer_steps_back_when_the_swarm_has_everything() -> None:
    deals = dealer()
    deals.join("seed", 0.0)
    deals.has_many("seed", range(PIECES), 0.0)
    deals.join("new", 0.0)
    assert deals.deal("new", 0.0) == [] and deals.is_complete("seed")


def test_peer_that_its_neighbours_do_not_serve_is_served() -> None:
    deals = dealer()
    deals.join("seed", 0.0)
    deals.has_many("seed", range(PIECES), 0.0)
    deals.join("walled", 0.0)
    late = PLAIN.neglected_s + 0.1
    assert deals.revise(late)
    received: set[int] = set()
    while pieces := deals.deal("walled", late):
        for piece in pieces:
            deals.has("walled", piece, late)
        received |= set(pieces)
    assert received == set(range(PIECES))


def test_piece_from_a_neighbour_ends_neglect() -> None:
    deals = dealer()
    deals.join("seed", 0.0)
    deals.has_many("seed", range(PIECES), 0.0)
    deals.join("new", 0.0)
    deals.has("new", 0, 5.0)
    assert deals.deal("new", 6.0) == []


def test_spare_copies_go_to_those_who_lag_and_are_bounded() -> None:
    deals = dealer(DealingPolicy(spare_copies=0.1))
    for peer in ("a", "b", "c"):
        deals.join(peer, 0.0)
        deals.has_many(peer, range(PIECES if peer != "c" else PIECES // 2), 0.0)
    deals.revise(0.0)
    given = []
    while pieces := deals.deal("c", 0.0):
        given += pieces
        for piece in pieces:
            deals.has("c", piece, 0.0)
    assert len(given) == PIECES // 10


def test_spare_copies_go_out_a_few_at_a_time() -> None:
    deals = dealer(DealingPolicy(), pieces=1000)
    for peer in ("first", "middle", "last"):
        deals.join(peer, 0.0)
    deals.has_many("first", range(1000), 0.0)
    deals.has_many("middle", range(700), 0.0)
    deals.has_many("last", range(400), 0.0)
    for _ in range(20):
        deals.drained("last")
    deals.revise(1.0)
    dealt = deals.deal("last", 1.0)
    assert len(dealt) == PLAIN.window and deals.deal("last", 1.0) == []
    deals.has("last", dealt[0], 1.0)
    assert len(deals.deal("last", 1.0)) == 1


def test_every_mode_has_a_policy_and_minimal_uplink_spares_nothing() -> None:
    assert {mode: DealingPolicy.of(mode).spare_copies > 0 for mode in Mode} == {
        Mode.DEFAULT: True,
        Mode.FAST: True,
        Mode.MINIMAL_UPLINK: False,
    }


@given(st.data())
def test_whatever_peers_do_nobody_starves_and_counts_stay_true(data: st.DataObject) -> None:
    pieces = 12
    deals = dealer(pieces=pieces)
    held: dict[int, set[int]] = {}
    coming: dict[int, list[int]] = {}
    now_s = 0.0
    for _ in range(data.draw(st.integers(0, 60))):
        act = data.draw(st.sampled_from(["join", "leave", "have", "deal", "revise"]))
        peer = data.draw(st.integers(0, 4))
        now_s += 0.3
        if act == "join" and peer not in held:
            deals.join(peer, now_s)
            held[peer], coming[peer] = set(), []
        elif act == "leave":
            deals.leave(peer, now_s)
            held.pop(peer, None)
        elif act == "have" and peer in held:
            piece = data.draw(st.integers(-1, pieces))
            deals.has(peer, piece, now_s)
            held[peer] |= {piece} & set(range(pieces))
        elif act == "deal" and peer in held:
            pieces_now = deals.deal(peer, now_s)
            assert held[peer].isdisjoint(pieces_now)
            coming[peer] += pieces_now
        elif act == "revise":
            deals.revise(now_s)
    assert deals.is_needed == (set().union(*held.values()) != set(range(pieces)))
    for peer in held:  # each alone can always complete
        for _ in range(200):
            if deals.is_complete(peer):
                break
            now_s += 5.0
            deals.revise(now_s)
            for piece in [*coming[peer], *deals.deal(peer, now_s)]:
                deals.has(peer, piece, now_s)
        assert deals.is_complete(peer)


# The protocol


class RawPeer:
    """A peer of plain sockets."""

    def __init__(
        self, port: int, host: str, infohash: bytes, *, reserved: bytes = bytes(7) + b"\x04", name: str = "a"
    ):
        self.socket = socket.create_connection((host, port), timeout=5)
        handshake = b"\x13BitTorrent protocol" + reserved + infohash + b"-XX0001-" + name.encode().rjust(12)
        self.socket.sendall(handshake)
        self.stream = self.socket.makefile("rb")

    def close(self) -> None:
        self.stream.close()
        self.socket.close()

    def answer(self) -> bytes:
        return self.stream.read(68)

    def send(self, kind: int, payload: bytes = b"") -> None:
        self.socket.sendall(struct.pack(">IB", 1 + len(payload), kind) + payload)

    def receive(self) -> tuple[int, bytes]:
        head = self.stream.read(4)
        if len(head) < 4:
            return -1, b""
        body = self.stream.read(int.from_bytes(head, "big"))
        return body[0], body[1:]

    def is_cut_off(self) -> bool:
        with contextlib.suppress(ConnectionError):
            while self.receive()[0] >= 0:
                pass
        return True


class Table:
    """A dealing seeder with one package."""

    def __init__(self, directory: Path) -> None:
        self.published = publish(directory, size_bytes=300_000)
        archive = self.published.package.archive
        self.v2, self.v1 = bytes.fromhex(archive.infohash_v2)[:20], bytes.fromhex(archive.infohash_v1)
        self.host = address()
        self.peers: list[RawPeer] = []
        self.seeder = DealingSeeder([self.host], (0, 0), policy=PLAIN)
        self.seeder.offer("key", self.published.path, [self.v2, self.v1], 300_000, PIECE_BYTES)

    def peer(self, infohash: bytes | None = None, **options: object) -> RawPeer:
        peer = RawPeer(self.seeder.port, self.host, infohash or self.v2, **options)  # type: ignore[arg-type]
        self.peers.append(peer)
        return peer


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    made = Table(tmp_path)
    yield made
    for peer in made.peers:
        peer.close()
    made.seeder.close()
    made.seeder.close()


def test_peer_is_dealt_pieces_and_gets_exactly_those(table: Table) -> None:
    peer = table.peer()
    assert peer.answer()[28:48] == table.v2
    assert peer.receive() == (HAVE_NONE, b"") and peer.receive() == (UNCHOKE, b"")
    peer.send(HAVE_NONE)
    dealt = [int.from_bytes(peer.receive()[1], "big") for _ in range(PLAIN.window)]
    other = next(p for p in range(300_000 // PIECE_BYTES) if p not in dealt)
    peer.send(REQUEST, struct.pack(">III", other, 0, 5000))
    assert peer.receive() == (REJECT, struct.pack(">III", other, 0, 5000))
    peer.send(REQUEST, struct.pack(">III", dealt[0], 0, 5000))
    kind, payload = peer.receive()
    content = table.published.path.read_bytes()[dealt[0] * PIECE_BYTES :][:5000]
    assert (kind, payload) == (PIECE, struct.pack(">II", dealt[0], 0) + content)


def test_pieces_are_sent_whole_one_after_the_other(tmp_path: Path) -> None:
    blocks, block_bytes, host, infohash = 8, 8192, address(), bytes(20)
    published = publish(tmp_path, size_bytes=20 * blocks * block_bytes)
    # what is in the bucket is gone after two pieces; then blocks come with 80 ms between them
    limited = DealingSeeder([host], (0, 0), policy=PLAIN, upload_rate_bytes=lambda: 100_000)
    limited.offer("key", published.path, [infohash], published.package.archive.size_bytes, blocks * block_bytes)
    arrived: list[tuple[float, int]] = []
    both_are_dealt_to = threading.Barrier(2, timeout=20)

    def take(peer: RawPeer) -> None:
        peer.answer()
        peer.receive(), peer.receive()
        peer.send(HAVE_NONE)
        mine = [int.from_bytes(peer.receive()[1], "big") for _ in range(2)]
        both_are_dealt_to.wait()  # whoever drains block after block alone is dealt everything
        for piece, block in itertools.product(mine, range(blocks)):
            peer.send(REQUEST, struct.pack(">III", piece, block * block_bytes, block_bytes))
        for _ in range(blocks * len(mine)):
            while (message := peer.receive())[0] != PIECE:
                pass
            arrived.append((time.monotonic(), int.from_bytes(message[1][:4], "big")))

    peers = [RawPeer(limited.port, host, infohash, name=name) for name in "ab"]
    threads = [threading.Thread(target=take, args=(peer,)) for peer in peers]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    finally:
        for peer in peers:
            peer.close()
        limited.close()
    order = [piece for _, piece in sorted(arrived)]
    late = order[2 * blocks :]
    assert len(order) == 4 * blocks
    assert len([1 for one, other in itertools.pairwise(late) if one != other]) == len(set(late)) - 1, order


def test_v1_handshake_that_can_upgrade_is_answered_with_v2(table: Table) -> None:
    assert table.peer(table.v1, reserved=bytes(7) + b"\x14").answer()[28:48] == table.v2
    assert table.peer(table.v1, name="b").answer()[28:48] == table.v1


def test_peer_without_the_fast_extension_is_dealt_to_as_well(table: Table) -> None:
    peer = table.peer(reserved=bytes(8))
    peer.answer()
    assert peer.receive() == (UNCHOKE, b"")
    assert peer.receive()[0] == HAVE


HOSTILE = {
    "noise": lambda p: p.socket.sendall(b"\xff" * 1000),
    "a message without end": lambda p: p.socket.sendall(struct.pack(">I", 1 << 30)),
    "a bitfield of a wrong length": lambda p: p.send(BITFIELD, b"\xff" * 100),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_peer_is_cut_off_and_the_seeder_goes_on(table: Table, case: str) -> None:
    peer = table.peer()
    peer.answer()
    HOSTILE[case](peer)
    assert peer.is_cut_off()
    assert table.peer(name="b").answer()[28:48] == table.v2


@pytest.mark.parametrize("kind", [REQUEST, HASH_REQUEST])
def test_peer_that_asks_without_end_and_reads_nothing_is_cut_off(table: Table, kind: int) -> None:
    """Each refusal is as long as the wish: without a bound the seeder would hold all of them for it."""
    peer = table.peer()
    peer.answer()
    size = {REQUEST: 12, HASH_REQUEST: 48}[kind]
    flood = (struct.pack(">IB", 1 + size, kind) + b"\xff" * size) * (50_000_000 // (5 + size))
    with pytest.raises(ConnectionError):
        peer.socket.sendall(flood)
    assert table.peer(name="b").answer()[28:48] == table.v2


@pytest.mark.parametrize("handshake", [b"GET / HTTP/1.1\r\n\r\n", b"\x13BitTorrent protocoX", b"\x00" * 68])
def test_other_protocols_are_cut_off_at_once(table: Table, handshake: bytes) -> None:
    with socket.create_connection((table.host, table.seeder.port), timeout=5) as stream:
        stream.sendall(handshake)
        with contextlib.suppress(ConnectionError):
            assert stream.recv(100) == b""


def test_unknown_torrent_and_second_connection_are_refused(table: Table) -> None:
    assert table.peer(b"x" * 20).is_cut_off()
    first = table.peer()
    assert first.answer()
    assert table.peer().is_cut_off()


def test_withdrawn_archive_is_read_no_more(table: Table) -> None:
    peer = table.peer()
    peer.answer()
    table.seeder.withdraw("key")
    assert peer.is_cut_off()
    assert table.peer(name="b").is_cut_off()


def test_nonsense_claims_and_wishes_are_ignored(table: Table) -> None:
    peer = table.peer()
    peer.answer()
    peer.send(HAVE, struct.pack(">I", 1 << 31))
    peer.send(HAVE, b"x")
    peer.send(REQUEST, struct.pack(">III", 1 << 31, 1 << 31, 1 << 31))
    peer.send(200, b"unknown")
    assert (REJECT, struct.pack(">III", 1 << 31, 1 << 31, 1 << 31)) in [peer.receive() for _ in range(6)]


def test_seeder_learns_from_have_all_that_it_is_not_needed(table: Table) -> None:
    seed, new = table.peer(), table.peer(name="b")
    seed.answer()
    seed.send(HAVE_ALL)
    (package,) = set(table.seeder.packages.values())
    wait_until(lambda: not package.dealer.is_needed)
    new.answer()
    new.send(HAVE_NONE)
    assert [new.receive()[0] for _ in range(2)] == [HAVE_NONE, UNCHOKE]
    new.socket.settimeout(0.3)
    with pytest.raises(TimeoutError):
        new.receive()


def test_a_peer_that_waits_hears_once_a_minute_that_the_connection_lives(tmp_path: Path) -> None:
    ahead_s, host, infohash = [0.0], address(), bytes(20)
    published = publish(tmp_path, size_bytes=300_000)
    seeder = DealingSeeder([host], (0, 0), policy=PLAIN, clock=lambda: time.monotonic() + ahead_s[0])
    seeder.offer("key", published.path, [infohash], 300_000, PIECE_BYTES)
    peer = RawPeer(seeder.port, host, infohash)
    try:
        peer.answer()
        peer.send(HAVE_ALL)
        assert [peer.receive()[0] for _ in range(2)] == [HAVE_NONE, UNCHOKE]
        for _ in range(2):
            ahead_s[0] += 61
            assert peer.stream.read(4) == bytes(4)  # libtorrent would leave after two minutes of silence
            assert not select.select([peer.socket], [], [], 1.0)[0]
    finally:
        peer.close()
        seeder.close()


def test_what_a_stuck_peer_asked_for_is_dealt_to_another_and_what_a_slow_one_did_is_not(tmp_path: Path) -> None:
    ahead_s, piece_bytes, host, infohash = [0.0], 1 << 20, address(), bytes(20)
    published = publish(tmp_path, size_bytes=PLAIN.window * piece_bytes)
    seeder = DealingSeeder([host], (0, 0), policy=PLAIN, clock=lambda: time.monotonic() + ahead_s[0])
    seeder.offer("key", published.path, [infohash], published.package.archive.size_bytes, piece_bytes)
    stuck = RawPeer(seeder.port, host, infohash)
    stuck.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stuck.answer()
    stuck.send(HAVE_NONE)
    stuck.receive(), stuck.receive()
    dealt = {int.from_bytes(stuck.receive()[1], "big") for _ in range(PLAIN.window)}
    for piece, begin in itertools.product(dealt, range(0, piece_bytes, MAX_BLOCK_BYTES)):
        stuck.send(REQUEST, struct.pack(">III", piece, begin, MAX_BLOCK_BYTES))
    other = RawPeer(seeder.port, host, infohash, name="b")
    try:
        other.answer()
        other.send(HAVE_NONE)
        assert [other.receive()[0] for _ in range(2)] == [HAVE_NONE, UNCHOKE]
        assert not select.select([other.socket], [], [], 1.0)[0]  # all that was asked is read meanwhile
        ahead_s[0] += STUCK_S - 5
        assert not select.select([other.socket], [], [], 1.0)[0]
        ahead_s[0] += 5 + OVERDUE_S
        assert {int.from_bytes(other.receive()[1], "big") for _ in range(PLAIN.window)} == dealt
    finally:
        stuck.close()
        other.close()
        seeder.close()


@pytest.mark.parametrize("size_bytes", [RELIEF_BYTES, RELIEF_BYTES - 1])
def test_who_got_much_hears_short_messages_that_free_its_buffer(tmp_path: Path, size_bytes: int) -> None:
    piece_bytes, host, infohash = 1 << 17, address(), bytes(20)
    published = publish(tmp_path, size_bytes=size_bytes)
    seeder = DealingSeeder([host], (0, 0), policy=PLAIN)
    seeder.offer("key", published.path, [infohash], size_bytes, piece_bytes)
    peer = RawPeer(seeder.port, host, infohash)
    try:
        peer.answer()
        peer.send(HAVE_NONE)
        got_bytes = 0
        while got_bytes < size_bytes:
            kind, payload = peer.receive()
            if kind == HAVE:
                left_bytes = size_bytes - piece_bytes * int.from_bytes(payload, "big")
                peer.send(REQUEST, payload + struct.pack(">II", 0, min(piece_bytes, left_bytes)))
            elif kind == PIECE:
                got_bytes += len(payload) - 8
        expected = RELIEF_MESSAGES if size_bytes >= RELIEF_BYTES else 0
        assert peer.stream.read(4 * expected) == bytes(4 * expected)
        assert not select.select([peer.socket], [], [], 1.0)[0]
    finally:
        peer.close()
        seeder.close()


def test_taken_port_and_foreign_address_are_clear_errors(table: Table) -> None:
    with pytest.raises(NoFreePort, match="Address already in use"):
        DealingSeeder([table.host], (table.seeder.port, table.seeder.port))
    with pytest.raises(ConfigurationError, match="cannot listen on"):
        DealingSeeder(["192.0.2.1"], (0, 0))


# The swarm


@pytest.mark.swarm
def test_a_flash_crowd_takes_about_one_copy(tmp_path: Path) -> None:
    with central(tmp_path, swarm={"upload_rate_bytes": 4_000_000}) as services:
        published = services.publish(size_bytes=4_000_000)
        with agents(tmp_path, 10, services.url, upload_rate_bytes=2_000_000) as nodes, ThreadPoolExecutor(10) as pool:
            traffic = list(pool.map(lambda a: a.swarm.fetch(a.order(published)), nodes))
            assert all(agent.has(published) for agent in nodes)
        assert services.seeder is not None
        copies = services.seeder.status()["upload_bytes"] / published.package.archive.size_bytes
        assert 1.0 <= copies < 1.5
        assert sum(t.neighbour_bytes for t in traffic) > 8 * published.package.archive.size_bytes
