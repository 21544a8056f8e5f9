"""The promises of a cache, as tests: derive, say how to open one, and pytest runs them.

    from jobagent.testing.cache_conformance import CacheConformance

    def open_mine(directory: Path) -> Cache:
        return MyCache(directory)

    class TestMyCache(CacheConformance):
        open = staticmethod(open_mine)

`open` is called with a directory of the test's own, several times with the same one where the cache says that it is
shared, also in other processes: it must be a function of a module.  Needs pytest, and nothing of the network.
"""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest

from jobagent import manifest
from jobagent.contracts import Built, Cache, Lease, Staging
from jobagent.errors import DiskFull, SupplyError
from jobagent.testing.samples import FILES, Sample, failing, holder, sample

Open = Callable[[Path], Cache]

WAIT_S = 60.0  # for other processes: a hang fails the test instead of the run
_spawn = multiprocessing.get_context("spawn")


class CacheConformance:
    """Derive from it; see the module's docstring."""

    open: Open

    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        """Where the cache of this test lives."""
        return tmp_path / "cache"

    @pytest.fixture
    def cache(self, directory: Path) -> Iterator[Cache]:
        """An empty cache."""
        cache = type(self).open(directory)
        yield cache
        cache.close()

    @pytest.fixture
    def log(self, tmp_path: Path) -> Path:
        """Where builders note that they ran."""
        return tmp_path / "builds"

    # --- install

    def test_first_acquire_builds_and_the_tree_is_where_it_was_promised(self, cache: Cache, log: Path) -> None:
        wanted = sample(log=log)
        lease = cache.acquire(wanted.package, holder(), wanted)
        assert lease.installed.tree == cache.final_tree(wanted.package)
        assert content(lease.installed.tree) == dict(FILES)
        assert os.access(lease.installed.tree / "bin/program", os.X_OK)
        assert not lease.installed.is_cache_hit
        assert lease.installed.traffic.total_bytes == wanted.package.archive.size_bytes

    def test_second_acquire_is_a_hit_and_builds_nothing(self, cache: Cache, log: Path) -> None:
        wanted = sample(log=log)
        first = cache.acquire(wanted.package, holder(), wanted)
        second = cache.acquire(wanted.package, holder(), wanted)
        assert second.installed.is_cache_hit and second.installed.traffic.total_bytes == 0
        assert second.installed.tree == first.installed.tree
        assert second.id != first.id
        assert wanted.builds() == 1

    def test_staging_is_an_empty_directory_on_the_file_system_of_the_tree(self, cache: Cache) -> None:
        wanted = sample()
        seen: list[Staging] = []

        def build(staging: Staging) -> Built:
            seen.append(staging)
            assert list(staging.tree.iterdir()) == []
            assert not staging.archive.exists()
            assert staging.archive.parent.stat().st_dev == staging.tree.stat().st_dev
            assert not cache.final_tree(wanted.package).exists()
            return wanted(staging)

        lease = cache.acquire(wanted.package, holder(), build)
        assert lease.installed.tree.stat().st_dev == lease.installed.tree.parent.stat().st_dev
        assert len(seen) == 1 and not seen[0].tree.exists()

    def test_many_threads_share_one_build(self, cache: Cache, log: Path) -> None:
        wanted = sample(log=log)
        threads = 16
        start = threading.Barrier(threads)

        def one(_: int) -> Lease:
            start.wait(WAIT_S)
            return cache.acquire(wanted.package, holder(), wanted)

        with ThreadPoolExecutor(threads) as pool:
            leases = list(pool.map(one, range(threads)))
        assert wanted.builds() == 1
        assert len({lease.id for lease in leases}) == threads
        assert sum(not lease.installed.is_cache_hit for lease in leases) == 1
        assert [e.leases for e in cache.entries()] == [threads]

    def test_a_slow_build_does_not_hold_up_another_package(self, cache: Cache) -> None:
        slow, quick = sample("Slow", files={"a": b"slow"}), sample("Quick", files={"a": b"quick"})
        building, finish = threading.Event(), threading.Event()

        def build(staging: Staging) -> Built:
            building.set()
            assert finish.wait(WAIT_S)
            return slow(staging)

        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(cache.acquire, slow.package, holder(), build)
            assert building.wait(WAIT_S)
            cache.acquire(quick.package, holder(), quick)
            finish.set()
            assert waiting.result(WAIT_S).installed.tree.is_dir()

    def test_the_same_archive_under_two_names_is_installed_once(self, cache: Cache, log: Path) -> None:
        alice = sample("Alpha", namespace="alice", log=log)
        other = sample("Beta", namespace="bob", log=log)
        first = cache.acquire(alice.package, holder(), alice)
        second = cache.acquire(other.package, holder(), other)
        assert first.installed.tree == second.installed.tree
        assert second.installed.package.id == other.package.id
        assert alice.builds() == 1

    def test_an_archive_that_is_not_kept_is_removed_with_what_lies_beside_it(self, cache: Cache) -> None:
        wanted = sample(keep_archive=False)
        archives: list[Path] = []

        def build(staging: Staging) -> Built:
            archives.append(staging.archive)
            staging.archive.with_name(staging.archive.name + ".resume").write_bytes(b"x")
            return wanted(staging)

        lease = cache.acquire(wanted.package, holder(), build)
        assert lease.installed.archive is None
        assert list(archives[0].parent.glob(archives[0].name + "*")) == []

    def test_an_archive_that_is_kept_is_whole(self, cache: Cache) -> None:
        wanted = sample()
        archive = cache.acquire(wanted.package, holder(), wanted).installed.archive
        assert archive is not None and manifest.hash_file(archive) == wanted.package.key

    # --- failed builds

    def test_a_failed_build_leaves_nothing_visible_and_its_error_reaches_the_caller(self, cache: Cache) -> None:
        wanted = sample()
        cause = SupplyError("the swarm is empty")

        def half(staging: Staging) -> None:
            (staging.tree / "half").write_bytes(b"half")

        with pytest.raises(SupplyError) as caught:
            cache.acquire(wanted.package, holder(), failing(cause, after=half))
        assert caught.value is cause
        assert cache.entries() == [] and list(cache.installed()) == []
        assert not cache.final_tree(wanted.package).exists()
        assert list(cache.root.rglob("half")) == []

    def test_a_partial_download_is_kept_for_the_next_attempt(self, cache: Cache) -> None:
        wanted = sample()

        def part(staging: Staging) -> None:
            staging.archive.write_bytes(b"the first half")

        with pytest.raises(SupplyError):
            cache.acquire(wanted.package, holder(), failing(SupplyError("cut"), after=part))
        seen: list[bytes] = []

        def resume(staging: Staging) -> Built:
            seen.append(staging.archive.read_bytes())
            return wanted(staging)

        cache.acquire(wanted.package, holder(), resume)
        assert seen == [b"the first half"]

    def test_after_a_failed_build_a_waiter_builds(self, cache: Cache, log: Path) -> None:
        wanted = sample(log=log)
        building, fail = threading.Event(), threading.Event()

        def build(staging: Staging) -> Built:
            building.set()
            assert fail.wait(WAIT_S)
            raise SupplyError("gone")

        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(cache.acquire, wanted.package, holder(), build)
            assert building.wait(WAIT_S)
            second = pool.submit(cache.acquire, wanted.package, holder(), wanted)
            fail.set()
            with pytest.raises(SupplyError):
                first.result(WAIT_S)
            assert not second.result(WAIT_S).installed.is_cache_hit
        assert wanted.builds() == 1

    def test_a_waiter_that_is_cancelled_goes_at_once(self, cache: Cache) -> None:
        wanted = sample()
        building, finish, cancelled = threading.Event(), threading.Event(), threading.Event()

        def build(staging: Staging) -> Built:
            building.set()
            assert finish.wait(WAIT_S)
            return wanted(staging)

        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(cache.acquire, wanted.package, holder(), build)
            assert building.wait(WAIT_S)
            second = pool.submit(cache.acquire, wanted.package, holder(), wanted, cancelled=cancelled)
            cancelled.set()
            with pytest.raises(SupplyError, match="cancelled"):
                second.result(WAIT_S)
            finish.set()
            first.result(WAIT_S)
        assert [e.leases for e in cache.entries()] == [1]

    def test_no_space_while_building_is_a_full_disk(self, cache: Cache) -> None:
        wanted = sample()
        with pytest.raises(DiskFull):
            cache.acquire(wanted.package, holder(), failing(OSError(errno.ENOSPC, "No space left on device")))
        assert cache.entries() == []

    def test_a_package_larger_than_the_disk_is_refused_before_it_is_built(self, cache: Cache) -> None:
        huge = sample(archive_bytes=2048)
        package = huge.package
        tree = type(package.tree)(package.tree.manifest, 1 << 60, package.tree.file_count)
        monster = type(package)(package.id, package.platform, package.archive, tree, package.published_s)

        def build(staging: Staging) -> Built:
            raise AssertionError("was asked to build")

        with pytest.raises(DiskFull):
            cache.acquire(monster, holder(), build)

    # --- leases and eviction

    def test_a_leased_package_is_never_evicted(self, cache: Cache) -> None:
        wanted = sample()
        lease = cache.acquire(wanted.package, holder(), wanted)
        assert not cache.evict(wanted.package.key)
        assert content(lease.installed.tree) == dict(FILES)
        cache.release(lease)
        assert cache.evict(wanted.package.key)
        assert not lease.installed.tree.exists() and cache.entries() == []
        assert lease.installed.archive is None or not lease.installed.archive.exists()

    def test_each_of_two_leases_keeps_the_package(self, cache: Cache) -> None:
        wanted = sample()
        first = cache.acquire(wanted.package, holder(), wanted)
        second = cache.acquire(wanted.package, holder(), wanted)
        cache.release(first)
        cache.release(first)
        assert not cache.evict(wanted.package.key)
        cache.release(second)
        assert cache.evict(wanted.package.key)

    def test_an_unknown_package_is_neither_evicted_nor_verified(self, cache: Cache) -> None:
        assert not cache.evict("0" * 64)
        assert not cache.verify("0" * 64)

    def test_an_evicted_package_is_built_again(self, cache: Cache, log: Path) -> None:
        wanted = sample(log=log)
        cache.release(cache.acquire(wanted.package, holder(), wanted))
        assert cache.evict(wanted.package.key)
        assert not cache.acquire(wanted.package, holder(), wanted).installed.is_cache_hit
        assert wanted.builds() == 2

    def test_entries_and_installed_tell_what_is_there(self, cache: Cache) -> None:
        wanted = sample()
        lease = cache.acquire(wanted.package, holder(), wanted)
        (entry,) = cache.entries()
        assert (entry.key, entry.package_id) == (wanted.package.key, "VO_TEST@Alpha::1.0")
        assert entry.platform == wanted.package.platform
        assert entry.size_bytes >= wanted.package.tree.size_bytes
        assert entry.leases == 1 and entry.is_seedable and entry.last_used_s > 0
        (installed,) = cache.installed()
        assert (installed.package, installed.tree) == (wanted.package, lease.installed.tree)
        cache.release(lease)
        assert [e.leases for e in cache.entries()] == [0]

    # --- tampering

    def test_an_untouched_package_verifies(self, cache: Cache) -> None:
        wanted = sample()
        cache.acquire(wanted.package, holder(), wanted)
        assert cache.verify(wanted.package.key)

    @pytest.mark.parametrize("damage", ["edit", "delete", "add", "mode", "symlink"])
    def test_a_changed_package_is_taken_away_and_built_again(self, cache: Cache, log: Path, damage: str) -> None:
        wanted = sample(log=log)
        lease = cache.acquire(wanted.package, holder(), wanted)
        spoil(lease.installed.tree, damage)
        cache.release(lease)
        assert not cache.verify(wanted.package.key)
        assert cache.entries() == []
        again = cache.acquire(wanted.package, holder(), wanted)
        assert wanted.builds() == 2
        assert content(again.installed.tree) == dict(FILES)
        assert cache.verify(wanted.package.key)

    # --- the end

    def test_a_private_cache_goes_with_its_job_and_a_shared_one_stays(self, directory: Path, log: Path) -> None:
        cache = type(self).open(directory)
        wanted = sample(log=log)
        cache.release(cache.acquire(wanted.package, holder(), wanted))
        cache.close()
        if not cache.is_shared:
            assert not directory.exists()
            return
        again = type(self).open(directory)
        assert again.acquire(wanted.package, holder(), wanted).installed.is_cache_hit
        again.close()

    def test_no_descriptor_of_the_cache_reaches_a_child(self, cache: Cache) -> None:
        wanted = sample()
        lease = cache.acquire(wanted.package, holder(), wanted)
        inheritable = [fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2 and _is_inheritable(fd)]
        inside = [fd for fd in inheritable if os.readlink(f"/proc/self/fd/{fd}").startswith(str(cache.root))]
        assert inside == []
        cache.release(lease)


