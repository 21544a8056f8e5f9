"""Whatever comes over the socket, the node service answers in one line or closes, and goes on."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobagent.errors import UsageError
from jobagent.job import sandbox
from jobagent.node import client, service, wire
from jobagent.node.client import ServiceError
from jobagent.node.request import Arguments, Peer
from jobagent.node.watcher import Watcher
from jobagent.processes import descendants, start_ticks
from jobagent.testing import accounts
from tests.conftest import need
from tests.node_field import Field

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
operations = st.sampled_from(
    ["hello", "prepare", "fetch", "release", "list", "du", "evict", "verify", "pin", "prewarm", "nonsense"]
)
arguments = st.dictionaries(
    st.sampled_from(["job", "dialect", "packages", "holder", "job_id", "id", "torrent", "environment", "vo", "v"]),
    json_values,
)


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    field = Field(tmp_path_factory.mktemp("wire") / "field")
    field.make()
    with field.service():
        yield field


def send(field: Field, data: bytes, *, then_close: bool = False) -> bytes:
    """Send bytes as they are and return all that comes back."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(field.socket))
        connection.sendall(data)
        if then_close:
            connection.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := connection.recv(1 << 16):
            received += chunk
        return received


def answer_to(field: Field, data: bytes, *, then_close: bool = False) -> dict[str, object]:
    lines = send(field, data, then_close=then_close).splitlines()
    assert lines, "no answer"
    answer = json.loads(lines[-1])
    assert set(answer) >= {"ok"}
    if not answer["ok"]:
        assert "\n" not in answer["error"]["message"] and len(answer["error"]["message"]) < 3000
    return dict(answer)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300))
def test_any_bytes_get_one_line_and_the_service_goes_on(field: Field, data: bytes) -> None:
    answer = answer_to(field, data, then_close=True)
    assert not answer["ok"] and answer["error"]["kind"] == "UsageError"  # type: ignore[index]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operation=operations, values=arguments)
def test_any_arguments_are_answered_by_an_error_of_ours(
    field: Field, operation: str, values: dict[str, object]
) -> None:
    answer = answer_to(field, wire.encode({"v": 1, "op": operation, **values}))
    if not answer["ok"]:
        assert "internal error" not in answer["error"]["message"]  # type: ignore[index]


@pytest.mark.acceptance(28)
def test_a_job_ad_of_ten_megabytes_is_refused_before_it_is_sent(field: Field) -> None:
    with pytest.raises(ServiceError, match="at most") as caught:
        client.ask(str(field.socket), "prepare", {"job": "x" * (10 << 20)})
    assert caught.value.hook_status == 214


@pytest.mark.acceptance(28)
def test_a_client_that_sends_without_end_is_cut_off(field: Field) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(field.socket))
        chunk, sent = b"x" * (1 << 16), 0
        try:
            while sent < 4 * wire.MAX_REQUEST_BYTES:
                sent += connection.send(chunk)
        except (BrokenPipeError, ConnectionResetError):
            pass
        else:
            pytest.fail("the service read it all")
    assert client.ask(str(field.socket), "hello")["ok"]


def test_a_client_that_says_nothing_is_cut_off(field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "REQUEST_TIMEOUT_S", 0.2)
    assert b"no whole request" in send(field, b'{"v": 1, "op"')


def test_deep_nesting_is_refused(field: Field) -> None:
    assert not answer_to(field, b"[" * 200_000 + b"\n")["ok"]


def test_another_version_of_the_protocol_is_refused(field: Field) -> None:
    answer = answer_to(field, b'{"v": 2, "op": "hello"}\n')
    assert "protocol version 2" in answer["error"]["message"]  # type: ignore[index]


