"""The shared cache keeps the promises of every cache, and those of one that several processes use."""

from pathlib import Path

from jobagent.contracts import Cache
from jobagent.events import Events
from jobagent.testing.shared_cache_conformance import ManagedCacheConformance
from jobagent_sharedcache import SharedCache, SharedCacheSettings


def open_shared(directory: Path) -> Cache:
    return SharedCache(SharedCacheSettings(), Events(), root=directory)


class TestSharedCache(ManagedCacheConformance):
    open = staticmethod(open_shared)