class SharedCacheConformance(CacheConformance):
    """The promises that only a cache for several processes makes.  `is_shared` must be true."""

    def test_processes_share_one_build(self, cache: Cache, directory: Path, log: Path) -> None:
        assert cache.is_shared
        wanted = sample(log=log)
        with contextlib.ExitStack() as stack:
            others = [stack.enter_context(user(type(self).open, directory, wanted)) for _ in range(6)]
            for other in others:
                other.send("acquire")
            hits = [other.receive() for other in others]
            assert sorted(hits) == ["False"] + ["True"] * 5
            assert [e.leases for e in cache.entries()] == [6]
            assert not cache.evict(wanted.package.key)
        assert wanted.builds() == 1

    def test_a_lease_ends_with_its_holder_though_nobody_releases_it(
        self, cache: Cache, directory: Path, log: Path
    ) -> None:
        wanted = sample(log=log)
        with user(type(self).open, directory, wanted) as other:
            other.send("acquire")
            other.receive()
            assert not cache.evict(wanted.package.key)
            other.kill()
        assert [e.leases for e in cache.entries()] == [0]
        assert cache.evict(wanted.package.key)

    def test_a_lease_outlives_the_agent_that_took_it_while_its_holder_lives(
        self, cache: Cache, directory: Path, log: Path
    ) -> None:
        wanted = sample(log=log)
        with user(type(self).open, directory, wanted) as agent:
            agent.send(f"acquire {os.getpid()}")
            agent.receive()
            agent.kill()
        assert not cache.evict(wanted.package.key)
        assert [e.leases for e in cache.entries()] == [1]

    def test_a_killed_builder_leaves_its_place_to_the_next(self, cache: Cache, directory: Path, log: Path) -> None:
        wanted = sample(log=log)
        with user(type(self).open, directory, wanted) as other:
            other.send("hang")
            assert other.receive() == "building"
            other.kill()
        lease = cache.acquire(wanted.package, holder(), wanted)
        assert not lease.installed.is_cache_hit
        assert content(lease.installed.tree) == dict(FILES)
        assert list(cache.root.rglob("hang")) == []

    def test_what_one_process_installs_another_sees(self, cache: Cache, directory: Path, log: Path) -> None:
        wanted = sample(log=log)
        cache.acquire(wanted.package, holder(), wanted)
        with user(type(self).open, directory, wanted) as other:
            other.send("acquire")
            assert other.receive() == "True"
        assert wanted.builds() == 1


