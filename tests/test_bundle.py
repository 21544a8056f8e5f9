"""The runtime runs on nodes that have nothing: no Python, another libc, an unprivileged user."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from pilot_field import Web, send

from jobagent.central.landing import bundle, bundletree
from jobagent.central.landing.pilotscript import Landing, render
from jobagent.condor.pilots.glidein import build_of
from jobagent.testing.barenode import SUITES, BareNode, Lan, is_possible

pytestmark = [pytest.mark.slow]
EFFORT = 0  # of xz: the tests need no small archive

bare = pytest.mark.skipif(bool(is_possible()) and not os.environ.get("CI"), reason=is_possible() or "possible")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> bundle.Built:
    return bundle.build(tmp_path_factory.mktemp("bundle"), effort=EFFORT)


@pytest.fixture(scope="module")
def tree(built: bundle.Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runtime, unpacked as the pilot does it, at a path that nobody foresaw."""
    directory = tmp_path_factory.mktemp("some where else")
    with tarfile.open(built.archive) as archive:
        archive.extraction_filter = getattr(tarfile, "tar_filter", None)  # absent before Python 3.11.4
        archive.extractall(directory)
    subprocess.run(["sh", str(directory / "unpack"), str(directory)], check=True, timeout=60)
    return directory


@pytest.fixture(scope="module")
def lan() -> Iterator[Lan]:
    with Lan() as made:
        yield made


def test_two_builds_are_equal_to_the_byte(built: bundle.Built, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    again = bundle.build(tmp_path / "elsewhere" / "out", effort=EFFORT)
    assert again.runtime == built.runtime
    assert build_of(again.agent / "site") == build_of(built.agent / "site")


def test_unpacked_tree_is_what_the_pilot_script_expects(built: bundle.Built, tree: Path) -> None:
    sums = (tree / bundle.SUMS).read_bytes()
    assert hashlib.sha256(sums).hexdigest() == built.runtime.sums_sha256
    subprocess.run(["sha256sum", "--check", "--quiet", bundle.SUMS], cwd=tree, check=True, timeout=60)
    files = [path for path in tree.rglob("*") if path.is_file() and path.name != bundle.SUMS]
    assert len(files) == built.runtime.file_count
    assert not [path for path in tree.rglob("*") if path.is_symlink()]


def test_nothing_names_the_machine_of_the_build(tree: Path) -> None:
    here = [
        os.fsencode(p) for p in (bundletree.__file__.rpartition("/jobagent/")[0], tree, Path(shutil.__file__).parent)
    ]
    ours = [*(tree / "lib" / bundletree.VERSION).rglob("*.pyc"), *(tree / "bin").iterdir()]
    assert [path for path in ours if any(name in path.read_bytes() for name in here)] == []


def test_children_run_on_the_same_interpreter(tree: Path) -> None:
    code = (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import sys; print(sys.prefix)'], check=True)"
    )
    done = subprocess.run(
        [tree / "bin" / "python", "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == f"{tree}\n"


@pytest.mark.parametrize("environment", [{}, {"LC_CTYPE": "C.UTF-8"}, {"LANG": "C", "PYTHONPATH": "/evil"}])
def test_nothing_leaks_into_the_environment_of_children(tree: Path, environment: dict[str, str]) -> None:
    before = {"PATH": "/usr/bin:/bin", "PWD": "/", **environment}
    argv = [tree / "bin" / "python", "-c", "import os; os.execvp('env', ['env'])"]
    done = subprocess.run(argv, env=before, cwd="/", capture_output=True, text=True, timeout=30, check=True)
    assert dict(line.split("=", 1) for line in done.stdout.splitlines()) == before


def test_no_outside_library_or_module_is_loaded(tree: Path) -> None:
    code = """
import libtorrent, tuf.ngclient, zstandard, ssl, urllib3, hashlib, ctypes, jobagent.cli.run, sys
print(*{'/' + line.rstrip().partition('/')[2] for line in open('/proc/self/maps') if '/' in line}, sep='\\n')
print(*(m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)), sep='\\n')
"""
    done = subprocess.run(
        [tree / "bin" / "python", "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    paths = done.stdout.splitlines()
    assert len(paths) > 100
    ours = (f"{tree}/", "site-packages/", "/dev/")
    assert [p for p in paths if (".so" in p or ".py" in p) and not p.startswith(ours)] == []


def test_agent_package_runs_on_the_runtime(tree: Path, built: bundle.Built) -> None:
    environment = {"PATH": "/usr/bin:/bin", "JOBAGENT_PYTHON": str(tree / "bin" / "python")}
    argv = [built.agent / "bin" / "jobagent", "--version"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.startswith("jobagent ")
    assert build_of(built.agent / "site") == build_of(tree / "lib" / bundletree.VERSION / "site-packages")


def test_settings_for_the_glide_ins_condor_are_in_it(tree: Path) -> None:
    code = "from jobagent.condor.execution_point import configure as c; print(c.template(c.EXECUTION_POINT))"
    done = subprocess.run(
        [tree / "bin" / "python", "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert "JOBAGENT" in done.stdout


@bare
@pytest.mark.netns
@pytest.mark.parametrize("suite", SUITES)
def test_runtime_lands_on_a_bare(suite: str, lan: Lan, built: bundle.Built) -> None:
    web = Web(lan.address)
    web.answers["/r"] = send(built.archive.read_bytes())
    web.answers["/pilot.sh"] = send(render(Landing(built.runtime, [f"{web.url}/r"], "", b"{}")).encode())
    try:
        with BareNode(lan, suite) as node:
            assert node.run("sh", "-c", "command -v python3 perl5").returncode != 0
            done = node.run("sh", "-c", f"wget -qO- {web.url}/pilot.sh | sh -s -- plugins --json")
            assert (done.returncode, "swarm" in done.stdout) == (0, True), done.stderr
            assert node.written() == []
    finally:
        web.close()
