"""The payload and its keeper: whatever the payload does, nothing of it is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobagent import processes
from jobagent.errors import PayloadNotRunnable
from jobagent.job.keeper import Command, Keeper
from jobagent.job.payload import Interruption, run_payload

ENVIRONMENT = {"PATH": "/usr/bin:/bin"}


@pytest.fixture
def keeper():
    keeper = Keeper()
    yield keeper
    keeper.close()


def shell(script, directory, **files):
    return Command(("/bin/sh", "-c", script), ENVIRONMENT, directory, **files)


def run(keeper, command, *, wall_limit_s=60.0, grace_s=0.3, interruption=None):
    return run_payload(
        keeper,
        command,
        wall_limit_s=wall_limit_s,
        grace_s=grace_s,
        interruption=interruption or Interruption(),
    )


def wait_gone(pid, timeout_s=5.0):
    deadline = time.monotonic() + timeout_s
    while processes.start_ticks(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return processes.start_ticks(pid) == 0


def test_exit_code_and_output_are_the_payloads(keeper, tmp_path):
    outcome = run(keeper, shell("echo out; echo err >&2; exit 7", tmp_path, stdout="o", stderr="e"))
    assert (outcome.exit_code, outcome.signal, outcome.shell_code) == (7, 0, 7)
    assert (tmp_path / "o").read_text() == "out\n"
    assert (tmp_path / "e").read_text() == "err\n"


def test_death_by_signal_is_told(keeper, tmp_path):
    outcome = run(keeper, shell("kill -SEGV $$", tmp_path))
    assert (outcome.signal, outcome.shell_code) == (signal.SIGSEGV, 139)


def test_one_keeper_runs_payload_and_validation_in_turn(keeper, tmp_path):
    assert run(keeper, shell("exit 3", tmp_path)).exit_code == 3
    assert run(keeper, shell("exit 0", tmp_path)).is_success


def test_an_end_that_comes_with_the_start_is_not_missed(keeper, tmp_path):
    for _ in range(50):  # /bin/true may end before the agent has read that it started
        keeper.start(Command(("/bin/true",), ENVIRONMENT, tmp_path))
        time.sleep(0.01)
        assert keeper.wait(5.0) is not None


def test_a_missing_program_is_refused_with_its_name(keeper, tmp_path):
    with pytest.raises(PayloadNotRunnable, match=r"/no/such: No such file"):
        run(keeper, Command(("/no/such",), ENVIRONMENT, tmp_path))
    assert run(keeper, shell("exit 0", tmp_path)).is_success


def test_the_payload_sees_only_the_environment_it_is_given(keeper, tmp_path):
    run(keeper, Command(("/usr/bin/env",), {"ONLY": "this"}, tmp_path, stdout="env"))
    assert (tmp_path / "env").read_text() == "ONLY=this\n"


@pytest.mark.acceptance(23)
def test_the_payload_inherits_no_descriptor(tmp_path):
    leak = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(leak, True)
    keeper = Keeper()
    try:
        run(keeper, shell("ls /proc/self/fd", tmp_path, stdout="fds", stderr="/dev/null"))
    finally:
        keeper.close()
        os.close(leak)
    assert set((tmp_path / "fds").read_text().split()) <= {"0", "1", "2", "3"}  # 3 is ls reading the directory


@pytest.mark.acceptance(31)
def test_a_daemon_that_ignores_sigterm_is_gone_with_the_payload(keeper, tmp_path):
    daemon = "trap '' TERM; echo $$ > daemon; sleep 300 & wait; sleep 300"
    script = f'setsid sh -c "{daemon}" & while [ ! -s daemon ]; do :; done'.replace("$$", "\\$\\$")
    run(keeper, shell(script, tmp_path))
    assert wait_gone(int((tmp_path / "daemon").read_text()))


def test_the_wall_limit_ends_a_payload_that_ignores_sigterm(keeper, tmp_path):
    outcome = run(keeper, shell("trap '' TERM; while :; do sleep 0.05; done", tmp_path), wall_limit_s=0.2)
    assert outcome.signal == signal.SIGKILL
    assert outcome.reason.startswith("wall limit")


@pytest.mark.acceptance(32)
def test_a_signal_to_the_agent_reaches_the_payload_first(keeper, tmp_path):
    interruption = Interruption()
    interruption(signal.SIGTERM)
    script = "trap 'echo saved > state; exit 5' TERM; while :; do sleep 0.05; done"
    outcome = run(keeper, shell(script, tmp_path), grace_s=5.0, interruption=interruption)
    assert (tmp_path / "state").read_text() == "saved\n"
    assert (outcome.exit_code, outcome.reason) == (5, f"signal {int(signal.SIGTERM)}")


AGENT = """
import os, sys
from pathlib import Path
from jobagent.job.keeper import Command, Keeper
scratch = Path(sys.argv[1])
keeper = Keeper(scratch=scratch)
script = "(setsid sh -c 'echo $$ > $1/daemon; sleep 300' sh $1 &) ; echo $$ > $1/payload; sleep 300"
keeper.start(Command(("/bin/sh", "-c", script, "sh", sys.argv[2]), {"PATH": "/usr/bin:/bin"}, scratch))
print(keeper.pid, flush=True)
keeper.wait(300)
"""


@pytest.mark.acceptance(5)
def test_kill_9_of_the_agent_ends_the_payloads_whole_tree_and_removes_its_scratch(tmp_path):
    scratch, marks = tmp_path / "scratch", tmp_path / "marks"
    scratch.mkdir()
    marks.mkdir()
    agent = subprocess.Popen(
        [sys.executable, "-c", AGENT, str(scratch), str(marks)], stdout=subprocess.PIPE, text=True
    )
    assert agent.stdout is not None
    keeper_pid = int(agent.stdout.readline())
    pids = [keeper_pid, *(read_pid(marks / name) for name in ("daemon", "payload"))]
    start = time.monotonic()
    agent.kill()
    agent.wait()
    agent.stdout.close()
    assert all(wait_gone(pid) for pid in pids)
    assert time.monotonic() - start < 3.0
    assert not scratch.exists()


def read_pid(path: Path, timeout_s: float = 10.0) -> int:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if path.exists() and path.read_text().strip():
            return int(path.read_text())
        time.sleep(0.01)
    raise AssertionError(f"{path} was not written")
