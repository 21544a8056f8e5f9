"""Which pieces a seeder deals to whom, so that a swarm gets one copy from it and nobody waits.  Pure rules.

A seeder that claims to have everything is asked for the same pieces by many: two to five copies of a package leave it
in a flash crowd.  This one claims to have nothing, and reveals to each peer only what it deals to it: every piece to
one peer first.  Peers give dealt pieces to each other at once, so all uplinks work from the first second.  When the
swarm itself holds every piece the seeder steps back; it deals again what was lost with a peer that left, what is
overdue with a slow one, and whatever a peer misses whom its neighbours do not serve.

Peers are opaque keys, pieces are numbers, times are seconds of one monotonic clock.
"""

from __future__ import annotations

import enum
import math
import random
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field


class Mode(enum.StrEnum):
    """What a site pays for: bytes of the server, or seconds of the clients.  Figures: docs/performance.md."""

    DEFAULT = "default"
    FAST = "fast"
    MINIMAL_UPLINK = "minimal-uplink"


@dataclass(frozen=True, slots=True)
class DealingPolicy:
    """How generous a dealer is.

    At first `window` pieces are with one peer at a time; a peer that drains them grows it up to `max_window`.
    What nobody holds of a peer's pieces is dealt again when the peer took nothing for `overdue_s`.  What left
    the seeder's sight with its peer is dealt again when nobody tells of it: within `overdue_s` where the swarm
    stands still, within the longest time where all go on.  A peer that for `neglected_s` got nothing from its
    neighbours is served like an only client.  In a crowd on slow links all of this takes longer, and many look
    neglected in turn: both times follow those of the middle peer, and after `help_copies` of the package, which
    fill up again in ten minutes, only who waits for the longest time is neglected.  While the crowd goes on, who is
    neglected gets a window of pieces, and then as many as the middle peer does.

    `spare_copies` of the package may be dealt beyond the first, rarest pieces first, in the second half of the way to
    peers that are `lagging` of it behind the middle one.
    """

    window: int = 3
    max_window: int = 64
    overdue_s: float = 4.0
    neglected_s: float = 3.0
    help_copies: float = 0.1
    spare_copies: float = 0.15
    lagging: float = 0.03

    @classmethod
    def of(cls, mode: Mode) -> DealingPolicy:
        """The policy of a mode."""
        return {
            Mode.DEFAULT: cls(),
            Mode.FAST: cls(spare_copies=1e6, lagging=-1.0, neglected_s=1.0, help_copies=1e6),
            Mode.MINIMAL_UPLINK: cls(spare_copies=0.0, neglected_s=15.0, overdue_s=15.0),
        }[mode]


OVERDUE_FACTOR, NEGLECT_FACTOR = 2.0, 3.0  # of the time that the middle peer has waited for its neighbours
LONGEST_FACTOR = 5.0  # of `neglected_s`; where everybody is walled off, everybody is served at last
REFILL_S = 600.0


@dataclass(slots=True)
class _Peer:
    window: int
    served_s: float  # when a neighbour last gave it something
    taken_s: float = -math.inf  # when it last had something that was dealt to it
    has: int = 0  # bit set of pieces
    count: int = 0
    dealt: dict[int, float] = field(default_factory=dict)  # piece → when; until it has it
    helped: int = 0  # pieces that it was dealt because neighbours gave it none, since one last did
    helped_from: int = 0  # pieces of the middle peer when that began
    late: int = 0  # bit set of pieces that it was dealt and did not take in time; it may take them still


