"""What the shared cache promises beyond every cache: quota, protection, one copy of each file, power loss."""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from jobagent.contracts import Built, CacheEntry, Holder, Staging
from jobagent.errors import DiskFull, ScratchUnusable, SiteError, SupplyError
from jobagent.events import Event, Events
from jobagent.job import sandbox
from jobagent.testing import accounts
from jobagent.testing.cache_users import content, spoil, user
from jobagent.testing.samples import FILES, Sample, failing, holder, sample
from jobagent_sharedcache import SharedCache, SharedCacheSettings, filesystem
from jobagent_sharedcache.filesystem import free_space
from jobagent_sharedcache.leases import LeaseRecord, Place, is_live
from jobagent_sharedcache.protection import decide
from jobagent_sharedcache.room import SPARE_BYTES, Amount, limits_of, need_of, shortage
from jobagent_sharedcache.settings import KeepArchives, NetworkFilesystem, Protection

WAIT_S = 30.0
MB = 1 << 20
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def opened(root: Path, *, events: Events | None = None, **settings: object) -> SharedCache:
    return SharedCache(SharedCacheSettings(**settings), events or Events(), root=root)  # type: ignore[arg-type]


def open_default(root: Path) -> SharedCache:
    return opened(root)


def install(cache: SharedCache, wanted: Sample) -> Sample:
    """Install and let go."""
    cache.release(cache.acquire(wanted.package, holder(), wanted))
    return wanted


def bulky(name: str, size_bytes: int = MB) -> Sample:
    return sample(name, files={"data": (name.encode() * size_bytes)[:size_bytes]})


def leftovers(root: Path) -> list[Path]:
    """All that must be empty while nobody works."""
    return [p for name in ("staging", "reservations", "progress", "trash") for p in (root / name).iterdir()]


# --- quota and eviction


class TestDecisions:
    def test_the_smaller_of_bytes_and_share_is_the_limit(self) -> None:
        assert limits_of(SharedCacheSettings(quota_bytes=10, quota_fraction=0.5), 100).bytes == 10
        assert limits_of(SharedCacheSettings(quota_bytes=90, quota_fraction=0.5), 100).bytes == 50
        assert limits_of(SharedCacheSettings(quota_fraction=0.25), 100).bytes == 25

    def test_what_is_short_is_the_worse_of_quota_and_disk(self) -> None:
        need, plenty = Amount(100, 10), Amount(1 << 40, 1 << 20)
        assert shortage(need, Amount(50, 0), plenty, Amount(1000, 0)) == Amount(0, 0)
        assert shortage(need, Amount(950, 0), plenty, Amount(1000, 0)) == Amount(50, 0)
        assert shortage(need, Amount(0, 0), Amount(SPARE_BYTES, 1 << 20), plenty) == Amount(100, 0)
        assert shortage(need, Amount(0, 95), plenty, Amount(1 << 40, 100)) == Amount(0, 5)

    @pytest.mark.parametrize(
        ("holder_uid", "has_view", "expected"),
        [(1000, False, Protection.UID), (0, True, Protection.VIEW), (500, True, Protection.VIEW),
         (500, False, Protection.MANIFEST), (0, False, Protection.MANIFEST)],
    )  # fmt: skip
    def test_the_best_protection_that_is_there_is_chosen(
        self, holder_uid: int, has_view: bool, expected: Protection
    ) -> None:
        assert decide(Protection.AUTO, holder_uid=holder_uid, owner_uid=500, has_view=has_view) is expected


def test_the_least_recently_used_goes_first(root: Path) -> None:
    one = bulky("One")
    need = need_of(one.package).bytes
    cache = opened(root, quota_bytes=int(2.5 * need))
    install(cache, one)
    two = install(cache, bulky("Two"))
    install(cache, one)
    install(cache, bulky("Three"))
    assert sorted(e.package_id for e in cache.entries()) == ["VO_TEST@One::1.0", "VO_TEST@Three::1.0"]
    assert not cache.final_tree(two.package).exists()
    assert cache.usage().used_bytes <= cache.usage().limit_bytes


