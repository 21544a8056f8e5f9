"""Real HTCondor pools for tests, shared as widely as their users and versions allow."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from condor_site import Packages, Site

from jobagent.errors import JobAgentError
from jobagent.testing import accounts, condor_tree, equipped, interpreter
from jobagent.testing.condor_tree import CondorTree
from jobagent.testing.interpreter import Interpreter
from jobagent.testing.pool import Pool
from jobagent.testing.world import World

# Held transfers are looked at and released sooner than at a site.
QUICK = "PERIODIC_EXPR_INTERVAL = 2\nMAX_PERIODIC_EXPR_INTERVAL = 2\nJOBAGENT_RELEASE_S = 3\n"
HELLO = "#!/bin/sh\necho hello from tool 1, $(wc -c < $BASE_ROOT/share/base.txt) bytes of base\n"


@pytest.fixture(scope="session")
def open_directory() -> Iterator[Path]:
    """A directory with a short path that every user may enter: pytest's own are closed to others."""
    with tempfile.TemporaryDirectory(prefix="ja-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="session")
def condor(open_directory: Path) -> Callable[[str], CondorTree]:
    """Give the relocated HTCondor of a suite; skip where it cannot be had, except in CI."""
    made: dict[str, CondorTree] = {}

    def get(suite: str) -> CondorTree:
        if suite not in made:
            try:
                made[suite] = condor_tree.install(open_directory / suite, suite)
            except JobAgentError as error:
                if os.environ.get("CI"):
                    raise
                pytest.skip(f"no HTCondor of {suite} here: {error}")
        return made[suite]

    return get


@pytest.fixture(scope="session")
def tree(condor: Callable[[str], CondorTree]) -> CondorTree:
    """The HTCondor that most tests use: the newest that installs, or $JOBAGENT_TEST_CONDOR."""
    chosen = os.environ.get("JOBAGENT_TEST_CONDOR")
    for suite in [chosen] if chosen else condor_tree.SUITES[:-1]:
        try:
            return condor(suite)
        except JobAgentError:
            continue
    return condor(condor_tree.SUITES[-1])


@pytest.fixture(scope="session")
def python(open_directory: Path) -> Interpreter:
    """An interpreter that the pool's user can run."""
    return interpreter.readable(open_directory / "python")


@pytest.fixture(scope="session")
def world(open_directory: Path) -> Iterator[World]:
    """A signed catalogue with tracker and seeder."""
    world = World(open_directory / "world")
    with world.serving():
        yield world


@pytest.fixture(scope="session")
def packages(world: World) -> Packages:
    """Small packages: one with a dependency, one that conflicts with it, a banned one, a data file."""
    base = world.publish("Base", {"share/base.txt": "b" * 1000})
    other = world.publish("Base", {"share/base.txt": "other"}, version="2")
    tool = world.publish(
        "Tool",
        {"bin/hello": HELLO, "lib/greeting.py": "WORD = 'hello'\n", "share/noise": os.urandom(2_000_000)},
        *("--depends", base, "--env", "PREPEND PYTHONPATH {root}/lib"),
    )
    conflicting = world.publish("Conflicting", {"x": "x"}, "--depends", other)
    banned = world.publish("Banned", {"x": "y"})
    world.call("ban", banned, "--reason", "leaks", "--catalogue", world.catalogue, "--keys", world.keys)
    content = world.directory / "conditions.dat"
    content.write_bytes(os.urandom(300_000))
    store = ("--vo", "alice", "--catalogue", world.catalogue, "--keys", world.keys)
    world.call("publish", *store, "--file", content, "--name", "Conditions", "--version", "2026")
    return Packages(base, tool, conflicting, banned, "VO_ALICE@Conditions::2026", 300_000)


@pytest.fixture(scope="session")
def site(tree: CondorTree, python: Interpreter, world: World, packages: Packages) -> Iterator[Site]:
    """The pool that most tests share, as whoever runs the tests, or unprivileged: $JOBAGENT_TEST_UNPRIVILEGED."""
    account = accounts.of_user() if os.environ.get("JOBAGENT_TEST_UNPRIVILEGED") else None
    with Pool(tree, account=account, execution_points=0, central_config=QUICK + equipped.CENTRAL_CONFIG) as pool:
        points = tuple(equipped.add(pool, name, world, python, wait=False) for name in ("ep1", "ep2"))
        pool.wait_for_machines()
        pool.wait_until(lambda: all(ad.get("JobAgentReady") for ad in pool.machines("JobAgentReady")))
        yield Site(pool, world, packages, points)


@pytest.fixture(params=["as root", "unprivileged"])
def account(request: pytest.FixtureRequest) -> accounts.Account:
    """Who starts a pool."""
    if request.param == "as root":
        if os.geteuid() != 0:
            if os.environ.get("CI"):
                pytest.fail("CI must run these tests as root")
            pytest.skip("a root-started pool needs root")
        return accounts.current()
    return accounts.of_user()


def pytest_report_header() -> str:
    """Say which HTCondor the tests run against."""
    found = sorted(condor_tree.cache_directory().glob(f"*-full-{condor_tree.FORMAT}/VERSION"))
    versions = ", ".join(f"{path.parent.name.split('-')[0]} {path.read_text().strip()}" for path in found)
    return f"HTCondor: {versions or 'not downloaded yet'}"
