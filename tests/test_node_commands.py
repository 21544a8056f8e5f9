"""`jobagent node`, `prepare`, `release` and `cache` on a real small grid, as prologs, epilogs and admins use them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobagent import processes
from jobagent.node import client
from jobagent.testing import accounts, interpreter
from jobagent.testing.world import Node, World

pytestmark = pytest.mark.swarm


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("world"))
    data = world.publish("Data", {"share/data": os.urandom(200_000)})
    world.publish("Hello", {"bin/hello": "#!/bin/sh\necho hello\n"}, "--depends", data)
    with world.serving():
        yield world


@pytest.fixture
def node(world: World, tmp_path: Path) -> Iterator[Node]:
    extra = f'[plugins]\nenable = ["sharedcache"]\n[sharedcache]\nroot = "{tmp_path / "cache"}"\n'
    node = world.node(extra, sections={"node": f'socket = "{tmp_path / "node.sock"}"\n'})
    yield node
    node.call("node", "--stop")


def said(node: Node, *words: str, code: int = 0) -> str:
    """Run a command, expect its exit code, and return what it printed."""
    done = node.call(*words)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


def answered(node: Node, *words: str) -> dict[str, object]:
    return dict(json.loads(said(node, *words)))


def leases(node: Node) -> int:
    return sum(e["leases"] for e in answered(node, "cache", "--json", "list")["entries"])  # type: ignore[attr-defined]


def test_a_prolog_prepares_and_an_epilog_releases_without_any_service_running_before(node: Node) -> None:
    lines = said(node, "prepare", "--package", "Hello", "--job-id", "17.0", "--shell").splitlines()
    script = "\n".join([*lines, "hello"])
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "hello\n"
    assert leases(node) == 2
    assert said(node, "release", "17.0") == "2 packages released\n"
    assert said(node, "release", "17.0") == "0 packages released\n"
    assert leases(node) == 0


def test_a_job_file_is_prepared_for_a_process_and_released_with_it(node: Node, tmp_path: Path) -> None:
    (tmp_path / "job.jdl").write_text('Executable = "hello";\nPackages = {"Hello"};\n')
    with subprocess.Popen(["sleep", "600"]) as job:
        answer = answered(node, "prepare", str(tmp_path / "job.jdl"), "--holder", str(job.pid), "--json")
        assert [p["id"] for p in answer["packages"]] == ["VO_ALICE@Data::1", "VO_ALICE@Hello::1"]  # type: ignore[attr-defined]
        assert leases(node) == 2
        job.kill()
    deadline = time.monotonic() + 5
    while leases(node):
        assert time.monotonic() < deadline


def test_leases_without_a_process_are_released_also_where_the_service_is_gone(node: Node) -> None:
    said(node, "prepare", "--package", "Hello", "--job-id", "18.0")
    said(node, "node", "--stop")
    assert "cannot evict" in said(node, "cache", "evict", "*", code=220)
    assert said(node, "release", "18.0") == "2 packages released\n"
    assert "done" in said(node, "cache", "evict", "*")


def test_the_cache_is_managed_with_and_without_a_service(node: Node, tmp_path: Path) -> None:
    (tmp_path / "list").write_text("# what every job wants\nHello\n\n")
    assert "VO_ALICE@Hello::1 installed" in said(node, "cache", "prewarm", "--from", str(tmp_path / "list"))
    process = node.start("node", stderr=subprocess.DEVNULL)
    try:
        client.ask(str(tmp_path / "node.sock"), "hello", wait_for_service_s=30)
        for service_runs in (True, False):
            listing = said(node, "cache", "list")
            assert "VO_ALICE@Data::1" in listing and "0 leases" in listing
            assert "limit" in said(node, "cache", "du")
            assert said(node, "cache", "verify").count(" done") == 2
            said(node, "cache", "pin", "VO_ALICE@Data::1")
            assert "VO_ALICE@Data::1" in said(node, "cache", "evict", "VO_ALICE@Data::1", code=220)
            refused = json.loads(node.call("cache", "--json", "evict", "VO_ALICE@Data::1").stdout)
            assert (refused["ok"], refused["exit_code"]) == (False, 220) and refused["results"]
            said(node, "cache", "unpin", "VO_ALICE@Data::1")
            if service_runs:
                said(node, "node", "--stop")
                assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
    assert said(node, "cache", "evict", "*").count(" done") == 2
    for action in (["list"], ["verify"], ["evict", "*"]):  # a nightly job must not fail for want of packages
        assert said(node, "cache", *action) == "the cache is empty\n"


def test_a_damaged_package_is_named_and_fails_the_command(node: Node, tmp_path: Path) -> None:
    said(node, "cache", "prewarm", "Data")
    (victim,) = (tmp_path / "cache" / "packages").glob("*/tree/share/data")
    victim.chmod(0o644)
    victim.write_bytes(b"damaged")
    assert "VO_ALICE@Data::1" in said(node, "cache", "verify", code=244)
    assert "installed" in said(node, "cache", "prewarm", "Data")
    assert said(node, "cache", "verify") == "VO_ALICE@Data::1 done\n"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("prepare", "--package", "Hallo"), 211, "Hello"),
        (("prepare", "--package", "no good"), 214, "not of the form"),
        (("prepare",), 214, "neither a job nor packages"),
        (("prepare", "nowhere.jdl"), 214, "nowhere.jdl"),
        (("cache", "evict", "VO_ALICE@Nothing::1"), 2, "no package"),
        (("cache", "prewarm"), 2, "no packages are named"),
        (("node", "--status", "--socket", "nowhere.sock"), 225, "nowhere.sock"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(node: Node, words: tuple[str, ...], code: int, says: str) -> None:
    lines = said(node, *words, code=code).splitlines()
    assert says in lines[-1] and lines[-1].startswith("jobagent: ")


def test_the_service_says_how_it_is(node: Node) -> None:
    said(node, "prepare", "--package", "Hello", "--job-id", "19.0")
    assert said(node, "node", "--status").startswith("ready\n")
    status = answered(node, "node", "--status", "--json")
    assert status["swarm"]["seeding"] == 2  # type: ignore[index]
    assert status["leased_packages"] == ["VO_ALICE@Data::1", "VO_ALICE@Hello::1"]


def test_a_restarted_service_seeds_what_is_cached(node: Node) -> None:
    said(node, "cache", "prewarm", "Hello")
    process = node.start("node", stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while True:
            done = node.call("node", "--status", "--json")
            if done.returncode == 0 and json.loads(done.stdout)["swarm"].get("seeding") == 2:
                break
            assert time.monotonic() < deadline
    finally:
        process.terminate()
        assert process.wait(20) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to drop it")
def test_a_service_started_by_root_becomes_the_user_of_the_configuration(tmp_path: Path) -> None:
    user = accounts.of_user()
    program = (
        "import os, sys; from pathlib import Path; from jobagent.cli.node import become\n"
        "from jobagent.errors import ConfigurationError\n"
        "try: become(sys.argv[1], Path(sys.argv[2]))\n"
        "except ConfigurationError as error: print(error, file=sys.stderr)\n"
        "print(os.getuid(), os.geteuid(), os.getgid())"
    )
    socket = tmp_path / "run" / "node.sock"
    argv = [sys.executable, "-c", program, user.name, str(socket)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(user.uid), str(user.uid), str(user.gid)]
    assert socket.parent.stat().st_uid == user.uid
    is_closed = any(map(interpreter.closed_part, (Path(os.__file__), Path(processes.__file__))))
    assert ("cannot read" in done.stderr) is is_closed, "an interpreter that the user cannot read is not named"


def test_the_cache_can_be_looked_at_without_a_catalogue(tmp_path: Path) -> None:
    configuration = tmp_path / "jobagent.toml"
    configuration.write_text(
        f'[site]\nscratch = "{tmp_path}"\n[node]\nsocket = "{tmp_path}/node.sock"\n'
        f'[plugins]\nenable = ["sharedcache"]\n[sharedcache]\nroot = "{tmp_path / "cache"}"\n'
    )
    node = Node(configuration, tmp_path, "127.0.0.1")
    assert said(node, "cache", "list") == "the cache is empty\n"
    assert "no catalogue is configured" in said(node, "node", code=224)
