"""The promises of a cache that several processes use, and of one that can be managed; see `cache_conformance`."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from jobagent.contracts import Cache, ManagedCache
from jobagent.testing.cache_conformance import CacheConformance
from jobagent.testing.cache_users import content, user
from jobagent.testing.faults import Steps, arm, in_child
from jobagent.testing.samples import FILES, Sample, holder, sample

STEP_STRIDE = 11  # of the steps at which an agent is killed
NO_STEP_LEFT = 7


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

    def test_an_agent_killed_at_any_step_leaves_a_package_whole_or_absent(
        self, directory: Path, log: Path, tmp_path: Path
    ) -> None:
        first, second = sample(version="1", log=log), sample(version="2", files={**FILES, "new": b"new"}, log=log)

        def scenario() -> int:
            arm(steps)
            cache = type(self).open(place)
            cache.release(cache.acquire(first.package, holder(), first))
            cache.evict(first.package.key)
            cache.release(cache.acquire(second.package, holder(), second))
            cache.close()
            return NO_STEP_LEFT if steps.count < steps.at else 0

        for at in itertools.count(1, STEP_STRIDE):
            place = tmp_path / str(at) / "cache"
            place.parent.mkdir()
            steps = Steps(place, "kill", at)
            code = in_child(scenario)
            assert code in (0, NO_STEP_LEFT, -signal.SIGKILL), f"killed at step {at}: the scenario ended with {code}"
            self._check_what_is_left(place, (first, second), at)
            if code == NO_STEP_LEFT:
                break
        assert at > 1, "no step was seen: the cache is not in the directory that it was given"

    def _check_what_is_left(self, place: Path, samples: Sequence[Sample], at: int) -> None:
        cache = type(self).open(place)
        files = {s.package.key: dict(s.files) for s in samples}
        for installed in cache.installed():
            assert content(installed.tree) == files[installed.package.key], (
                f"half a package after a kill at step {at}"
            )
        for wanted in samples:
            lease = cache.acquire(wanted.package, holder(), wanted)
            assert content(lease.installed.tree) == dict(wanted.files), f"cannot be installed after step {at}"
            cache.release(lease)
            assert cache.evict(wanted.package.key), f"cannot be evicted after step {at}"
        cache.close()


class ManagedCacheConformance(SharedCacheConformance):
    """The promises of a `ManagedCache`: what the node service and `jobagent cache` need."""

    @pytest.fixture
    def managed(self, cache: Cache) -> ManagedCache:
        """An empty cache."""
        assert isinstance(cache, ManagedCache)
        return cache

    def test_it_says_what_protects_packages(self, managed: ManagedCache) -> None:
        assert managed.protection in {"uid", "view", "manifest"}

    def test_a_pinned_package_stays_until_it_is_unpinned_by_whatever_agent(
        self, managed: ManagedCache, directory: Path
    ) -> None:
        wanted = sample()
        assert not managed.pin(wanted.package.key, is_pinned=True)
        managed.release(managed.acquire(wanted.package, holder(), wanted))
        assert managed.pin(wanted.package.key, is_pinned=True)
        assert [e.is_pinned for e in managed.entries()] == [True]
        other = type(self).open(directory)
        assert isinstance(other, ManagedCache) and not other.evict(wanted.package.key)
        assert other.pin(wanted.package.key, is_pinned=False)
        other.close()
        assert managed.evict(wanted.package.key)

    def test_usage_grows_with_a_package_and_is_nothing_when_all_are_gone(self, managed: ManagedCache) -> None:
        wanted = sample()
        before = managed.usage()
        assert (before.packages, before.used_bytes) == (0, 0)
        managed.release(managed.acquire(wanted.package, holder(), wanted))
        usage = managed.usage()
        assert usage.packages == 1 and usage.logical_bytes >= wanted.package.tree.size_bytes
        assert usage.used_bytes >= usage.archive_bytes >= wanted.package.archive.size_bytes
        assert usage.inodes >= wanted.package.tree.file_count and usage.free_bytes > 0
        assert managed.evict(wanted.package.key)
        assert (managed.usage().packages, managed.usage().used_bytes) == (0, 0)

    def test_another_agent_finds_the_leases_of_the_living_and_can_end_them(
        self, managed: ManagedCache, directory: Path
    ) -> None:
        wanted = sample()
        lease = managed.acquire(wanted.package, holder(os.getppid(), "17.0"), wanted)
        other = type(self).open(directory)
        assert isinstance(other, ManagedCache)
        (found,) = other.leases()
        assert (found.id, found.holder.pid, found.holder.job_id) == (lease.id, os.getppid(), "17.0")
        assert found.installed.tree == lease.installed.tree
        other.release(found)
        assert list(managed.leases()) == []
        other.close()

    def test_a_sweep_ends_leases_of_ended_holders_and_leaves_those_of_the_living(
        self, managed: ManagedCache, directory: Path
    ) -> None:
        wanted = sample()
        lease = managed.acquire(wanted.package, holder(), wanted)
        with user(type(self).open, directory, wanted) as other:
            other.send("acquire")
            other.receive()
            assert managed.sweep() == 0
            other.kill()
        assert managed.sweep() == 1
        assert [found.id for found in managed.leases()] == [lease.id]

    def test_a_sweep_removes_what_a_killed_builder_left(self, managed: ManagedCache, directory: Path) -> None:
        with user(type(self).open, directory, sample()) as other:
            other.send("hang")
            assert other.receive() == "building"
            managed.sweep()
            assert len(list(managed.root.rglob("hang"))) == 1
            other.kill()
        managed.sweep()
        assert list(managed.root.rglob("hang")) == []