def test_a_site_may_choose_another_order(root: Path) -> None:
    one = bulky("One")
    cache = opened(root, quota_bytes=int(2.5 * need_of(one.package).bytes))
    seen: list[CacheEntry] = []

    def newest_first(entries: object) -> list[str]:
        seen.extend(entries)  # type: ignore[arg-type]
        return [e.key for e in sorted(seen, key=lambda e: -e.last_used_s)]

    cache.order_evictions_by(newest_first)
    for name in ("One", "Two", "Three"):
        install(cache, bulky(name))
    assert sorted(e.package_id for e in cache.entries()) == ["VO_TEST@One::1.0", "VO_TEST@Three::1.0"]
    assert len(seen) == 2


@pytest.mark.acceptance(8)
def test_a_leased_or_pinned_package_never_makes_room(root: Path) -> None:
    one, two, three = bulky("One"), bulky("Two"), bulky("Three")
    cache = opened(root, quota_bytes=int(2.5 * need_of(one.package).bytes))
    lease = cache.acquire(one.package, holder(), one)
    install(cache, two)
    assert cache.pin(two.package.key, is_pinned=True)
    with pytest.raises(DiskFull, match="leased, pinned or being installed"):
        cache.acquire(three.package, holder(), failing(AssertionError("was asked to build")))
    assert content(lease.installed.tree) == content(cache.final_tree(one.package))
    assert not cache.evict(two.package.key)
    cache.pin(two.package.key, is_pinned=False)
    install(cache, three)
    assert not cache.final_tree(two.package).exists()
    assert leftovers(root) == []


@pytest.mark.acceptance(8)
def test_eviction_against_users_and_installers_never_breaks_a_leased_tree(root: Path) -> None:
    samples = [bulky(name, 64 * 1024) for name in ("One", "Two", "Three", "Four")]
    cache = opened(root, quota_bytes=int(2.2 * need_of(samples[0].package).bytes))
    stop = time.monotonic() + 2.0

    def job(number: int) -> int:
        done = 0
        own = opened(root, quota_bytes=int(2.2 * need_of(samples[0].package).bytes))
        while time.monotonic() < stop:
            wanted = samples[(number + done) % len(samples)]
            try:
                lease = own.acquire(wanted.package, holder(), wanted)
            except DiskFull:
                continue
            assert content(lease.installed.tree) == dict(wanted.files)
            own.release(lease)
            done += 1
        return done

    def evictor() -> None:
        while time.monotonic() < stop:
            for wanted in samples:
                cache.evict(wanted.package.key)

    with ThreadPoolExecutor(5) as pool:
        pool.submit(evictor)
        assert all(pool.map(job, range(4)))
    assert leftovers(root) == []


@pytest.mark.acceptance(27)
@pytest.mark.parametrize(
    ("settings", "says"),
    [({"quota_bytes": 1000}, "quota of the cache is 1000 bytes"), ({"quota_inodes": 5}, "inodes")],
)
def test_what_exceeds_the_quota_is_refused_before_the_download(
    root: Path, settings: dict[str, object], says: str
) -> None:
    wanted = sample()
    cache = opened(root, **settings)
    with pytest.raises(DiskFull, match=says):
        cache.acquire(wanted.package, holder(), failing(AssertionError("was asked to build")))
    assert leftovers(root) == []


@pytest.mark.acceptance(27)
def test_a_full_disk_is_found_before_the_download(root: Path) -> None:
    wanted = sample()
    for facts in ((SPARE_BYTES + 100, 1 << 40, 1 << 20), (1 << 40, 1 << 40, 3)):
        cache = SharedCache(SharedCacheSettings(), Events(), root=root, free_space=lambda path, f=facts: f)  # type: ignore[misc]
        with pytest.raises(DiskFull):
            cache.acquire(wanted.package, holder(), failing(AssertionError("was asked to build")))


