"""The hook clients alone: what they ask, what they print, how they fail, and what they import."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import classad2
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jobagent
from jobagent.condor.execution_point import hooks, transfer
from jobagent.condor.execution_point.startd_cron import fitting, of_status, unavailable
from jobagent.condor.language import longform

CODE = Path(jobagent.__file__).parent.parent
AD = b'ClusterId = 7\nProcId = 1\nEnvironment = "A=1"\nPackages = { "VO_ALICE@Tool::1" }\nOther = "x"\n'


def run_hook(ad: bytes, path: Path, **limits: float) -> subprocess.CompletedProcess[bytes]:
    """Run the prepare hook as the starter does: a program of its own, without site-packages."""
    words = ", ".join(f"{name}={value}" for name, value in limits.items())
    code = (
        f"import sys; sys.path.insert(0, {str(CODE)!r}); from jobagent.condor.execution_point.hooks import main; "
        f"sys.exit(main({str(path)!r}, {words}))"
    )
    argv = [sys.executable, "-I", "-S", "-X", "importtime", "-c", code]
    return subprocess.run(argv, input=ad, capture_output=True, timeout=30, check=False)


def printed(done: subprocess.CompletedProcess[bytes]) -> classad2.ClassAd:
    (ad,) = classad2.parseAds(done.stdout.decode(), classad2.ParserType.Old)
    return ad


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[Path]:
    """A service that takes every request and never says anything."""
    path = tmp_path / "node.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        yield path


@pytest.fixture
def dropping(tmp_path: Path) -> Iterator[tuple[Path, list[bytes]]]:
    """A service that dies on every request; with what it was asked."""
    path, requests = tmp_path / "node.sock", []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    requests.append(connection.recv(1 << 20))
                    connection.close()

        threading.Thread(target=serve, daemon=True).start()
        yield path, requests
        listener.shutdown(socket.SHUT_RDWR)


def test_a_job_without_packages_costs_no_question_and_no_imports() -> None:
    done = run_hook(b'Cmd = "/bin/true"\nNotPackages = 1\n', Path("/nowhere"))
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"jobagent.node" not in done.stderr


def test_the_hook_imports_nothing_that_is_slow_to_import(tmp_path: Path) -> None:
    done = run_hook(AD, tmp_path / "none", patience_s=0)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.decode().splitlines()}
    assert "jobagent.node.client" in imported
    assert not imported & {"dataclasses", "typing", "pathlib", "asyncio", "logging", "argparse", "inspect", "site"}


def test_a_prepared_job_has_cost_no_module_that_is_slow_to_import(tmp_path: Path) -> None:
    """What fails may cost more; what is on every job's path may not."""
    path = tmp_path / "node.sock"
    package: dict[str, object] = {"id": "VO_ALICE@Tool::1", "digest": "d", "cache_hit": True}
    package |= dict.fromkeys(("seeder_bytes", "neighbour_bytes", "web_bytes"), 0)
    answer = {"ok": True, "packages": [package], "seconds": 0.1, "environment": {"A": "1", "B": "x y"}}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 20)
                connection.sendall(b'{"event":"alive"}\n' + json.dumps(answer).encode() + b"\n")

        server = threading.Thread(target=serve)
        server.start()
        done = run_hook(AD, path)
        server.join()
    assert printed(done)["Environment"] == "A=1 'B=x y'"
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.decode().splitlines()}
    assert not imported & {"re", "enum", "json", "socket", "selectors", "contextlib", "collections"}


def test_without_a_service_the_job_goes_elsewhere(tmp_path: Path) -> None:
    refused = printed(run_hook(AD, tmp_path / "none", patience_s=0))
    assert refused["HookStatusCode"] == 325
    assert str(tmp_path / "none") in refused["HookStatusMessage"]


def test_a_service_that_says_nothing_is_not_waited_for_for_ever(silent: Path) -> None:
    assert printed(run_hook(AD, silent, silence_s=0.2, patience_s=0.1))["HookStatusCode"] == 325


def test_the_whole_takes_no_longer_than_the_limit(silent: Path) -> None:
    refused = printed(run_hook(AD, silent, limit_s=0.3))
    assert refused["HookStatusCode"] == 325
    assert "0.3 s" in refused["HookStatusMessage"]


def test_a_service_that_dies_again_and_again_is_given_up(dropping: tuple[Path, list[bytes]]) -> None:
    path, requests = dropping
    assert printed(run_hook(AD, path, patience_s=5))["HookStatusCode"] == 325
    assert len(requests) == hooks.MAX_RESTARTS
    assert b"VO_ALICE@Tool::1" in requests[0]
    assert b"Other" not in requests[0], "the service gets more of the ad than it needs"


def test_an_ad_that_is_too_large_holds_the_job(tmp_path: Path) -> None:
    refused = printed(run_hook(AD + b"x" * hooks.MAX_AD_BYTES, tmp_path / "none"))
    assert refused["HookStatusCode"] == 214


@pytest.mark.parametrize(("size", "told", "status"), [(9000, [], 0), (10_240, [], 324), (10_240, ["20000"], 0),
                                                     (20_000, ["20000"], 214)])  # fmt: skip
def test_what_the_starter_would_cut_is_refused(size: int, told: list[str], status: int) -> None:
    try:
        hooks.check_size("x" * (size - 1), told)
    except hooks.Refusal as refusal:
        assert refusal.status == status
        assert str(size) in str(refusal)
    else:
        assert status == 0


