"""How many pilots to submit where: one pure decision, made anew in each cycle from what the queues say.

As many as the waiting jobs call for, never more: pilots that wait or have just started count against the demand.
Elements where pilots fail are left alone for a while that doubles with each further failure; then one pilot tries.
Nothing is remembered between cycles, so a factory can be killed and started again at any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobagent.condor.pilots.elements import Element

MAX_BACKOFF_S = 6 * 3600.0


@dataclass(frozen=True, slots=True)
class Ended:
    """A pilot that is over; `ended_s` is seconds since the epoch."""

    ended_s: float
    exit_code: int

    @property
    def is_failure(self) -> bool:
        """Whether it counts against its element."""
        return self.exit_code != 0


@dataclass(frozen=True, slots=True)
class Presence:
    """The pilots of one element."""

    waiting: int = 0
    running: int = 0
    held: int = 0
    free_cores: int = 0  # of glide-ins in the pool
    starting: int = 0  # running at the site, not in the pool yet
    ended: Sequence[Ended] = ()

    @property
    def present(self) -> int:
        """All that count against the element's limit."""
        return self.waiting + self.running + self.held


@dataclass(frozen=True, slots=True)
class Decision:
    """Pilots to submit to one element, and why not more."""

    element: Element
    count: int
    reason: str


@dataclass(frozen=True, slots=True)
class Demand:
    """Waiting jobs that ask for the same; `wall_s` is how long they say they run, 0 where they do not."""

    cores: int
    memory_mb: int
    wall_s: int
    count: int


def servable_cores(demands: Sequence[Demand], elements: Sequence[Element]) -> int:
    """Return the cores that waiting jobs ask for, without those of jobs that fit into no pilot."""

    def fits(demand: Demand, element: Element) -> bool:
        is_small = demand.cores <= element.cpus and demand.memory_mb <= element.memory_mb
        return element.is_enabled and is_small and demand.wall_s < element.wall_s

    return sum(d.cores * d.count for d in demands if any(fits(d, element) for element in elements))


def decide(
    elements: Sequence[Element], presences: Mapping[str, Presence], *, idle_cores: int, now_s: float, ceiling: int
) -> list[Decision]:
    """Return a decision for each element, in the order of the file.

    Args:
        elements: The entries.
        presences: What each element has, by name.
        idle_cores: Cores that waiting jobs of the pool ask for.
        now_s: Seconds since the epoch.
        ceiling: Pilots that there may be in all; 0: only the elements' own limits count.
    """
    have = {element.name: presences.get(element.name, Presence()) for element in elements}
    promised = sum(
        (have[e.name].waiting + have[e.name].starting) * e.cpus + have[e.name].free_cores for e in elements
    )
    missing_cores = max(0, idle_cores - promised)
    room = ceiling - sum(presence.present for presence in have.values()) if ceiling else None
    open_elements = {e.name: _limit(e, have[e.name], now_s) for e in elements}
    counts = _share(elements, {name: limit for name, (limit, _) in open_elements.items()}, missing_cores, room)
    decisions = []
    for element in elements:
        limit, reason = open_elements[element.name]
        count = counts[element.name]
        decisions.append(Decision(element, count, reason or _why(count, limit, missing_cores, room)))
    return decisions


def _limit(element: Element, presence: Presence, now_s: float) -> tuple[int, str]:
    """Return how many pilots the element may get now, and the reason where that is less than its limits allow."""
    if not element.is_enabled:
        return 0, "not enabled"
    if presence.held:
        return 0, f"{presence.held} pilots are held: see condor_q -hold"
    allowed = min(
        element.max_pilots - presence.present,
        element.max_waiting - presence.waiting,
        element.max_per_cycle,
    )
    failures, last_s = trailing_failures(presence.ended)
    if failures:
        pause_s = backoff_s(element, failures)
        left_s = last_s + pause_s - now_s
        if left_s > 0:
            return 0, f"{failures} pilots failed in a row, pausing {left_s:.0f} s"
        if presence.waiting + presence.running:
            return 0, f"{failures} pilots failed in a row, one is on trial"
        return min(1, max(0, allowed)), f"{failures} pilots failed in a row, one more tries"
    if allowed <= 0:
        return 0, "its limits are reached"
    return allowed, ""


def trailing_failures(ended: Sequence[Ended]) -> tuple[int, float]:
    """Return how many pilots failed since the last that did not, and when the latest of them ended."""
    count, last_s = 0, 0.0
    for pilot in sorted(ended, key=lambda p: -p.ended_s):
        if not pilot.is_failure:
            break
        count += 1
        last_s = max(last_s, pilot.ended_s)
    return count, last_s


def backoff_s(element: Element, failures: int) -> float:
    """Return the pause after so many failures in a row."""
    return min(element.backoff_s * 2.0 ** min(failures - 1, 32), MAX_BACKOFF_S)


def _share(
    elements: Sequence[Element], limits: Mapping[str, int], missing_cores: int, room: int | None
) -> dict[str, int]:
    """Give out pilots one by one to the element that has got the least of its limit, until the demand is met."""
    counts = dict.fromkeys(limits, 0)
    while missing_cores > 0 and (room is None or sum(counts.values()) < room):
        able = [e for e in elements if counts[e.name] < limits[e.name]]
        if not able:
            break
        chosen = min(able, key=lambda e: (counts[e.name] / e.max_pilots, elements.index(e)))
        counts[chosen.name] += 1
        missing_cores -= chosen.cpus
    return counts


def _why(count: int, limit: int, missing_cores: int, room: int | None) -> str:
    if missing_cores == 0:
        return "no demand"
    if room is not None and room <= 0:
        return "the factory's ceiling is reached"
    if count == limit:
        return "as many as its limits allow"
    return "the demand is met" if count else "others serve the demand"