def test_two_builders_do_not_get_the_same_room_twice(root: Path) -> None:
    one, two = bulky("One"), bulky("Two")
    cache = opened(root, quota_bytes=int(1.5 * need_of(one.package).bytes))
    building, finish = threading.Event(), threading.Event()

    def slow(staging: Staging) -> Built:
        building.set()
        assert finish.wait(WAIT_S)
        return one(staging)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(cache.acquire, one.package, holder(), slow)
        assert building.wait(WAIT_S)
        with pytest.raises(DiskFull):
            cache.acquire(two.package, holder(), two)
        finish.set()
        first.result(WAIT_S)


def test_an_interrupted_download_makes_room_before_any_package_goes(root: Path) -> None:
    one, two, three = bulky("One"), bulky("Two"), bulky("Three")
    cache = opened(root, quota_bytes=int(2.2 * need_of(one.package).bytes))
    install(cache, one)

    def part(staging: Staging) -> None:
        staging.archive.write_bytes(bytes(MB))

    with pytest.raises(SupplyError):
        cache.acquire(two.package, holder(), failing(SupplyError("cut"), after=part))
    assert cache.usage().partial_bytes >= MB
    install(cache, three)
    assert cache.final_tree(one.package).exists()
    assert cache.usage().partial_bytes == 0


@needs_root
@pytest.mark.acceptance(2)
def test_a_disk_that_fills_while_unpacking_leaves_no_staging(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], check=True)
    try:
        wanted = sample()
        cache = opened(disk / "cache")

        def flood(staging: Staging) -> Built:
            with (staging.tree / "flood").open("wb") as stream:
                while True:
                    stream.write(bytes(MB))

        with pytest.raises(DiskFull, match="No space left"):
            cache.acquire(wanted.package, holder(), flood)
        assert leftovers(disk / "cache") == []
        install(cache, wanted)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


# --- the root


@pytest.mark.acceptance(27)
@pytest.mark.parametrize("case", ["world-writable", "in a world-writable directory", "a file"])
def test_a_root_that_others_could_change_is_refused(root: Path, case: str) -> None:
    if case == "a file":
        root.write_text("")
    else:
        root.mkdir()
        (root if case == "world-writable" else root.parent).chmod(0o777)
    with pytest.raises(ScratchUnusable):
        opened(root)
    root.parent.chmod(0o755)


@needs_root
def test_a_root_of_another_user_is_refused(root: Path) -> None:
    root.mkdir()
    os.chown(root, accounts.of_user().uid, 0)
    with pytest.raises(ScratchUnusable, match="belongs to uid"):
        opened(root)


@needs_root
@pytest.mark.acceptance(27)
def test_a_read_only_root_is_refused(root: Path) -> None:
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,mode=755", "tmpfs", str(root)], check=True)
    try:
        with pytest.raises(ScratchUnusable, match="read-only"):
            opened(root)
    finally:
        subprocess.run(["umount", "-l", str(root)], check=True)


def test_a_cache_of_a_later_format_is_left_alone(root: Path) -> None:
    install(opened(root), sample())
    (root / "FORMAT").write_text(json.dumps({"format": 99}))
    with pytest.raises(SiteError, match="format 99"):
        opened(root)


