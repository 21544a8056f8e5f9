"""The pool that the other tests stand on."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from condor_site import Packages, Site

from jobagent import processes
from jobagent.condor.pilots import relocation
from jobagent.errors import ScratchUnusable
from jobagent.testing import condor_tree, equipped, joblog
from jobagent.testing.accounts import Account
from jobagent.testing.condor_tree import CondorTree
from jobagent.testing.interpreter import Interpreter
from jobagent.testing.pool import Pool
from jobagent.testing.world import World

pytestmark = pytest.mark.condor


@pytest.mark.parametrize("suite", condor_tree.SUITES)
def test_a_job_gets_its_packages_and_the_pool_leaves_nothing_behind(
    condor: Callable[[str], CondorTree],
    suite: str,
    account: Account,
    world: World,
    packages: Packages,
    python: Interpreter,
) -> None:
    tree = condor(suite)
    print(f"HTCondor {tree.version} started by {account.name}")
    with Pool(tree, account=account, execution_points=0, central_config=equipped.CENTRAL_CONFIG) as pool:
        equipped.add(pool, "ep1", world, python)
        cluster = pool.submit(
            f'executable = /bin/sh\ntransfer_executable = false\nMY.Packages = {{"{packages.tool}"}}\n'
            "arguments = \"-c 'hello; id -un'\"\nqueue 2\n"
        )
        assert [event.kind for event in pool.jobs.wait(cluster)] == [joblog.TERMINATED] * 2
        greeting = "hello from tool 1, 1000 bytes of base"
        assert (pool.sandbox(cluster) / "out.0").read_text() == f"{greeting}\n{pool.user.name}\n"
        ads = pool.history(cluster)
        assert [ad["JobAgentPackages"] for ad in ads] == [[packages.base, packages.tool]] * 2
        origins = ("JobAgentSeederBytes", "JobAgentNeighbourBytes", "JobAgentWebBytes")
        # Either job may have been first at either package; what one job brought is the other's cache hit.
        assert 1 <= sum(any(ad[name] for name in origins) for ad in ads) <= 2, "nobody downloaded"
        assert sum(ad["JobAgentCacheHits"] for ad in ads) == 2, "a package came twice"
        directory = pool.directory
    assert not directory.exists()
    assert not _processes_naming(str(directory))


def test_a_killed_test_takes_its_pool_with_it(tmp_path: Path) -> None:
    """The warden ends what it guards, orphans in sessions of their own included, when its starter dies."""
    stubborn = "trap '' TERM QUIT; (setsid sh -c 'echo up; exec sleep 1000' &) ; sleep 1000"
    starter = subprocess.Popen(
        [sys.executable, "-c",
         "import subprocess, sys, time\n"
         "w = subprocess.Popen([sys.executable, '-m', 'jobagent.testing.warden', '--grace', '0.2', '--',"
         " *sys.argv[1:]], stdin=subprocess.PIPE)\nprint(w.pid, flush=True)\ntime.sleep(1000)", "sh", "-c", stubborn],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert starter.stdout is not None
    warden = int(starter.stdout.readline())
    assert starter.stdout.readline() == "up\n"
    family = [warden, *processes.descendants(warden)]
    assert len(family) >= 3
    descriptor = os.pidfd_open(warden)
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    _wait_for_end(descriptor)
    starter.stdout.close()
    assert [pid for pid in family if processes.start_ticks(pid)] == []


def test_tokens_let_clients_of_another_version_in(site: Site, tmp_path: Path) -> None:
    """The bindings that we submit with are never of the pool's exact version for long."""
    pool = site.pool
    config = pool.client_config(tmp_path)
    script = (
        "import htcondor2\n"
        "schedd = htcondor2.Schedd(htcondor2.Collector().locate(htcondor2.DaemonType.Schedd))\n"
        "job = htcondor2.Submit({'executable': '/bin/true', 'transfer_executable': 'false'})\n"
        "print(schedd.submit(job, spool=True).cluster())\n"
    )
    done = _run(sys.executable, "-c", script, CONDOR_CONFIG=str(config))
    assert done.returncode == 0, done.stderr
    assert pool.queue(int(done.stdout))[0]["Owner"] == pool.user.name
    pool.central.tool("condor_rm", done.stdout.strip())


def test_a_tree_that_moves_is_relocated_and_runs(tree: CondorTree, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    subprocess.run(["cp", "-a", str(tree.path), str(moved)], check=True, timeout=30)
    assert relocation.relocate(moved) > 20
    done = _run(str(moved / "bin" / "condor_version"))
    assert tree.version in done.stdout


def test_a_directory_that_is_too_deep_is_refused_with_the_reason(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 200) / ("e" * 100)
    (deep / "lib").mkdir(parents=True)
    (deep / "lib" / "ld-linux-x86-64.so.2").touch()
    with pytest.raises(ScratchUnusable, match="too deep"):
        relocation.relocate(deep)


def _processes_naming(text: str) -> list[str]:
    lines = _run("ps", "axww", "-o", "pid,args", PATH="/bin:/usr/bin").stdout
    return [line for line in lines.splitlines() if text in line]


def _run(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, env=environment, check=False, capture_output=True, text=True, timeout=30)


def _wait_for_end(descriptor: int) -> None:
    assert select.select([descriptor], [], [], 20)[0], "the warden did not end"
    os.close(descriptor)
