"""What all tests share: the acceptance table that the run itself writes, and the rule about absent tools."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

from tests.acceptance import CASES

# Other tests run meanwhile: no time is a long time.  The same examples every time; `make fuzz` looks for others.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None, max_examples=1000, print_blob=True)
settings.load_profile("repeatable")

MATERIAL = Path(__file__).resolve().parents[2] / "shared" / "material"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--acceptance", metavar="FILE", help="write the table of acceptance cases here")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "acceptance(*numbers): cases of tests/acceptance.py that the test shows")
    if config.getoption("--acceptance") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(AcceptanceTable(Path(config.getoption("--acceptance"))), "acceptance-table")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for number in case_numbers(item):
            assert number in CASES, f"{item.nodeid}: no acceptance case {number}"
            item.user_properties.append(("acceptance", number))


def case_numbers(item: pytest.Item) -> list[int]:
    return [number for marker in item.iter_markers("acceptance") for number in marker.args]


class AcceptanceTable:
    """Collects outcomes by case and writes one table row a case and test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outcomes: dict[int, dict[str, bool]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and not report.failed and not report.skipped:
            return
        test = report.nodeid.split("[")[0]
        for name, number in report.user_properties:
            if name == "acceptance":
                rows = self.outcomes.setdefault(int(number), {})
                rows[test] = rows.get(test, True) and report.passed

    def pytest_sessionfinish(self) -> None:
        lines = ["# Acceptance", "", "Made by the test run (`make test`).", "", "| # | case | test | passed |"]
        lines.append("|---|---|---|---|")
        for number, case in CASES.items():
            rows = sorted(self.outcomes.get(number, {}).items()) or [("", False)]
            lines += [f"| {number} | {case} | {f'`{t}`' if t else '–'} | {'yes' if p else 'no'} |" for t, p in rows]
        self.path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="session")
def material() -> Path:
    """Outside test data, which is not part of the project."""
    if not MATERIAL.is_dir():
        pytest.skip(f"outside test data is not at {MATERIAL}")
    return MATERIAL


def need(program: str) -> str:
    """Return the path of a stock program; skip where it is absent, but fail in CI."""
    path = shutil.which(program)
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(f"{program} is not installed: make system-tools")
        pytest.skip(f"{program} is not installed: make system-tools")
    return path