@pytest.mark.acceptance(38)
def test_a_network_file_system_is_refused_or_used_with_less_trust(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def on_lustre(path: Path) -> str:
        return "Lustre"

    with pytest.raises(ScratchUnusable, match="Lustre"):
        SharedCache(SharedCacheSettings(), Events(), root=root, network_type=on_lustre)
    settings = SharedCacheSettings(network_filesystem=NetworkFilesystem.DEGRADE)
    with caplog.at_level(logging.WARNING):
        cache = SharedCache(settings, Events(), root=root, network_type=on_lustre)
    assert "degraded" in caplog.text
    assert cache.protection == "manifest"


@pytest.mark.acceptance(38)
def test_without_bubblewrap_packages_are_checked_before_each_job(root: Path) -> None:
    cache = SharedCache(SharedCacheSettings(), Events(), root=root, may_view=False)
    assert cache.protection == "manifest"


# --- trust


@pytest.mark.acceptance(21)
@pytest.mark.parametrize("damage", ["edit", "delete", "add", "mode", "symlink"])
def test_what_a_payload_changed_is_found_before_the_next_job_and_reinstalled(
    root: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = sample(log=tmp_path / "log")
    cache = opened(root, protection=Protection.MANIFEST)
    install(cache, wanted)
    unseal(cache.final_tree(wanted.package))
    spoil(cache.final_tree(wanted.package), damage)
    lease = cache.acquire(wanted.package, holder(), wanted)
    assert not lease.installed.is_cache_hit and wanted.builds() == 2
    assert content(lease.installed.tree) == dict(FILES)
    assert len(list((root / "quarantine").iterdir())) == 1
    assert "was damaged" in caplog.text


@pytest.mark.acceptance(21)
def test_a_damaged_package_is_replaced_under_running_jobs_without_a_gap(root: Path, tmp_path: Path) -> None:
    wanted = sample(log=tmp_path / "log")
    cache = opened(root)
    running = cache.acquire(wanted.package, holder(), wanted)
    unseal(running.installed.tree)
    spoil(running.installed.tree, "edit")
    assert not cache.verify(wanted.package.key)
    stop, gaps = threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            if not (running.installed.tree / "bin/program").exists():
                gaps.append(time.monotonic())

    watcher = threading.Thread(target=look)
    watcher.start()
    again = cache.acquire(wanted.package, holder(), wanted)
    stop.set()
    watcher.join()
    assert gaps == [] and wanted.builds() == 2
    assert content(again.installed.tree) == dict(FILES)
    assert [e.leases for e in cache.entries()] == [2]


def test_a_damaged_file_is_not_linked_into_later_packages(root: Path) -> None:
    first, second = sample(version="1", archive_bytes=2000), sample(version="2", archive_bytes=3000)
    cache = opened(root, protection=Protection.MANIFEST)
    install(cache, first)
    unseal(cache.final_tree(first.package))
    spoil(cache.final_tree(first.package), "edit")
    lease = cache.acquire(second.package, holder(), second)
    assert content(lease.installed.tree) == dict(FILES)
    assert cache.verify(second.package.key) and not cache.verify(first.package.key)


@pytest.mark.acceptance(22)
def test_a_payload_under_the_read_only_view_cannot_change_the_cache(root: Path, tmp_path: Path) -> None:
    program = sandbox.find_bubblewrap()
    if not program:
        pytest.skip("bubblewrap cannot make namespaces here")
    wanted = install(cache := opened(root), sample())
    tree = cache.final_tree(wanted.package)
    attack = (
        f"cd {tree}; echo x > lib/data; rm -f lib/data; mv lib lib2; chmod 777 lib/data; touch new;"
        f"mount -o remount,rw {root}; mount --bind /tmp {tree}; umount {root}; ln -f /etc/passwd lib/data;"
        f"echo x > {root}/packages/{wanted.package.key}/manifest; rm -rf {root}/locks;"
        f"cd /; rm -f /proc/{os.getpid()}/root{tree}/lib/data /proc/{os.getppid()}/root{tree}/lib/data;"
        f"nsenter -t {os.getpid()} -m rm -rf {root}/locks;"
        f"unshare -Urm sh -c 'mount -o remount,bind,rw {root}; umount {root}; rm -rf {root}/locks'; exit 0"
    )
    argv = sandbox.wrap(["/bin/sh", "-c", attack], program=program, read_only=[root], directory=tmp_path)
    subprocess.run(argv, capture_output=True, timeout=WAIT_S, check=False)
    assert cache.verify(wanted.package.key)
    assert (root / "locks").is_dir()


@needs_root
@pytest.mark.acceptance(22)
def test_a_payload_of_another_user_cannot_change_the_cache_but_read_it(tmp_path: Path) -> None:
    base = Path("/tmp") / f"jobagent-test-cache-{os.getpid()}"
    try:
        cache = opened(base)
        wanted = install(cache, sample())
        tree = cache.final_tree(wanted.package)
        attack = (
            f"cat {tree}/lib/data >/dev/null && echo read; echo x >> {tree}/lib/data; rm -rf {tree}; touch {base}/x"
        )
        done = subprocess.run(
            ["/bin/sh", "-c", attack],
            capture_output=True,
            text=True,
            check=False,
            **accounts.of_user().popen,  # type: ignore[arg-type]
        )
        assert done.stdout == "read\n"
        assert cache.verify(wanted.package.key)
        assert [p.name for p in base.iterdir() if p.is_dir() and p.stat().st_mode & 0o007] == ["packages"]
    finally:
        shutil.rmtree(base)


def test_an_installed_tree_is_sealed_against_accidents(root: Path) -> None:
    wanted = install(cache := opened(root), sample())
    modes = {stat.S_IMODE(p.stat().st_mode) for p in cache.final_tree(wanted.package).rglob("*")}
    assert modes == {0o555, 0o444}


@pytest.mark.acceptance(6)
def test_after_a_power_loss_a_package_is_verified_once_before_use(root: Path, tmp_path: Path) -> None:
    wanted = install(opened(root), sample(log=tmp_path / "log"))
    pretend_other_boot(root, wanted)
    cache = opened(root, protection=Protection.UID)
    assert cache.acquire(wanted.package, holder(), wanted).installed.is_cache_hit
    assert json.loads(stamp(root, wanted).read_text())["boot"] != "another"
    assert wanted.builds() == 1


@pytest.mark.acceptance(6)
def test_a_package_that_a_power_loss_damaged_is_installed_anew(root: Path, tmp_path: Path) -> None:
    wanted = install(opened(root), sample(log=tmp_path / "log"))
    pretend_other_boot(root, wanted)
    cache = opened(root, protection=Protection.UID)
    unseal(cache.final_tree(wanted.package))
    (cache.final_tree(wanted.package) / "lib/data").write_bytes(b"")
    lease = cache.acquire(wanted.package, holder(), wanted)
    assert content(lease.installed.tree) == dict(FILES) and wanted.builds() == 2


def stamp(root: Path, wanted: Sample) -> Path:
    return root / "packages" / wanted.package.key / "stamp.json"


def pretend_other_boot(root: Path, wanted: Sample) -> None:
    path = stamp(root, wanted)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"boot": "another"}))


