"""The targets of `make fuzz` work: each takes its good example, and that example damaged anywhere."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.seeds import seeds
from tests.fuzz.targets import Targets

SEEDS = seeds()
DAMAGES = 40


@pytest.fixture
def targets(tmp_path: Path) -> Iterator[Targets]:
    made = Targets(tmp_path)
    yield made
    made.close()


def test_every_target_has_an_example(targets: Targets) -> None:
    assert set(targets.all) == set(SEEDS)


@pytest.mark.parametrize("name", SEEDS)
def test_a_damaged_example_is_read_or_refused(targets: Targets, name: str) -> None:
    target, chance = targets.all[name], random.Random(name)
    for example in SEEDS[name]:
        target(example)
        for _ in range(DAMAGES):
            damaged = bytearray(example)
            for _ in range(chance.randint(1, 4)):
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
            target(bytes(damaged[: chance.randint(0, len(damaged))] if chance.random() < 0.2 else damaged))
