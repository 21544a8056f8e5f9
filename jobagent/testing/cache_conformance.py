"""The promises of a cache, as tests: derive, say how to open one, and pytest runs them.

    from jobagent.testing.shared_cache_conformance import SharedCacheConformance

    def open_mine(directory: Path) -> Cache:
        return MyCache(directory)

    class TestMyCache(SharedCacheConformance):
        open = staticmethod(open_mine)

`CacheConformance` is for a cache of one process, `SharedCacheConformance` for one of many, `ManagedCacheConformance`
for one that the node service and `jobagent cache` can manage as well.

`open` is called with a directory of the test's own, several times with the same one where the cache says that it is
shared, also in other processes: it must be a function of a module.  Needs pytest, and nothing of the network.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from jobagent import manifest
from jobagent.contracts import Built, Cache, Lease, Staging
from jobagent.errors import DiskFull, SupplyError, TrustError
from jobagent.model import Blob
from jobagent.testing.cache_users import WAIT_S, Open, content, spoil
from jobagent.testing.samples import FILES, failing, holder, sample


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

    def test_an_entry_that_signs_another_tree_for_an_archive_gets_neither_tree(self, cache: Cache) -> None:
        """Else a VO could have another one's package unpacked its own way, and the other's jobs would use that."""
        honest = sample("Alpha", namespace="bob")
        other_tree = replace(honest.package.tree, manifest=Blob("f" * 64, 10))
        other_id = replace(honest.package.id, namespace="alice")
        liar = replace(honest, package=replace(honest.package, id=other_id, tree=other_tree))
        lease = cache.acquire(honest.package, holder(), honest)
        with pytest.raises(TrustError):
            cache.acquire(liar.package, holder(), liar)
        assert content(lease.installed.tree) == dict(FILES)
        assert cache.acquire(honest.package, holder(), honest).installed.is_cache_hit

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


def _is_inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:  # the descriptor of the listing itself
        return False