class Dealer:
    """Deals the pieces of one package.  Not thread-safe."""

    def __init__(self, pieces: int, policy: DealingPolicy, choice: random.Random) -> None:
        self._pieces = pieces
        self._all = (1 << pieces) - 1
        self._policy = policy
        self._peers: dict[Hashable, _Peer] = {}
        self._holders = [0] * pieces  # connected peers that have it
        self._in_flight = [0] * pieces  # peers that it is dealt to
        self._fresh = list(range(pieces))  # held by nobody and dealt to nobody, in dealing order from the end
        choice.shuffle(self._fresh)
        self._choice = choice
        self._spare = int(policy.spare_copies * pieces)
        self._overdue_s = policy.overdue_s
        self._patience_s = policy.neglected_s
        self._longest_s = LONGEST_FACTOR * policy.neglected_s
        self._stands_still = True  # the middle peer gets nothing from its neighbours
        self._most_help = self._help_left = policy.help_copies * pieces
        self._revised_s: float | None = None
        self._needed_s = -math.inf  # when the swarm was last seen to lack a piece
        self._out_of_sight: dict[int, float] = {}  # piece → when its only holder left us; perhaps not the swarm
        self._middle = 0  # pieces of the middle peer, as of the last revision
        self.dealt = 0

    @property
    def is_needed(self) -> bool:
        """Whether some piece is held by no peer."""
        return not all(self._holders)

    def join(self, peer: Hashable, now_s: float) -> None:
        """A peer has come; it has nothing until it says so."""
        self._peers[peer] = _Peer(self._policy.window, now_s)

    def leave(self, peer: Hashable, now_s: float) -> list[int]:
        """A peer is gone; return pieces that it was still to take, which will be dealt anew.

        What it had it may still give to others: in a crowd peers close connections of which they have too many.
        """
        gone = self._peers.pop(peer, None)
        if gone is None:
            return []
        for piece in gone.dealt:
            self._in_flight[piece] -= 1
        for piece in _bits(gone.has):
            self._holders[piece] -= 1
        self._out_of_sight |= {piece: now_s for piece in _bits(gone.has) if self._is_lost(piece)}
        lost = gone.dealt.keys() - self._out_of_sight.keys()
        if not self._peers:  # nobody is left who could have got it from there: who comes next is not to wait
            lost |= self._out_of_sight.keys()
            self._out_of_sight.clear()
        return self._renew(lost)

    def has(self, peer: Hashable, piece: int, now_s: float) -> None:
        """A peer says that it has a piece, from us or from a neighbour."""
        state = self._peers[peer]
        if not 0 <= piece < self._pieces or state.has >> piece & 1:
            return
        state.has |= 1 << piece
        state.count += 1
        self._holders[piece] += 1
        if state.dealt.pop(piece, None) is not None:
            self._in_flight[piece] -= 1
            state.taken_s = now_s
        else:
            state.served_s = now_s
            state.helped = 0

    def has_many(self, peer: Hashable, pieces: Iterable[int], now_s: float) -> None:
        """A peer says at once what it has."""
        for piece in pieces:
            self.has(peer, piece, now_s)

    def drained(self, peer: Hashable) -> None:
        """All that was dealt to a peer is sent although our link could carry more: let more be with it."""
        state = self._peers[peer]
        if state.dealt:
            state.window = min(self._policy.max_window, max(state.window, len(state.dealt)) + 1)

    def waits(self, peer: Hashable, now_s: float) -> None:
        """A peer asked for what our link has not sent yet: nothing that was dealt to it is overdue by its fault."""
        dealt = self._peers[peer].dealt
        dealt.update(dict.fromkeys(dealt, now_s))

    def is_complete(self, peer: Hashable) -> bool:
        """Whether a peer has everything."""
        return self._peers[peer].count == self._pieces

    def deal(self, peer: Hashable, now_s: float) -> list[int]:
        """Return the pieces to reveal to a peer now; perhaps none."""
        state = self._peers[peer]
        pieces: list[int] = []
        while len(state.dealt) < state.window and state.count + len(state.dealt) < self._pieces:
            piece = self._next(state, now_s)
            if piece is None:
                break
            state.dealt[piece] = now_s
            self._in_flight[piece] += 1
            self.dealt += 1
            pieces.append(piece)
        return pieces

    def revise(self, now_s: float) -> bool:
        """Take back what is overdue; return whether others may be dealt something.  Call about twice a second."""
        self._follow_pace(now_s)
        unseen_s = self._overdue_s if self._stands_still else self._longest_s
        late = [p for p, left_s in self._out_of_sight.items() if now_s - left_s > unseen_s]
        for piece in late:
            del self._out_of_sight[piece]
        for peer in self._peers.values():
            overdue_s = self._longest_s if now_s - peer.taken_s < self._overdue_s else self._overdue_s
            overdue = [p for p, dealt_s in peer.dealt.items() if now_s - dealt_s > overdue_s]
            for piece in overdue:
                del peer.dealt[piece]
                peer.late |= 1 << piece
                self._in_flight[piece] -= 1
            late += overdue
        self._renew(late)
        if self.is_needed:
            self._needed_s = now_s
        counts = sorted(peer.count for peer in self._peers.values())
        self._middle = counts[len(counts) // 2] if counts else 0
        for peer in self._peers.values():  # others may have come for those that it was helped along with
            peer.helped_from = min(peer.helped_from, self._middle)
        return bool(self._fresh) or any(
            self._is_neglected(p, now_s) or self._is_lagging(p) for p in self._peers.values()
        )

    def _follow_pace(self, now_s: float) -> None:
        """Set how long to wait for peers, by the middle one of those that are not complete."""
        waiting = sorted(now_s - p.served_s for p in self._peers.values() if p.count < self._pieces)
        middle_s = waiting[(len(waiting) - 1) // 2] if waiting else math.inf
        usual_s = middle_s if len(waiting) > 1 else 0.0
        policy = self._policy
        self._stands_still = middle_s > policy.neglected_s
        self._overdue_s = max(policy.overdue_s, min(self._longest_s, OVERDUE_FACTOR * usual_s))
        self._patience_s = min(self._longest_s, max(policy.neglected_s, NEGLECT_FACTOR * usual_s))
        if self._revised_s is not None:
            filled = self._most_help * (now_s - self._revised_s) / REFILL_S
            self._help_left = min(self._most_help, self._help_left + filled)
        self._revised_s = now_s

    def _next(self, state: _Peer, now_s: float) -> int | None:
        for at in range(len(self._fresh) - 1, -1, -1):
            piece = self._fresh[at]
            if self._holders[piece]:  # it arrived by other ways
                del self._fresh[at]
            elif piece not in state.dealt and not (state.has | state.late) >> piece & 1:
                del self._fresh[at]
                return piece
        if self._is_neglected(state, now_s):
            self._help_left = max(0.0, self._help_left - 1)
            state.helped_from = state.helped_from if state.helped else self._middle
            state.helped += 1
            return self._rarest(state)
        if self._is_lagging(state):
            self._spare -= 1
            return self._rarest(state)
        return None

    def _is_lagging(self, state: _Peer) -> bool:
        """Whether spare pieces go to a peer; a few at a time, so that they last to the end, where they count."""
        if self._spare <= 0 or self._policy.lagging < 0:
            return self._spare > 0
        is_late, behind = 2 * self._middle > self._pieces, self._middle - state.count
        return is_late and behind > self._policy.lagging * self._pieces and len(state.dealt) < self._policy.window

    def _is_neglected(self, state: _Peer, now_s: float) -> bool:
        """Whether neighbours could have served a peer and did not; while they wait for us it is not their fault."""
        patience_s = self._patience_s if self._help_left >= 1 else self._longest_s
        waited_s = now_s - state.served_s
        if waited_s < LONGEST_FACTOR * self._longest_s:
            waited_s = min(waited_s, now_s - self._needed_s)
        return state.count < self._pieces and waited_s > patience_s and not self._has_its_share(state)

    def _has_its_share(self, state: _Peer) -> bool:
        """Whether a helped peer goes as fast as the middle one of a crowd that goes on."""
        is_over = self._middle == self._pieces or self._stands_still
        return not is_over and state.helped >= self._policy.window + self._middle - state.helped_from

    def _renew(self, pieces: Iterable[int]) -> list[int]:
        """Have those of the pieces dealt anew that nobody holds or is to take; return them."""
        known = set(self._fresh)
        lost = [piece for piece in set(pieces) if piece not in known and self._is_lost(piece)]
        if lost:
            self._fresh += lost
            self._choice.shuffle(self._fresh)
        return lost

    def _is_lost(self, piece: int) -> bool:
        return not self._holders[piece] and not self._in_flight[piece]

    def _rarest(self, state: _Peer) -> int | None:
        missing = [p for p in _bits(self._all & ~state.has) if p not in state.dealt]
        if not missing:
            return None
        self._choice.shuffle(missing)
        return min(missing, key=lambda p: self._holders[p] + self._in_flight[p])


def _bits(number: int) -> list[int]:
    """The positions of the bits that are set."""
    text = bin(number)[:1:-1]
    return [at for at, bit in enumerate(text) if bit == "1"]
