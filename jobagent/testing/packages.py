"""Package values for tests that need the words of an entry but no bytes behind them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from jobagent.model import Archive, Blob, EnvironmentChange, Package, PackageId, PackageState, Tree


def make_package(
    name: str,
    *,
    platform: str = "Linux-x86_64",
    dependencies: Sequence[str] = (),
    environment: Sequence[EnvironmentChange] = (),
    state: PackageState = PackageState.RELEASED,
    reason: str = "",
    published_s: int = 1,
) -> Package:
    """Return an entry called `name` (`VO_ORG@Name::version`) whose digests are made from its name."""
    package_id = PackageId.parse(name)
    digest = hashlib.sha256(f"{name} {platform}".encode()).hexdigest()
    return Package(
        id=package_id,
        platform=platform,
        archive=Archive(f"{package_id.name}.tar.zst", "tar.zst", digest, 1000, digest[:40], digest),
        tree=Tree(Blob(digest, 100), 2000, 2),
        published_s=published_s,
        dependencies=tuple(PackageId.parse(d) for d in dependencies),
        environment=tuple(environment),
        state=state,
        reason=reason,
    )