def test_one_user_cannot_take_all_connections(field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MAX_CONNECTIONS_OF_USER", 2)
    idle = [socket.socket(socket.AF_UNIX) for _ in range(2)]
    try:
        for connection in idle:
            connection.connect(str(field.socket))
        deadline = threading.Event()
        for _ in range(200):  # until both are being served
            try:
                client.ask(str(field.socket), "hello")
            except ServiceError as error:
                assert "clients already" in str(error)
                break
            deadline.wait(0.01)
        else:
            pytest.fail("a third connection is served")
    finally:
        for connection in idle:
            connection.close()


def test_the_socket_is_for_its_user_alone_by_default(field: Field) -> None:
    assert field.socket.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_other_users_may_prepare_but_not_manage(tmp_path: Path) -> None:
    python = need("/usr/bin/python3")  # the one of this environment may be where other users cannot read
    directory = Path("/tmp") / f"jobagent-test-{os.getpid()}"
    field = Field(directory)
    try:
        field.make(node="socket_mode = 0o666\n")
        directory.chmod(0o755)
        program = (
            "import sys; sys.path.insert(0, sys.argv[1])\n"
            "from jobagent.node import client\n"
            "for op in sys.argv[3:]:\n"
            "    try: print(client.ask(sys.argv[2], op, {'packages': ['*']})['ok'])\n"
            "    except client.ServiceError as error: print(error)\n"
        )
        copy = directory / "lib"  # this checkout may be where other users cannot read
        copy.mkdir()
        subprocess.run(["cp", "-r", str(Path(wire.__file__).parents[1]), str(copy)], check=True)
        with field.service():
            done = subprocess.run(
                [
                    python,
                    "-c",
                    program,
                    str(copy),
                    str(field.socket),
                    "hello",
                    "evict",
                    "shutdown",
                ],
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
                **accounts.of_user().popen,  # type: ignore[arg-type]
            )
            assert client.ask(str(field.socket), "hello")["ok"]
        lines = done.stdout.splitlines()
        assert lines[0] == "True", done.stderr
        assert all("for root and the user of the node service" in line for line in lines[1:]) and len(lines) == 3
    finally:
        subprocess.run(["rm", "-rf", str(directory)], check=True)


class TestHolders:
    def test_own_process_and_ancestors_may_hold(self) -> None:
        peer = Peer(os.getpid(), os.geteuid())
        assert peer.holder(os.getpid(), "j").start_ticks == start_ticks(os.getpid())
        assert peer.holder(os.getppid(), "j").pid == os.getppid()

    def test_an_unrelated_process_of_another_user_may_not(self) -> None:
        stranger = Peer(os.getpid(), 12345)
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as unrelated:
            with pytest.raises(UsageError, match="neither an ancestor"):
                stranger.holder(unrelated.pid, "j")
            unrelated.kill()

    def test_the_first_process_holds_nothing_because_it_never_ends(self) -> None:
        with pytest.raises(UsageError):
            Peer(os.getpid(), os.geteuid()).holder(1, "j")

    def test_only_the_services_user_holds_without_a_process(self) -> None:
        assert Peer(os.getpid(), os.geteuid()).holder(0, "j").pid == 0
        with pytest.raises(UsageError):
            Peer(os.getpid(), 12345).holder(0, "j")

    @pytest.mark.acceptance(22)
    def test_a_payload_in_its_sandbox_manages_nothing_though_it_is_the_services_user(self, tmp_path: Path) -> None:
        program = sandbox.find_bubblewrap()
        if not program:
            pytest.skip("bubblewrap cannot make namespaces here")
        argv = sandbox.wrap(["sh", "-c", "echo; read end"], program=program, read_only=[], directory=tmp_path)
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as payload:
            assert payload.stdout is not None and payload.stdout.readline() == b"\n"
            (inside,) = descendants(payload.pid)[-1:]
            assert not Peer(inside, os.geteuid()).is_admin
            with pytest.raises(UsageError, match="without a holder"):
                Peer(inside, os.geteuid()).holder(0, "j")
            payload.kill()
        assert Peer(os.getpid(), os.geteuid()).is_admin

    def test_an_ended_process_holds_nothing(self) -> None:
        with subprocess.Popen(["true"]) as ended:
            ended.wait()
            with pytest.raises(UsageError, match="does not run"):
                Peer(os.getpid(), os.geteuid()).holder(ended.pid, "j")


@given(values=st.dictionaries(st.sampled_from("ab"), json_values))
def test_arguments_are_of_their_type_or_refused(values: dict[str, object]) -> None:
    for read in (Arguments.text, Arguments.number, Arguments.flag, Arguments.texts, Arguments.mapping):
        try:
            value = read(Arguments(values), "a")  # type: ignore[operator]
        except UsageError:
            continue
        assert isinstance(value, str | int | tuple | dict | None)


class TestWatcher:
    @pytest.fixture
    def watcher(self) -> Iterator[Watcher]:
        watcher = Watcher()
        yield watcher
        watcher.close()

    def test_the_end_of_a_process_is_told_once(self, watcher: Watcher) -> None:
        ended = threading.Event()
        process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        assert watcher.process(process.pid, start_ticks(process.pid), ended.set) is not None
        assert not ended.is_set()
        process.kill()
        assert ended.wait(5)
        process.communicate()

    def test_a_reused_pid_is_not_taken_for_the_holder(self, watcher: Watcher) -> None:
        assert watcher.process(os.getpid(), start_ticks(os.getpid()) + 1, lambda: None) is None

    def test_what_is_forgotten_is_not_told(self, watcher: Watcher) -> None:
        told, other = threading.Event(), threading.Event()
        processes = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in range(2)]
        handle = watcher.process(processes[0].pid, start_ticks(processes[0].pid), told.set)
        assert handle is not None
        watcher.forget(handle)
        watcher.process(processes[1].pid, start_ticks(processes[1].pid), other.set)
        watcher.forget(handle)  # the descriptor may have the same number as the new one
        for process in processes:
            process.kill()
        assert other.wait(5) and not told.is_set()
        for process in processes:
            process.communicate()


def test_a_client_starts_without_heavy_modules() -> None:
    program = "import sys, jobagent.node.client; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(eval(done.stdout))
    heavy = {"dataclasses", "typing", "argparse", "logging", "pathlib", "subprocess", "jobagent.model", "libtorrent"}
    assert loaded & heavy <= {"typing"}


def test_no_service_is_said_so_with_the_path(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=r"nowhere\.sock") as caught:
        client.ask(str(tmp_path / "nowhere.sock"), "hello")
    assert (caught.value.kind, caught.value.hook_status) == ("NodeServiceUnavailable", 325)