class User:
    """Another process that uses the cache on command."""

    def __init__(self, process: SpawnProcess, pipe: Connection) -> None:
        self._process = process
        self._pipe = pipe

    def send(self, command: str) -> None:
        """Tell it what to do."""
        self._pipe.send(command)

    def receive(self) -> str:
        """Return what it says next; a silent one fails the test."""
        assert self._pipe.poll(WAIT_S), "the other process says nothing"
        return str(self._pipe.recv())

    def kill(self) -> None:
        """Kill it, as the out-of-memory killer would."""
        if self._process.is_alive() and self._process.pid:
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.join(WAIT_S)


@contextlib.contextmanager
def user(open_cache: Open, directory: Path, wanted: Sample) -> Iterator[User]:
    """Start another process with the cache opened; it is killed at the end."""
    ours, theirs = _spawn.Pipe()
    process = _spawn.Process(target=_serve, args=(open_cache, directory, wanted, theirs), daemon=True)
    process.start()
    theirs.close()
    other = User(process, ours)
    try:
        assert other.receive() == "ready"
        yield other
    finally:
        other.kill()
        ours.close()
        process.close()


def _serve(open_cache: Open, directory: Path, wanted: Sample, pipe: Connection) -> None:
    cache = open_cache(directory)
    pipe.send("ready")

    def hang(staging: Staging) -> Built:
        (staging.tree / "hang").write_bytes(b"half")
        pipe.send("building")
        signal.pause()
        raise AssertionError

    while True:
        command, *arguments = pipe.recv().split()
        build = hang if command == "hang" else wanted
        lease = cache.acquire(wanted.package, holder(int(arguments[0]) if arguments else 0), build)
        pipe.send(str(lease.installed.is_cache_hit))


def content(tree: Path) -> dict[str, bytes]:
    """Return all files below `tree` by relative name."""
    return {str(p.relative_to(tree)): p.read_bytes() for p in sorted(tree.rglob("*")) if p.is_file()}


def spoil(tree: Path, damage: str) -> None:
    """Change an installed tree as a payload might."""
    victim = tree / "lib/data"
    if damage == "edit":
        status = victim.stat()
        data = bytearray(victim.read_bytes())
        data[7] ^= 1
        victim.write_bytes(data)
        os.utime(victim, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif damage == "delete":
        victim.unlink()
    elif damage == "add":
        (tree / "lib/more").write_bytes(b"more")
    elif damage == "mode":
        victim.chmod(0o755)
    elif damage == "symlink":
        victim.unlink()
        victim.symlink_to("/etc/passwd")


def _is_inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:  # the descriptor of the listing itself
        return False