def unseal(tree: Path) -> None:
    """Give the tree's owner the write permission, as a hostile payload of the same user could."""
    for path in (tree, *tree.rglob("*")):
        path.chmod(path.stat().st_mode | 0o200)


# --- leases


HERE = Place(boot="b1", pid_namespace=1, host="node", now_s=1000.0, max_age_s=100.0)
RECORD = LeaseRecord("id", "key", 10, 5, "b1", 1, "node", 0, "job", "s", is_own=False, created_s=990.0)


@pytest.mark.acceptance(39)
@pytest.mark.parametrize(
    ("record", "place", "session", "running", "expected"),
    [
        pytest.param(RECORD, HERE, False, True, True, id="a holder that runs"),
        pytest.param(RECORD, HERE, True, False, False, id="a holder that ended, though its agent lives"),
        pytest.param(replace(RECORD, boot="b0"), HERE, True, True, False, id="before the last boot"),
        pytest.param(replace(RECORD, is_own=True), HERE, True, False, True, id="an agent for itself, alive"),
        pytest.param(replace(RECORD, is_own=True), HERE, False, True, False, id="an agent for itself, gone"),
        pytest.param(replace(RECORD, pid=0), HERE, False, True, True, id="held until released, agent gone"),
        pytest.param(replace(RECORD, pid=0, created_s=0), HERE, True, True, True, id="old, agent alive"),
        pytest.param(replace(RECORD, pid=0, created_s=0), HERE, False, True, False, id="old and nobody there"),
        pytest.param(replace(RECORD, pid_namespace=2), HERE, False, False, True, id="another container, young"),
        pytest.param(replace(RECORD, pid_namespace=2, created_s=0), HERE, False, True, False, id="another one, old"),
        pytest.param(
            replace(RECORD, boot="b2", host="other"), replace(HERE, is_network_disk=True), False, False, True,
            id="another host on a network disk, young",
        ),
        pytest.param(
            replace(RECORD, pid=0, created_s=1e9), HERE, False, True, False, id="from before the clock went back far",
        ),
        pytest.param(
            replace(RECORD, boot="b2"), replace(HERE, is_network_disk=True), False, True, False,
            id="this host before its last boot, on a network disk",
        ),
    ],
)  # fmt: skip
def test_whether_a_lease_counts_follows_from_record_and_machine(
    record: LeaseRecord, place: Place, session: bool, running: bool, expected: bool
) -> None:
    verdict = is_live(record, place, is_session_held=lambda s: session, is_running=lambda pid, ticks: running)
    assert verdict is expected


