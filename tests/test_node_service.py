"""The node service prepares, holds, releases, survives and says what it does."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobagent.central.packaging.torrents import create
from jobagent.job import data
from jobagent.model import PackageId
from jobagent.node import client, wire
from jobagent.node.client import ServiceError
from jobagent.node.currentness import CurrentCatalogue, Refresher
from jobagent.node.request import Lines
from tests.node_field import CHUNK_BYTES, DirectoryCatalogue, Field

FILES = {"bin/hello": b"#!/bin/sh\necho hello\n", "share/data": os.urandom(5 * CHUNK_BYTES)}
PATIENCE_S = 30.0


@pytest.fixture
def field(tmp_path: Path) -> Field:
    field = Field(tmp_path / "field")
    field.make()
    data = field.publish("Data", {"share/data": os.urandom(3 * CHUNK_BYTES)})
    field.publish("Hello", FILES, dependencies=(data.id,))
    return field


@contextlib.contextmanager
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that can hold leases."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def separate(field: Field) -> Iterator[subprocess.Popen[bytes]]:
    """The service as a process of its own."""
    process = field.start()
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def until(what: object, *, within_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + within_s
    while not what():  # type: ignore[operator]
        assert time.monotonic() < deadline, "did not come true"
        time.sleep(0.01)


def leases(field: Field) -> int:
    return sum(entry["leases"] for entry in field.ask("list")["entries"])  # type: ignore[index,attr-defined]


def prepare(field: Field, holder: int = 0, **arguments: object) -> dict[str, object]:
    return field.ask("prepare", **{"packages": ["Hello"], "holder": holder, "job_id": "7.0", **arguments})


def test_a_job_gets_its_packages_and_their_environment(field: Field) -> None:
    with field.service():
        answer = prepare(field, environment={"PATH": "/bin"})
        names = [package["id"] for package in answer["packages"]]  # type: ignore[attr-defined]
        assert names == ["VO_TEST@Data::1", "VO_TEST@Hello::1"]
        tree = Path(answer["packages"][-1]["tree"])  # type: ignore[index]
        assert (tree / "share/data").read_bytes() == FILES["share/data"]
        assert answer["environment"]["HELLO_ROOT"] == str(tree)  # type: ignore[index]
        assert leases(field) == 2


@pytest.mark.acceptance(7)
def test_many_jobs_at_once_share_one_download_and_one_installation(field: Field) -> None:
    with field.service(), ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(lambda n: prepare(field, job_id=f"{n}.0"), range(64)))
        hits = [package["cache_hit"] for answer in answers for package in answer["packages"]]  # type: ignore[attr-defined]
        assert hits.count(False) == 2 and len(hits) == 128
        assert len(field.fetches()) == 2
        assert leases(field) == 128


def test_those_who_wait_see_the_progress_of_the_one_download(field: Field) -> None:
    field.set_pace(0.1)
    seen: dict[int, list[dict[str, object]]] = {0: [], 1: []}

    def one(n: int) -> object:
        return client.ask(
            str(field.socket), "prepare", {"packages": ["Hello"], "job_id": str(n)}, on_event=seen[n].append
        )

    with field.service(), ThreadPoolExecutor(2) as pool:
        list(pool.map(one, range(2)))
    for events in seen.values():
        progress = [e for e in events if e["event"] == "progress" and "Hello" in str(e["task"])]
        assert len(progress) > 1 and progress[-1]["done"] == progress[-1]["total"]
    assert len(field.fetches()) == 2


@pytest.mark.acceptance(5)
def test_a_lease_ends_within_a_second_of_its_holder(field: Field) -> None:
    with field.service(), sleeper() as holder:
        prepare(field, holder.pid)
        assert leases(field) == 2
        holder.kill()
        until(lambda: leases(field) == 0, within_s=1.0)


def test_release_by_answer_or_by_job_ends_the_leases_and_may_come_twice(field: Field) -> None:
    with field.service():
        answer = prepare(field)
        assert field.ask("release", id=answer["id"])["released"] == 2
        assert field.ask("release", id=answer["id"])["released"] == 0
        prepare(field, job_id="8.0")
        assert field.ask("release", id="8.0")["released"] == 2
        assert leases(field) == 0


@pytest.mark.acceptance(4)
def test_leases_survive_the_service_and_end_with_their_holder_under_the_next(field: Field) -> None:
    with sleeper() as holder:
        with separate(field) as service:
            prepare(field, holder.pid)
            service.send_signal(signal.SIGKILL)
            service.wait()
        with separate(field):
            assert leases(field) == 2
            result = field.ask("evict", packages=["*"])["results"]
            assert [r["done"] for r in result] == [False, False]  # type: ignore[attr-defined]
            holder.kill()
            until(lambda: leases(field) == 0)


@pytest.mark.acceptance(4)
def test_a_holder_that_ends_while_no_service_runs_holds_nothing(field: Field) -> None:
    with sleeper() as holder:
        with field.service():
            prepare(field, holder.pid)
        holder.kill()
    with field.service():
        assert leases(field) == 0
        result = field.ask("evict", packages=["*"])["results"]
        assert all(r["done"] for r in result)  # type: ignore[attr-defined]


@pytest.mark.acceptance(4)
def test_a_download_goes_on_under_the_next_service(field: Field) -> None:
    field.set_pace(0.2)
    with separate(field) as service:

        def job() -> None:
            with contextlib.suppress(ServiceError):
                prepare(field)

        waiting = threading.Thread(target=job)
        waiting.start()
        archives = field.cache / "archives"
        until(lambda: any(p.stat().st_size > CHUNK_BYTES for p in archives.iterdir()))
        service.send_signal(signal.SIGKILL)
        service.wait()
        waiting.join(PATIENCE_S)
    field.set_pace(0)
    with separate(field):
        answer = prepare(field)
        fetched = sum(p["neighbour_bytes"] for p in answer["packages"])  # type: ignore[attr-defined]
        whole = sum(p.archive.size_bytes for p in field.packages())
        assert 0 < fetched < whole
        assert list((field.cache / "staging").iterdir()) == []


def test_a_job_that_goes_away_while_it_waits_holds_nothing(field: Field) -> None:
    field.set_pace(0.2)
    with field.service():
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(field.socket))
            request = {"v": 1, "op": "prepare", "packages": ["Hello"], "job_id": "gone"}
            connection.sendall(wire.encode(request))
            until(field.fetches)
        field.set_pace(0)
        until(lambda: field.ask("status")["holders"] == 0)
        assert leases(field) == 0


@pytest.mark.acceptance(20)
def test_a_banned_package_gets_no_new_leases_and_goes_when_nobody_uses_it(tmp_path: Path) -> None:
    field = Field(tmp_path / "field")
    field.make(node="refresh_interval_s = 0.2\nsweep_interval_s = 0.2\n")
    package = field.publish("Bad", FILES)
    with field.service():
        held = field.ask("prepare", packages=["Bad"], job_id="1.0")
        tree = Path(held["packages"][0]["tree"])  # type: ignore[index]
        field.ask("pin", packages=[str(package.id)])
        field.ban(package)

        def is_refused() -> bool:
            try:
                answer = field.ask("prepare", packages=["Bad::1"], job_id="2.0")
            except ServiceError as error:
                return error.kind == "PackageBanned" and error.hook_status == 216
            field.ask("release", id=answer["id"])
            return False

        until(is_refused)
        assert tree.is_dir()
        field.ask("release", id=held["id"])
        until(lambda: not tree.exists())


def test_a_ban_is_acted_on_without_waiting_for_a_sweep(tmp_path: Path) -> None:
    field = Field(tmp_path / "field")
    field.make(node="refresh_interval_s = 0.2\nsweep_interval_s = 3600\n")
    package = field.publish("Bad", FILES)
    with field.service():
        held = field.ask("prepare", packages=["Bad"], job_id="1.0")
        tree = Path(held["packages"][0]["tree"])  # type: ignore[index]
        field.ask("release", id=held["id"])
        assert tree.is_dir()
        field.ban(package)
        until(lambda: not tree.exists())


def test_a_refresh_that_finds_nothing_new_disturbs_nobody(field: Field) -> None:
    source = DirectoryCatalogue(field.directory)
    catalogue, found = CurrentCatalogue(source, 0.05), []
    refresher = Refresher(catalogue, 0.05, lambda: found.append(catalogue.freshness))
    with contextlib.closing(refresher):
        refresher.start()
        until(lambda: source.refreshes >= 6)
        assert len(found) == 1
        field.publish("Another", FILES)
        until(lambda: len(found) == 2)


def test_an_unknown_package_is_the_users_fault_and_not_the_nodes(field: Field) -> None:
    with field.service():
        for _ in range(5):
            with pytest.raises(ServiceError) as caught:
                prepare(field, packages=["Hallo"])
            assert (caught.value.kind, caught.value.hook_status) == ("UnknownPackage", 211)
            assert "Hello" in str(caught.value)
        assert field.ask("status")["ready"]


def test_failures_in_a_row_make_the_node_say_that_it_is_not_ready(field: Field) -> None:
    with field.service():
        with field.outage():
            for _ in range(3):
                with pytest.raises(ServiceError) as caught:
                    prepare(field)
                assert caught.value.is_retryable and caught.value.hook_status >= 300
        status = field.ask("status")
        assert not status["ready"] and "outage" in str(status["reason"])
        prepare(field)
        assert field.ask("status")["ready"]


def test_what_is_cached_is_served_while_the_catalogue_is_away(field: Field) -> None:
    with field.service():
        field.ask("release", id=prepare(field)["id"])
        (field.directory / "unreachable").touch()
        assert prepare(field)["packages"]


def test_status_tells_all_that_a_machine_ad_needs(field: Field) -> None:
    with field.service():
        prepare(field)
        status = field.ask("status")
        assert status["packages"] == status["leased_packages"] == ["VO_TEST@Data::1", "VO_TEST@Hello::1"]
        assert (status["holders"], status["leases"], status["failures"]) == (1, 2, 0)
        assert status["usage"]["limit_bytes"] > status["usage"]["used_bytes"] > 0  # type: ignore[index]
        assert status["protection"] in ("view", "manifest")
        assert status["catalogue"]["source"] == "directory"  # type: ignore[index]


def test_packages_are_prewarmed_pinned_listed_verified_and_evicted(field: Field) -> None:
    with field.service():
        field.ask("prewarm", packages=["Hello"])
        assert leases(field) == 0
        pinned = field.ask("pin", packages=["VO_TEST@Data::1"])["results"]
        assert [r["done"] for r in pinned] == [True]  # type: ignore[attr-defined]
        verified = field.ask("verify", packages=["*"])["results"]
        assert [r["done"] for r in verified] == [True, True]  # type: ignore[attr-defined]
        evicted = {r["id"]: r["done"] for r in field.ask("evict", packages=["*"])["results"]}  # type: ignore[attr-defined]
        assert evicted == {"VO_TEST@Data::1": False, "VO_TEST@Hello::1": True}
        field.ask("pin", packages=["*"], unpin=True)
        assert field.ask("evict", packages=["*"])["results"][0]["done"]  # type: ignore[index]


def test_a_second_service_on_the_socket_is_refused_and_harms_nothing(field: Field) -> None:
    with field.service():
        with pytest.raises(Exception, match="another node service"), field.service():
            pass
        assert field.ask("hello")["ok"]


def test_a_leftover_socket_of_a_killed_service_is_taken_over(field: Field) -> None:
    with separate(field) as service:
        service.send_signal(signal.SIGKILL)
        service.wait()
    assert field.socket.exists()
    with field.service():
        assert field.ask("hello")["ok"]


def test_an_idle_service_ends_and_one_with_a_lease_does_not(tmp_path: Path) -> None:
    field = Field(tmp_path / "field")
    field.make(node="idle_exit_s = 0.5\n")
    field.publish("Hello", FILES)
    with separate(field) as service, sleeper() as holder:
        prepare(field, holder.pid)
        with pytest.raises(subprocess.TimeoutExpired):
            service.wait(2.0)
        holder.kill()
        assert service.wait(PATIENCE_S) == 0


def test_a_warm_prepare_costs_a_few_milliseconds(field: Field) -> None:
    with field.service():
        field.ask("prewarm", packages=["Hello"])
        seconds = sorted(float(prepare(field, job_id=str(n))["seconds"]) for n in range(20))  # type: ignore[arg-type]
        assert seconds[10] < 0.05  # the aim is 10 ms on an idle machine: bench.slots measures it


def test_packages_of_the_same_content_for_two_vos_are_one_on_disk_under_two_names(field: Field) -> None:
    field.publish("Hello", FILES, namespace="other")
    with field.service():
        prepare(field)
        answer = field.ask("prepare", packages=["VO_OTHER@Hello"], job_id="9.0")
        assert answer["packages"][0]["cache_hit"]  # type: ignore[index]
        names = field.ask("status")["packages"]
        assert str(PackageId("other", "Hello", "1")) in names  # type: ignore[operator]
        assert len(field.fetches()) == 2


@pytest.mark.acceptance(20)
def test_a_ban_by_one_vo_removes_nothing_that_another_uses(tmp_path: Path) -> None:
    field = Field(tmp_path / "field")
    field.make(node="refresh_interval_s = 0.2\nsweep_interval_s = 0.2\n")
    own, other = field.publish("Hello", FILES), field.publish("Hello", FILES, namespace="other")
    with field.service():
        for package in (own, other):
            answer = field.ask("prepare", packages=[str(package.id)], job_id="1.0")
            field.ask("release", id=answer["id"])
        tree = Path(answer["packages"][0]["tree"])  # type: ignore[index]
        field.ask("pin", packages=[str(own.id)])
        field.ban(other)

        def is_refused() -> bool:
            try:
                field.ask("release", id=field.ask("prepare", packages=[str(other.id)], job_id="2.0")["id"])
            except ServiceError as error:
                return error.kind == "PackageBanned"
            return False

        until(is_refused)
        sweeps = field.ask("prepare", packages=[str(own.id)], job_id="3.0")
        assert sweeps["packages"][0]["cache_hit"] and tree.is_dir()  # type: ignore[index]
        field.ask("release", id=sweeps["id"])
        field.ban(own)
        until(lambda: not tree.exists())


def offer(field: Field, content: bytes, *, name: str = "events.root") -> tuple[str, str]:
    """Make a torrent of a file that the field's transport delivers; return it as base64, and the cache's key."""
    source = field.directory / name
    source.write_bytes(content)
    made = create(source, name)
    key = data.key_of(made.infohash_v2)
    source.rename(field.directory / "archives" / key)
    return base64.b64encode(made.data).decode(), key


def test_any_file_with_a_torrent_comes_through_the_cache(field: Field) -> None:
    content = os.urandom(100_000)
    torrent, key = offer(field, content)
    with field.service():
        for job in ("1.0", "2.0"):
            answer = field.ask("fetch", torrent=torrent, url="torrent://host/x/events.root.torrent", job_id=job)
            tree = Path(answer["packages"][0]["tree"])  # type: ignore[index]
            assert [p.name for p in tree.iterdir()] == ["events.root"]
            assert (tree / "events.root").read_bytes() == content
            assert field.ask("release", id=answer["id"])["released"] == 1
        assert field.fetches() == [key]


@pytest.mark.parametrize("size", [1, data.BLOCK_BYTES, data.BLOCK_BYTES + 1, 5 * data.BLOCK_BYTES + 7])
def test_the_root_hash_is_that_of_the_torrent(tmp_path: Path, size: int) -> None:
    (tmp_path / "file").write_bytes(os.urandom(size))
    assert data.root_of(tmp_path / "file") == data.read(create(tmp_path / "file", "file").data).root


def test_a_file_that_is_not_what_its_torrent_describes_is_refused(field: Field) -> None:
    torrent, key = offer(field, os.urandom(100_000))
    (field.directory / "archives" / key).write_bytes(os.urandom(100_000))
    with field.service():
        with pytest.raises(ServiceError) as caught:
            field.ask("fetch", torrent=torrent)
        assert caught.value.kind == "DigestMismatch" and not caught.value.is_retryable
        assert field.ask("list")["entries"] == []


@pytest.mark.parametrize("torrent", ["", "%%%", "ZGU=", base64.b64encode(os.urandom(100)).decode()])
def test_what_is_no_torrent_is_refused_in_one_line(field: Field, torrent: str) -> None:
    with field.service(), pytest.raises(ServiceError) as caught:
        field.ask("fetch", torrent=torrent)
    assert caught.value.kind in ("HostileArchive", "UsageError") and "\n" not in str(caught.value)


def test_who_ends_the_service_is_answered_before_it_ends(field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    answer = Lines.answer

    def slow_answer(lines: Lines, message: dict[str, object]) -> None:
        time.sleep(0.3)
        answer(lines, message)
        order.append("answered")

    monkeypatch.setattr(Lines, "answer", slow_answer)
    with field.service() as service:
        waiter = threading.Thread(target=lambda: (service.wait(), order.append("ends")))
        waiter.start()
        assert field.ask("shutdown")["ok"]
        waiter.join(PATIENCE_S)
    assert order == ["answered", "ends"]
