"""The factory keeps as many pilots as waiting jobs call for: within every limit, and never more."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobagent.condor.pilots.elements import Element
from jobagent.condor.pilots.factory import (
    Demand,
    Ended,
    Presence,
    backoff_s,
    decide,
    servable_cores,
    trailing_failures,
)

NOW_S = 1_000_000.0
A = Element("a", "condor a a:9619", cpus=1, max_pilots=10, max_waiting=5, max_per_cycle=5, backoff_s=100.0)
B = replace(A, name="b", resource="condor b b:9619")


def counts(elements: list[Element], presences: dict[str, Presence], idle_cores: int, ceiling: int = 0) -> list[int]:
    return [d.count for d in decide(elements, presences, idle_cores=idle_cores, now_s=NOW_S, ceiling=ceiling)]


@pytest.mark.parametrize(
    ("why", "presence", "idle_cores", "expected"),
    [
        ("no job waits", Presence(), 0, 0),
        ("three jobs wait", Presence(), 3, 3),
        ("more wait than may be submitted at a time", Presence(), 100, 5),
        ("pilots in the queue count", Presence(waiting=2), 3, 1),
        ("pilots that are just starting count", Presence(running=2, starting=2), 3, 1),
        ("pilots that serve others do not", Presence(running=2), 3, 3),
        ("free cores in the pool count", Presence(running=1, free_cores=2), 3, 1),
        ("the site's queue is full of pilots", Presence(waiting=5), 100, 0),
        ("the element is full", Presence(running=10), 100, 0),
        ("nearly full", Presence(running=8), 100, 2),
        ("held pilots stop it", Presence(held=1), 100, 0),
    ],
)
def test_decision(why: str, presence: Presence, idle_cores: int, expected: int) -> None:
    assert counts([A], {"a": presence}, idle_cores) == [expected], why


def test_a_pilot_of_many_cores_serves_many_jobs() -> None:
    assert counts([replace(A, cpus=8)], {}, 17) == [3]


def test_demand_is_shared() -> None:
    assert counts([A, B], {}, 6) == [3, 3]
    assert counts([replace(A, max_pilots=20), B], {}, 6) == [4, 2]


def test_what_one_cannot_take_goes_to_the_other() -> None:
    assert counts([A, B], {"a": Presence(running=9)}, 6) == [1, 5]


def test_ceiling_holds_for_all_together() -> None:
    assert counts([A, B], {"a": Presence(running=3)}, 100, ceiling=5) == [1, 1]
    assert counts([A, B], {"a": Presence(running=9)}, 100, ceiling=5) == [0, 0]


def test_disabled_element_gets_none() -> None:
    assert counts([replace(A, is_enabled=False), B], {}, 2) == [0, 2]


def ended(*codes: int, last_s_ago: float) -> tuple[Ended, ...]:
    """Pilots in the order of their ends, a minute apart, the last one so long ago."""
    return tuple(Ended(NOW_S - last_s_ago - 60 * i, code) for i, code in enumerate(reversed(codes)))


@pytest.mark.parametrize(
    ("why", "presence", "expected"),
    [
        ("one failed just now", Presence(ended=ended(0, 220, last_s_ago=99)), 0),
        ("one failed, the pause is over: a trial", Presence(ended=ended(0, 220, last_s_ago=101)), 1),
        ("two failed: twice the pause", Presence(ended=ended(0, 220, 220, last_s_ago=199)), 0),
        ("two failed, that pause is over", Presence(ended=ended(0, 220, 220, last_s_ago=201)), 1),
        ("the trial is under way", Presence(waiting=1, ended=ended(220, last_s_ago=500)), 0),
        ("the latest was well", Presence(ended=ended(220, 220, 0, last_s_ago=1)), 5),
    ],
)
def test_back_off_where_pilots_fail(why: str, presence: Presence, expected: int) -> None:
    assert counts([A], {"a": presence}, 100) == [expected], why


def test_failures_elsewhere_do_not_matter() -> None:
    assert counts([A, B], {"a": Presence(ended=ended(242, last_s_ago=1))}, 4) == [0, 4]


def test_pause_doubles_up_to_a_bound() -> None:
    pauses = [backoff_s(A, n) for n in range(1, 200)]
    assert pauses[:4] == [100, 200, 400, 800]
    assert max(pauses) == 6 * 3600 and pauses == sorted(pauses)


def test_trailing_failures_are_counted_by_time_not_by_order() -> None:
    assert trailing_failures([Ended(3, 1), Ended(1, 1), Ended(2, 0), Ended(4, 1)]) == (2, 4)
    assert trailing_failures([]) == (0, 0.0)


@pytest.mark.parametrize(
    ("why", "demand", "expected"),
    [
        ("fits", Demand(1, 2000, 0, 7), 7),
        ("several cores each", Demand(4, 2000, 0, 2), 8),
        ("too many cores", Demand(9, 2000, 0, 2), 0),
        ("too much memory", Demand(1, 2001, 0, 2), 0),
        ("runs longer than the slot lives", Demand(1, 2000, 86400, 2), 0),
    ],
)
def test_only_jobs_that_fit_into_a_pilot_are_demand(why: str, demand: Demand, expected: int) -> None:
    assert servable_cores([demand], [replace(A, cpus=8)]) == expected, why


def test_one_element_that_fits_is_enough() -> None:
    assert servable_cores([Demand(8, 100, 0, 1)], [A, replace(B, cpus=8)]) == 8
    assert servable_cores([Demand(8, 100, 0, 1)], [A, replace(B, cpus=8, is_enabled=False)]) == 0


presences = st.builds(
    Presence,
    waiting=st.integers(0, 20),
    running=st.integers(0, 20),
    held=st.integers(0, 1),
    free_cores=st.integers(0, 20),
    starting=st.integers(0, 5),
    ended=st.lists(st.builds(Ended, st.floats(0, NOW_S), st.sampled_from([0, 220, 242])), max_size=4),
)
elements = st.builds(
    Element,
    name=st.just("x"),
    cpus=st.integers(1, 16),
    max_pilots=st.integers(1, 30),
    max_waiting=st.integers(0, 10),
    max_per_cycle=st.integers(0, 10),
    backoff_s=st.floats(1, 1e6),
)


@given(st.lists(st.tuples(elements, presences), min_size=1, max_size=5), st.integers(0, 500), st.integers(0, 40))
def test_never_more_than_any_limit_allows(
    pairs: list[tuple[Element, Presence]], idle_cores: int, ceiling: int
) -> None:
    named = [replace(element, name=f"e{number}") for number, (element, _) in enumerate(pairs)]
    have = {element.name: presence for element, (_, presence) in zip(named, pairs, strict=True)}
    made = decide(named, have, idle_cores=idle_cores, now_s=NOW_S, ceiling=ceiling)
    for decision in made:
        element, presence = decision.element, have[decision.element.name]
        assert 0 <= decision.count <= element.max_per_cycle
        if decision.count:
            assert presence.waiting + decision.count <= element.max_waiting
            assert presence.present + decision.count <= element.max_pilots
        assert decision.reason
    total = sum(d.count for d in made)
    if ceiling and total:
        assert total + sum(p.present for p in have.values()) <= ceiling
    # each pilot was needed: without the smallest of them the demand would not be met
    smallest = min((d.element.cpus for d in made if d.count), default=0)
    given_cores = sum(d.count * d.element.cpus for d in made)
    largest = max(e.cpus for e in named)
    assert given_cores - max(smallest, largest) < max(idle_cores, 1)
