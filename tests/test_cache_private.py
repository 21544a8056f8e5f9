"""The private cache keeps the promises of every cache."""

from pathlib import Path

import pytest

from jobagent.contracts import Cache
from jobagent.errors import TrustError
from jobagent.job.cache import NAME_DIGITS, PrivateCache
from jobagent.testing.cache_conformance import CacheConformance
from jobagent.testing.samples import holder, sample


def open_private(directory: Path) -> Cache:
    return PrivateCache(directory)


class TestPrivateCache(CacheConformance):
    open = staticmethod(open_private)


def test_two_packages_with_the_same_short_name_are_refused(tmp_path: Path) -> None:
    cache = PrivateCache(tmp_path / "cache")
    first = sample()
    cache.acquire(first.package, holder(), first)
    archive = first.package.archive
    twin_digest = archive.sha256[:NAME_DIGITS] + "0" * (64 - NAME_DIGITS)
    twin_archive = type(archive)(archive.file_name, archive.format, twin_digest, archive.size_bytes, "", "0" * 64)
    package = first.package
    twin = type(package)(package.id, package.platform, twin_archive, package.tree, package.published_s)
    with pytest.raises(TrustError, match="begins like that of another"):
        cache.acquire(twin, holder(), first)


def test_closing_a_cache_that_was_never_used_leaves_no_trace(tmp_path: Path) -> None:
    PrivateCache(tmp_path / "cache").close()
    assert list(tmp_path.iterdir()) == []
