"""A flow-level model of one distribution: who has which piece, in rounds; no packets, no TCP, no disks.

In one round a node can send one piece; it arrives after as many rounds as others are served at the same time.  What
is real: the central seeder's rules are those of the product (`jobagent.central.services.dealer`), and how many a node
serves at once (`jobagent_swarm.slots`, but for who gets from few); peer lists follow the tracker's (`tracker`): own
site first, one elected node of a site talks to the outside.  What is modelled: a link carries its rate less
`overhead`, shared piece by piece among neighbours that want something; who asks takes a piece that is rare; a node
begins `start_s` after its first answer, and the tracker answers in turn.  `overhead`, `start_s` and `spread` are the
only constants that were set by measurement; docs/performance.md says how far the model is from measured runs.
"""

from __future__ import annotations

import random
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobagent.central.packaging.torrents import piece_size_for
from jobagent.central.services.dealer import Dealer, DealingPolicy, Mode
from jobagent.central.services.dealing import REVISION_S
from jobagent.central.services.peerwire import MAX_CONNECTIONS
from jobagent.central.services.tracker import Policy
from jobagent_swarm.settings import SwarmSettings
from jobagent_swarm.slots import first_slots, usual_slots

Numbers = NDArray[np.int64]
TRIES = 8  # neighbours that a sender looks at in one round
WIDE_SHARE = 0.5  # of an elected node's uploads: half of its peers are elsewhere
CHUNK = 8192  # pairs that choose by one order of pieces
OVERHEAD, START_S, SPREAD = 0.06, 0.8, 0.1  # set by measurement
SAVED = 4.0  # pieces that a link can catch up with: queues of requests bridge short gaps
LIMIT_ROUNDS = 200_000


@dataclass(frozen=True, slots=True)
class Case:
    """What is distributed to whom.  Bytes, bytes per second, seconds.

    `sites` 0: the nodes are of no site, everybody talks to everybody.  `site_rate`: the link of a site to the wide
    area, each way; 0 is no limit.  `is_download_bound`: a node's link limits what comes as well as what goes.
    `pieces` 0: as many as the torrent has.
    """

    nodes: int
    package_bytes: int
    node_rate: float
    server_rate: float
    sites: int = 0
    site_rate: float = 0.0
    arrivals_s: float = 0.0
    is_download_bound: bool = True
    pieces: int = 0
    mode: Mode = Mode.DEFAULT
    elected: int = 1
    overhead: float = OVERHEAD
    spread: float = SPREAD
    start_s: float = START_S
    tracker_rate: float = 3000.0
    seed: int = 1

    @property
    def bound_s(self) -> float:
        """No distribution can be faster."""
        size, nodes = self.package_bytes, self.nodes
        whole = nodes * size / (self.server_rate + nodes * self.node_rate)
        site = size / self.site_rate if self.site_rate else 0.0
        node = size / self.node_rate if self.is_download_bound else 0.0
        return max(size / self.server_rate, node, whole, site)


@dataclass(slots=True)
class Outcome:
    """What came of it.  Bytes are payload; times are seconds since each node asked."""

    case: Case
    seconds: NDArray[np.float64]
    server_bytes: float
    site_bytes: NDArray[np.float64]
    announces: NDArray[np.int64]  # in each second
    rounds: int
    samples: list[tuple[float, float, float]] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        """The figures as `bench.swarm` names them, and those of the wide area and the tracker."""
        case, times = self.case, np.sort(self.seconds)
        bound = case.bound_s
        return {
            "is_simulated": True,
            "clients": case.nodes,
            "sites": case.sites,
            "package_bytes": case.package_bytes,
            "arrivals_s": case.arrivals_s,
            "bound_s": round(bound, 2),
            "copies": round(self.server_bytes / case.package_bytes, 3),
            "central_gb": round(self.server_bytes / 1e9, 2),
            "intersite_gb": round(float(self.site_bytes.sum()) / 1e9, 2),
            "site_copies": round(float(self.site_bytes.mean()) / case.package_bytes, 3) if case.sites else None,
            "median_s": round(float(np.median(times)), 2),
            "p999_s": round(float(times[min(len(times) - 1, int(0.999 * len(times)))]), 2),
            "last_s": round(float(times[-1]), 2),
            "last_over_bound": round(float(times[-1]) / bound, 3),
            "tracker_peak_per_s": int(self.announces.max()),
            "tracker_mean_per_s": round(float(self.announces.mean()), 1),
        }


