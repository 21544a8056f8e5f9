"""One cache for concurrent slots and later pilots: plugin `sharedcache`, off unless the site enables it.

[plugins]
enable = ["sharedcache"]

[sharedcache]
root = "/var/cache/jobagent"
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from jobagent.plugin import CacheFactory, Context, JobSettings, hookimpl
from jobagent_sharedcache.cache import SharedCache
from jobagent_sharedcache.settings import SharedCacheSettings

__all__ = ["SharedCache", "SharedCacheSettings"]


@hookimpl
def jobagent_settings() -> Mapping[str, type]:
    """Declare `[sharedcache]`."""
    return {"sharedcache": SharedCacheSettings}


@hookimpl
def jobagent_cache(context: Context) -> CacheFactory:
    """Provide the cache."""
    return _open


def default_root() -> Path:
    """Return where the cache is unless the site says: a directory that survives the job."""
    if os.geteuid() == 0:
        return Path("/var/cache/jobagent")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jobagent" / "packages"


def _open(context: Context) -> SharedCache:
    settings = context.config.get(SharedCacheSettings)
    root = settings.root if settings.root != Path() else default_root()
    may_view = context.config.get(JobSettings).sandbox != "none"
    return SharedCache(settings, context.events, root=root.absolute(), may_view=may_view)