@pytest.mark.acceptance(39)
def test_a_reused_pid_does_not_keep_a_lease(root: Path) -> None:
    wanted = sample()
    cache = opened(root)
    someone = Holder(os.getppid(), 1, "job", os.geteuid())  # that pid runs, but did not start then
    cache.acquire(wanted.package, someone, wanted)
    assert [e.leases for e in cache.entries()] == [0]
    assert cache.evict(wanted.package.key)


@pytest.mark.acceptance(39)
def test_lock_files_of_the_dead_hold_up_nobody(root: Path) -> None:
    wanted = install(opened(root), sample())
    for lock in ((root / "locks" / wanted.package.key), root / "quota.lock"):
        lock.write_text(str(os.getpid()))
    assert opened(root).acquire(wanted.package, holder(), wanted).installed.is_cache_hit


def test_a_lease_record_that_cannot_be_read_does_not_count(root: Path) -> None:
    wanted = install(cache := opened(root), sample())
    directory = root / "leases" / wanted.package.key
    directory.mkdir(exist_ok=True)
    for number, data in enumerate((b"", b"{", b"[]", b'{"id": 1}', b"null", b"\xff" * 100)):
        (directory / f"broken{number}").write_bytes(data)
    assert [e.leases for e in cache.entries()] == [0]
    cache.sweep()
    assert not directory.exists()


def test_a_restarted_service_finds_the_leases_of_the_last(root: Path) -> None:
    wanted = sample()
    first = opened(root)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as job:
        lease = first.acquire(wanted.package, holder(job.pid, "42.0"), wanted)
        first.close()
        second = opened(root)
        (found,) = second.leases()
        assert (found.id, found.holder.pid, found.holder.job_id) == (lease.id, job.pid, "42.0")
        second.release(found)
        assert second.leases() == []
        job.kill()


# --- crashes


@pytest.mark.acceptance(40)
def test_staging_of_the_dead_is_swept_and_that_of_the_living_is_not(root: Path, tmp_path: Path) -> None:
    dead, living = sample("Dead", files={"a": b"dead"}), sample("Living", files={"a": b"living"})
    cache = opened(root)
    with user(open_default, root, living) as other, user(open_default, root, dead) as victim:
        for process in (other, victim):
            process.send("hang")
            assert process.receive() == "building"
        victim.kill()
        assert len(list((root / "staging").iterdir())) == 2
        cache.sweep()
        (left,) = (root / "staging").iterdir()
        assert left.name.startswith(living.package.key)
        assert (left / "tree" / "hang").exists()
    cache.sweep()
    assert leftovers(root) == []
    assert list((root / "sessions").iterdir()) == []


def test_old_leftovers_go_with_a_sweep_and_young_ones_stay(root: Path) -> None:
    wanted = sample()
    cache = opened(root, partial_max_age_s=60.0)
    with pytest.raises(SupplyError):
        cache.acquire(
            wanted.package, holder(), failing(SupplyError("cut"), after=lambda s: s.archive.write_bytes(b"part"))
        )
    partial = root / "archives" / wanted.package.key
    cache.sweep()
    assert partial.exists()
    os.utime(partial, (0, 0))
    cache.sweep()
    assert not partial.exists()