def simulate(case: Case) -> Outcome:
    """Run one distribution to its end; the same case gives the same outcome."""
    return _Run(case).run()


class _Run:
    """The state of one distribution: rows are nodes, columns pieces."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._chance = np.random.default_rng(case.seed)
        self._pieces = case.pieces or -(-case.package_bytes // piece_size_for(case.package_bytes))
        self._piece_bytes = case.package_bytes / self._pieces
        goodput = 1.0 - case.overhead / (1.0 + case.overhead)
        self._node_rate, self._server_rate = case.node_rate * goodput, case.server_rate * goodput
        self._pace = 1.0 - case.spread * self._chance.random(case.nodes)  # links are not equally good
        self._round_s = self._piece_bytes / self._node_rate
        self._site = np.arange(case.nodes) % case.sites if case.sites else np.zeros(case.nodes, dtype=np.int64)
        self._intake = 1.0 if case.is_download_bound else 20.0
        self._asked = np.sort(self._chance.uniform(0, case.arrivals_s, case.nodes))
        self._begin = _served(self._asked, case.tracker_rate) + case.start_s
        self._is_gate = np.ones(case.nodes, dtype=bool)
        if case.sites:
            self._is_gate[case.sites * case.elected :] = False  # the first that came of each site
        self._has = np.zeros((case.nodes, self._pieces), dtype=bool)  # can be given on
        self._got = np.zeros((case.nodes, self._pieces), dtype=bool)  # has, or on its way
        self._count = np.zeros(case.nodes, dtype=np.int64)
        self._holders = np.zeros(self._pieces, dtype=np.int64)
        self._done = np.full(case.nodes, np.inf)
        self._server = _Server(self)
        self._slots = _Slots(case, self._piece_bytes)
        self._round = 0
        self._due: dict[int, list[tuple[Numbers, Numbers]]] = defaultdict(list)  # round → nodes, pieces that arrive
        self._site_bytes = np.zeros(max(1, case.sites))
        self._room = np.zeros(case.nodes)  # pieces that may still come in
        self._credit = np.zeros(case.nodes)  # pieces that may still go out
        self._wide_in = np.zeros(max(1, case.sites))
        self._wide_out = np.zeros(max(1, case.sites))

    def run(self) -> Outcome:
        """Go round by round."""
        case, samples = self._case, []
        for number in range(LIMIT_ROUNDS):
            self._round, now = number, number * self._round_s
            here = self._begin <= now
            self._room = np.minimum(self._room + here * self._pace * self._intake, SAVED * self._intake)
            self._credit = np.minimum(self._credit + here * self._pace, SAVED)
            wide = case.site_rate * self._round_s / self._piece_bytes
            for credit in (self._wide_in, self._wide_out):
                np.minimum(credit + wide if case.site_rate else np.inf, 2 * wide + 2, out=credit)
                if not case.site_rate:
                    credit[:] = np.inf
            self._server.advance(now, self._round_s * self._server_rate)
            self._exchange(here)
            self._settle(now + self._round_s)
            if number % 50 == 0:
                samples.append((now, self._server.sent_bytes, float(self._count.sum()) * self._piece_bytes))
            if not np.isinf(self._done).any():
                break
        else:
            raise RuntimeError("the simulated distribution does not end")
        announces = _announces(self._asked, self._done, case.nodes)
        seconds = self._done - self._asked
        return Outcome(case, seconds, self._server.sent_bytes, self._site_bytes, announces, number, samples)

    # What the server sees

    @property
    def case(self) -> Case:
        """The case."""
        return self._case

    @property
    def pieces(self) -> int:
        """How many."""
        return self._pieces

    @property
    def piece_bytes(self) -> float:
        """Of each."""
        return self._piece_bytes

    def gates(self, now: float, known: int) -> Numbers:
        """Nodes that talk to the server and came since it knew so many."""
        return np.flatnonzero(self._is_gate & (self._begin <= now))[known:]

    def is_missing(self, node: int, piece: int) -> bool:
        """Whether a node would ask for a piece."""
        return not self._got[node, piece]

    def has_room(self, node: int) -> bool:
        """Whether the node's link, and its site's, can take a piece more in this round."""
        return bool(self._room[node] >= 1 and self._wide_in[self._site[node]] >= 1)

    def give(self, node: int, piece: int) -> None:
        """The server sends a piece."""
        self._got[node, piece] = True
        self._room[node] -= 1
        if self._case.sites:
            self._wide_in[self._site[node]] -= 1
            self._site_bytes[self._site[node]] += self._piece_bytes
        self._arrived.append((node, piece))

    # The swarm

    _arrived: list[tuple[int, int]]

    def _exchange(self, here: NDArray[np.bool_]) -> None:
        """Let each sender give one piece to somebody of its site, elected ones also elsewhere, who misses it."""
        rarity = self._holders + self._chance.random(self._pieces)
        senders = np.flatnonzero(here & (self._count > 0) & (self._credit >= 1))
        wanting = np.flatnonzero(here & (self._count < self._pieces))
        self._wanting = len(wanting)
        if len(senders) > TRIES * len(wanting):  # most have everything and nothing to do
            senders = self._chance.choice(senders, TRIES * len(wanting), replace=False)
        near = _Groups(wanting, self._site, max(1, self._case.sites))
        gates = _Groups(wanting[self._is_gate[wanting]], np.zeros_like(self._site), 1)
        for _ in range(TRIES):
            if not len(senders) or not len(wanting):
                return
            receivers = near.draw(self._site[senders], self._chance)
            if self._case.sites and len(gates.members):
                crosses = self._is_gate[senders] & (self._chance.random(len(senders)) < WIDE_SHARE)
                everywhere = gates.draw(np.zeros_like(senders), self._chance)
                receivers = np.where(crosses | ((receivers < 0) & self._is_gate[senders]), everywhere, receivers)
            fits = (receivers >= 0) & (receivers != senders)
            fits[fits] &= self._room[receivers[fits]] >= 1
            has_sent = np.zeros(len(senders), dtype=bool)
            candidates = np.flatnonzero(fits)
            for first in range(0, len(candidates), CHUNK):
                part = candidates[first : first + CHUNK]
                has_sent[part] = self._give(senders[part], receivers[part], rarity)
            senders = senders[~has_sent]

    def _give(self, senders: Numbers, receivers: Numbers, rarity: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Choose pieces for pairs and hand them over; return who sent."""
        noisy = rarity * (1.0 + 0.5 * self._chance.random(self._pieces))
        order = np.argsort(noisy)
        useful = (self._has[senders] & ~self._got[receivers])[:, order]
        at = useful.argmax(axis=1)
        pairs = np.arange(len(senders))
        chosen = useful[pairs, at]
        pieces = order[at]
        keys = receivers * self._pieces + pieces
        _, firsts = np.unique(keys, return_index=True)
        is_first = np.zeros(len(senders), dtype=bool)
        is_first[firsts] = True
        chosen &= is_first
        chosen &= _within(receivers, chosen, self._room)
        if self._case.sites:
            chosen = self._across(senders, receivers, chosen)
        node, piece = receivers[chosen], pieces[chosen]
        self._got[node, piece] = True
        np.subtract.at(self._room, node, 1)
        self._credit[senders[chosen]] -= 1
        rounds = self._slots.rounds(self._count[senders[chosen]], self._wanting)
        for wait in np.unique(rounds).tolist():
            self._due[self._round + wait].append((node[rounds == wait], piece[rounds == wait]))
        taken: NDArray[np.bool_] = chosen
        return taken

    def _across(self, senders: Numbers, receivers: Numbers, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Keep what the links of the sites can carry."""
        source, target = self._site[senders], self._site[receivers]
        wide = chosen & (source != target)
        may = wide & _within(target, wide, self._wide_in)
        may &= _within(source, may, self._wide_out)
        np.subtract.at(self._wide_in, target[may], 1)
        np.subtract.at(self._wide_out, source[may], 1)
        np.add.at(self._site_bytes, target[may], self._piece_bytes)
        kept: NDArray[np.bool_] = (chosen & ~wide) | may
        return kept

    def _settle(self, now: float) -> None:
        """What was on its way has arrived."""
        given = self._due.pop(self._round + 1, [])
        batches = list(given)
        if self._arrived:
            pairs = np.array(self._arrived, dtype=np.int64)
            batches.append((pairs[:, 0], pairs[:, 1]))
        for node, piece in batches:
            self._has[node, piece] = True
            np.add.at(self._count, node, 1)
            np.add.at(self._holders, piece, 1)
        for node, piece in given:
            for one in np.flatnonzero(self._is_gate[node]):
                self._server.heard(int(node[one]), int(piece[one]), now)
        self._arrived.clear()
        complete = (self._count == self._pieces) & np.isinf(self._done)
        self._done[complete] = now


class _Slots:
    """How many peers a node serves at the same time, by the rules of the swarm's plugin."""

    def __init__(self, case: Case, piece_bytes: float) -> None:
        size = piece_size_for(case.package_bytes)
        self._coarser = piece_bytes / size  # pieces of the model may be larger than those of the torrent
        pieces, most = int(case.package_bytes / size), SwarmSettings().unchoke_slots
        limit = 0.0 if case.is_download_bound else case.node_rate  # else it is the link that limits
        self._most = min(most, usual_slots(pieces))
        self._first = min(most, first_slots(pieces, size, limit))

    def rounds(self, held: Numbers, wanting: int) -> Numbers:
        """In how many rounds what is sent now arrives, for senders that hold so many pieces."""
        slots = np.clip(held * self._coarser, self._first, self._most)
        rounds: Numbers = np.maximum(1, np.minimum(slots, wanting) / self._coarser).astype(np.int64)
        return rounds


class _Groups:
    """Nodes by group, for drawing one at random."""

    def __init__(self, members: Numbers, group_of: Numbers, groups: int) -> None:
        order = np.argsort(group_of[members], kind="stable")
        self.members = members[order]
        self._sizes = np.bincount(group_of[members], minlength=groups)
        self._starts = np.cumsum(self._sizes) - self._sizes

    def draw(self, groups: Numbers, chance: np.random.Generator) -> Numbers:
        """One of each named group; -1 where it is empty."""
        sizes = self._sizes[groups]
        at = self._starts[groups] + (chance.random(len(groups)) * sizes).astype(np.int64)
        found = self.members[np.minimum(at, len(self.members) - 1)] if len(self.members) else np.zeros_like(at)
        return np.where(sizes > 0, found, -1)


class _Server:
    """The central seeder: the product's dealer behind a link of its own."""

    def __init__(self, swarm: _Run) -> None:
        self._swarm = swarm
        swarm._arrived = []
        policy = DealingPolicy.of(swarm.case.mode)
        self._dealer = Dealer(swarm.pieces, policy, random.Random(swarm.case.seed))
        self._wishes: dict[int, deque[int]] = {}
        self._turn: deque[int] = deque()
        self._revealed: dict[int, set[int]] = defaultdict(set)
        self._credit = 0.0
        self._revised = 0.0
        self._known = 0
        self.sent_bytes = 0.0

    def advance(self, now: float, budget: float) -> None:
        """Welcome who came, revise, and send for one round."""
        room = MAX_CONNECTIONS - len(self._wishes)
        fresh = self._swarm.gates(now, self._known)
        self._known += len(fresh)
        for node in fresh[: max(0, room)].tolist():
            self._dealer.join(node, now)
            self._wishes[node] = deque()
            self._deal(node, now)
        if now - self._revised >= REVISION_S:
            self._revised = now
            for node in self._turn:
                self._dealer.waits(node, now)
            if self._dealer.revise(now):
                for node in self._wishes:
                    self._deal(node, now)
        self._credit = min(self._credit + budget, budget + self._swarm.piece_bytes)
        idle = 0
        while self._turn and self._credit >= self._swarm.piece_bytes and idle < len(self._turn):
            node = self._turn[0]
            wishes = self._wishes[node]
            while wishes and not self._swarm.is_missing(node, wishes[0]):
                wishes.popleft()  # cancelled: it came from a neighbour
            if not wishes:
                self._turn.popleft()
                continue
            self._turn.rotate(-1)
            if not self._swarm.has_room(node):
                idle += 1
                continue
            idle = 0
            piece = wishes.popleft()
            self._swarm.give(node, piece)
            self._credit -= self._swarm.piece_bytes
            self.sent_bytes += self._swarm.piece_bytes
            self._dealer.has(node, piece, now)
            if not wishes:
                self._dealer.drained(node)
            self._deal(node, now)

    def heard(self, node: int, piece: int, now: float) -> None:
        """A node says what a neighbour gave it."""
        if node in self._wishes:
            self._dealer.has(node, piece, now)
            self._deal(node, now)

    def _deal(self, node: int, now: float) -> None:
        wishes, revealed = self._wishes[node], self._revealed[node]
        was_idle = not wishes
        for piece in self._dealer.deal(node, now):
            if piece not in revealed:
                revealed.add(piece)
                wishes.append(piece)
        if was_idle and wishes and node not in self._turn:
            self._turn.append(node)


def _within(groups: Numbers, chosen: NDArray[np.bool_], room: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Of those chosen, the first of each group that there is room for."""
    at = np.flatnonzero(chosen)
    order = at[np.argsort(groups[at], kind="stable")]
    sorted_groups = groups[order]
    starts = np.flatnonzero(np.r_[True, sorted_groups[1:] != sorted_groups[:-1]]) if len(order) else order
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    kept = np.zeros(len(chosen), dtype=bool)
    kept[order[rank + 1 <= room[sorted_groups]]] = True
    return kept


def _served(asked: NDArray[np.float64], rate: float) -> NDArray[np.float64]:
    """When a queue that serves `rate` per second in order of arrival has answered each."""
    number = np.arange(len(asked))
    return np.maximum.accumulate(asked - number / rate) + number / rate


def _announces(asked: NDArray[np.float64], done: NDArray[np.float64], nodes: int) -> Numbers:
    """Announces in each second until the last is done: twice (hybrid) at start, at intervals, and at the end."""
    policy = Policy()
    slowest = 2 * nodes // policy.max_announces_per_s
    busy, seeding = max(policy.busy_interval_s, slowest), max(policy.seeding_interval_s, slowest)
    end = float(done.max())
    times: list[NDArray[np.float64]] = [asked, done]
    for start, stop, interval in ((asked, done, busy), (done, np.full(nodes, end), seeding)):
        for step in range(1, int(end / interval) + 2):
            due = start + step * interval
            times.append(due[due < stop])
    counts: Numbers = 2 * np.bincount(np.concatenate(times).astype(np.int64))
    return counts