def test_a_reason_names_no_line_of_a_file_that_the_user_never_saw() -> None:
    told = "line 2, column 12: Packages: package name 'a b' is not of the form"
    assert hooks.without_place(told) == told.partition(": ")[2]
    assert hooks.without_place("line 2: x") == "line 2: x"


def test_a_fault_of_our_own_does_not_cost_the_user_his_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = printed(run_hook(AD, tmp_path / "none", patience_s="'x'"))  # type: ignore[arg-type]
    assert refused["HookStatusCode"] == hooks.STATUS_OF_BUG


@given(st.text(max_size=2000))
def test_every_message_becomes_one_line_that_htcondor_reads(message: str) -> None:
    text = hooks.refused(211, message)
    (ad,) = classad2.parseAds(text, classad2.ParserType.Old)
    assert ad["HookStatusCode"] == 211
    assert len(ad["HookStatusMessage"]) <= hooks.MAX_MESSAGE_CHARACTERS
    assert len(text.splitlines()) == 2


@given(st.lists(st.text("abc", min_size=1, max_size=300), max_size=60))
def test_long_lists_are_cut_into_parts_that_lose_nothing(values: list[str]) -> None:
    parts = hooks.parts(values)
    assert [value for part in parts for value in part] == values
    assert all(len(part) <= 1 or sum(len(v) + 4 for v in part) <= 900 for part in parts)


# the machine ad


def test_the_machine_ad_is_not_ready_without_a_service() -> None:
    found = unavailable('node "service" at\n/x: gone')
    assert found["JobAgentReady"] is False
    assert found["JobAgentReason"] == 'node "service" at /x: gone'


def test_the_machine_ad_tells_what_plugins_add_and_nothing_twice() -> None:
    status = {
        "version": "1", "ready": True, "reason": "", "failures": 0, "packages": ["p", "q"], "leases": 3,
        "usage": {"used_bytes": 5 << 20, "free_bytes": 7 << 20}, "swarm": None,
        "attributes": {"JobAgentBurstBufferGB": 5, "JobAgentReady": False},
    }  # fmt: skip
    found = of_status(status)
    assert found["JobAgentBurstBufferGB"] == 5
    assert found["JobAgentReady"] is True
    assert found["JobAgentCachedPackages"] == ("p", "q")
    assert (found["JobAgentCacheUsedMB"], found["JobAgentCacheFreeMB"]) == (5, 7)


def test_of_more_packages_than_an_ad_can_hold_those_in_use_are_told() -> None:
    names = [f"VO_ALICE@Package{number}::v1-2-3" for number in range(5000)]
    told = fitting([names[-1], *names])
    assert names[-1] in told
    assert 1000 < len(told) < 5000
    assert len(longform.assignment("JobAgentCachedPackages", told)) < 60_000, "the startd would drop the line"


# the transfer plugin


@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30)), max_size=4))
def test_what_htcondor_asks_for_is_understood(files: list[tuple[str, str]]) -> None:
    ads = [classad2.ClassAd({"Url": url, "LocalFileName": name}) for url, name in files]
    text = "".join(str(ad) for ad in ads)
    assert [(t.url, t.target) for t in transfer.requests(text.encode())] == files


@given(st.text(max_size=200))
def test_every_failure_is_told_in_an_ad_that_htcondor_reads(reason: str) -> None:
    def fail(url: str, target: str) -> int:
        raise RuntimeError(reason)

    code, text = transfer.carry_out(transfer.Transfer("torrent://h/x", "/t/x"), fail)
    ad = classad2.ClassAd(text)
    assert code == transfer.EXIT_OF_BUG
    assert ad["TransferSuccess"] is False
    assert ad["TransferError"]
    assert ad["TransferErrorData"][0]["ErrorCode"] == code


def test_the_output_file_is_filled_and_never_made_shorter_first(tmp_path: Path) -> None:
    """HTCondor reserves its space: on a full disk the plugin must still be able to say so."""
    output = tmp_path / "out"
    output.write_bytes(b"\0" * 10_000)
    inode = output.stat().st_ino
    transfer.write_results(str(output), ["[ A = 1; ]\n"])
    assert (output.read_text(), output.stat().st_ino) == ("[ A = 1; ]\n", inode)


def test_the_plugin_says_what_it_can_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert transfer.main("/nowhere", ["-classad"]) == 0
    (ad,) = classad2.parseAds(capsys.readouterr().out, classad2.ParserType.Old)
    assert ad["SupportedMethods"] == "torrent"
    assert ad["MultipleFileSupport"] is True


@pytest.mark.parametrize("url", ["http://h/x", "torrent://", "torrent:"])
def test_another_url_than_torrent_is_refused(url: str) -> None:
    with pytest.raises(jobagent.errors.JobSyntaxError, match="not a torrent URL"):
        transfer.order(url)


def test_programs_are_plain_words_for_any_path(tmp_path: Path) -> None:
    """Blanks and quotes in paths of the installation reach no shell as syntax."""
    from jobagent.condor.execution_point.configure import Installation, plan, write

    odd = tmp_path / "a b'c\"d$(e)"
    write(plan(Installation((sys.executable,), CODE, odd / "bin", odd / "config.d", odd / "s")))
    program = odd / "bin" / "transfer"
    done = subprocess.run([program, "-classad"], capture_output=True, text=True, timeout=30, check=True)
    assert "SupportedMethods" in done.stdout
    assert os.access(odd / "bin" / "prepare", os.X_OK)