def test_waiting_for_another_process_shows_its_progress(root: Path) -> None:
    wanted = sample()
    events, seen, building, finish = Events(), [], threading.Event(), threading.Event()
    watched = Events()
    watched.subscribe(seen.append)
    builder, waiter = opened(root, events=events), opened(root, events=watched)

    def build(staging: Staging) -> Built:
        building.set()
        while not finish.wait(0.05):
            events.emit("progress", task="fetch", digest=wanted.package.key, done=1, total=2)
        return wanted(staging)

    def told(name: str) -> list[Event]:
        return [e for e in seen if e.name == name]

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(builder.acquire, wanted.package, holder(), build)
        assert building.wait(WAIT_S)
        file = root / "progress" / wanted.package.key
        second = pool.submit(waiter.acquire, wanted.package, holder(), wanted)
        deadline = time.monotonic() + WAIT_S
        while not told("progress") and time.monotonic() < deadline:
            if file.exists():  # as another process would have written it
                file.write_text(file.read_text().replace(f'"pid": {os.getpid()}', '"pid": 1'))
            time.sleep(0.01)
        finish.set()
        first.result(WAIT_S)
        second.result(WAIT_S)
    assert len(told("cache.waiting")) == 1
    assert (told("progress")[0].fields["done"], told("progress")[0].fields["total"]) == (1, 2)


# --- one copy of each file


COMMON = {f"lib/common{n}": os.urandom(8192) for n in range(8)}


class TestSharing:
    @pytest.fixture
    def cache(self, root: Path) -> Iterator[SharedCache]:
        cache = opened(root)
        yield cache
        cache.close()

    @pytest.fixture
    def versions(self, cache: SharedCache) -> tuple[Sample, Sample]:
        return (
            install(cache, sample(version="1", files=COMMON | {"bin/program": b"one"})),
            install(cache, sample(version="2", files=COMMON | {"bin/program": b"two"})),
        )

    def test_two_versions_have_their_common_files_once(
        self, cache: SharedCache, versions: tuple[Sample, Sample]
    ) -> None:
        one, two = (cache.final_tree(v.package) for v in versions)
        for name in COMMON:
            assert (one / name).stat().st_ino == (two / name).stat().st_ino
        usage = cache.usage()
        assert usage.saved_bytes == 8 * 8192
        assert usage.stored_bytes == 8 * 8192 + 2 * 4096

    def test_the_remaining_version_is_whole_when_the_other_goes(
        self, cache: SharedCache, versions: tuple[Sample, Sample]
    ) -> None:
        one, two = versions
        assert cache.evict(one.package.key)
        assert cache.verify(two.package.key)
        assert cache.usage().stored_bytes == 8 * 8192 + 4096

    def test_nothing_is_left_when_both_go(
        self, cache: SharedCache, root: Path, versions: tuple[Sample, Sample]
    ) -> None:
        for version in versions:
            assert cache.evict(version.package.key)
        assert [p for p in (root / "store").rglob("*") if p.is_file()] == []
        usage = cache.usage()
        assert (usage.used_bytes, usage.inodes, usage.packages) == (0, 0, 0)

    def test_equal_files_of_one_package_count_once_and_go_together(self, cache: SharedCache, root: Path) -> None:
        twin = install(cache, sample(files={"a": b"x" * 5000, "b": b"x" * 5000, "empty": b""}))
        assert cache.usage().stored_bytes == 8192
        assert cache.evict(twin.package.key)
        assert [p for p in (root / "store").rglob("*") if p.is_file()] == []

    def test_files_that_differ_only_in_their_mode_are_not_one(self, cache: SharedCache) -> None:
        tool = install(cache, sample(files={"bin/tool": b"same", "lib/tool": b"same"}))
        tree = cache.final_tree(tool.package)
        assert os.access(tree / "bin/tool", os.X_OK)
        assert (tree / "lib/tool").stat().st_mode & 0o111 == 0

    def test_books_that_a_crash_spoilt_are_rebuilt(
        self, cache: SharedCache, root: Path, versions: tuple[Sample, Sample]
    ) -> None:
        before = cache.usage()
        (root / "books.json").unlink()
        orphan = root / "store" / "aa" / ("a" * 64 + ".r")
        orphan.parent.mkdir(exist_ok=True)
        orphan.write_bytes(b"left by a crash")
        assert replace(cache.usage(), free_bytes=0) == replace(before, free_bytes=0)
        assert not orphan.exists()

    def test_sharing_may_be_switched_off(self, tmp_path: Path) -> None:
        cache = opened(tmp_path / "plain", share_files=False)
        install(cache, sample(version="1", files=COMMON))
        assert cache.usage().saved_bytes == 0
        assert list((tmp_path / "plain" / "store").iterdir()) == []


# --- archives


def test_a_site_that_does_not_seed_keeps_no_archive(root: Path) -> None:
    events, dropped = Events(), []
    events.subscribe(lambda e: dropped.append(e.fields["digest"]) if e.name == "cache.archive_dropped" else None)
    wanted = sample()
    cache = opened(root, events=events, keep_archives=KeepArchives.NEVER)
    assert cache.acquire(wanted.package, holder(), wanted).installed.archive is None
    assert dropped == [wanted.package.key]
    assert list((root / "archives").iterdir()) == []


def test_an_archive_may_be_kept_as_long_as_it_is_leased(root: Path) -> None:
    wanted = sample()
    cache = opened(root, keep_archives=KeepArchives.LEASED)
    leases = [cache.acquire(wanted.package, holder(), wanted) for _ in range(2)]
    cache.release(leases[0])
    assert cache.entries()[0].is_seedable
    cache.release(leases[1])
    assert not cache.entries()[0].is_seedable
    assert list((root / "archives").iterdir()) == []
    assert cache.acquire(wanted.package, holder(), wanted).installed.archive is None


def test_a_sweep_mends_a_record_that_is_not_true_of_the_archive(root: Path) -> None:
    cache = open_default(root)
    gone, back = (install(cache, sample(version=v, archive_bytes=int(v) * 1000)) for v in "12")
    archive = root / "archives" / back.package.key
    kept = archive.read_bytes()
    (root / "archives" / gone.package.key).unlink()  # as of who ended between the archive and the record
    archive.unlink()
    cache.sweep()
    assert [found.archive for found in cache.installed()] == [None, None]
    archive.write_bytes(kept)
    cache.sweep()
    assert not archive.exists()


def test_listeners_hear_of_an_eviction_before_the_archive_goes(root: Path) -> None:
    events = Events()
    wanted = sample()
    cache = opened(root, events=events)
    install(cache, wanted)
    seen: list[bool] = []
    archive = root / "archives" / wanted.package.key
    events.subscribe(lambda e: seen.append(archive.exists()) if e.name == "cache.evicting" else None)
    assert cache.evict(wanted.package.key)
    assert seen == [True]


def test_free_space_is_that_of_an_unprivileged_user(tmp_path: Path) -> None:
    before = shutil.disk_usage(tmp_path).free
    free, total, inodes = free_space(tmp_path)
    after = shutil.disk_usage(tmp_path).free  # others write meanwhile
    assert 0 < free <= max(before, after) and total > free and inodes > 0


def test_a_swept_tree_is_in_no_books_that_are_made_meanwhile(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a builder left that was killed after its files were shared and before its package appeared."""
    wanted, killed, other = sample(), opened(root), opened(root)
    with monkeypatch.context() as patch:
        patch.setattr(killed._shelf, "place", interrupted)
        patch.setattr(killed._upkeep, "sweep_key", lambda key: None)
        with pytest.raises(KeyboardInterrupt):
            killed.acquire(wanted.package, holder(), wanted)
    killed.close()
    remove = filesystem.remove_tree
    askers: list[threading.Thread] = []

    def slowly(path: Path) -> None:
        if path.parent.name == "staging":
            askers.append(threading.Thread(target=other.usage))
            askers[-1].start()
            askers[-1].join(0.5)
        remove(path)

    monkeypatch.setattr(filesystem, "remove_tree", slowly)
    opened(root).sweep()
    assert askers
    for asker in askers:
        asker.join()
    assert other.usage().stored_bytes == 0
    assert [path for path in (root / "store").rglob("*") if path.is_file()] == []


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt
