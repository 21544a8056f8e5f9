"""`[sharedcache]`: where the cache of this node is and how much of the disk it may take."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path

from jobagent.plugin import setting


class KeepArchives(enum.StrEnum):
    """Until when an archive is kept, and with it seeded."""

    ALWAYS = "always"
    LEASED = "leased"
    NEVER = "never"


class Protection(enum.StrEnum):
    """What keeps a payload from changing the packages of the next job."""

    AUTO = "auto"
    UID = "uid"
    VIEW = "view"
    MANIFEST = "manifest"


class NetworkFilesystem(enum.StrEnum):
    """What to do with a cache root on a network file system."""

    REFUSE = "refuse"
    DEGRADE = "degrade"


@dataclass(frozen=True, slots=True)
class SharedCacheSettings:
    """`[sharedcache]`: one cache for all jobs of this node."""

    root: Path = setting(Path(), "Directory of the cache; empty: /var/cache/jobagent, or ~/.cache/jobagent/packages.")
    quota_bytes: int = setting(0, "Bytes that the cache may take; 0: only `quota_fraction` counts.")
    quota_fraction: float = setting(0.8, "Share of the file system that the cache may take.")
    quota_inodes: int = setting(0, "Files and directories that the cache may hold; 0: as many as the disk has.")
    quota_share: float = setting(
        1.0,
        "Share of the quota that the packages of one VO may take, so that no VO pushes out another; 1: all of it.",
    )
    keep_archives: KeepArchives = setting(
        KeepArchives.ALWAYS,
        "Archives are kept for seeding until the package is evicted (`always`), while it is leased (`leased`), or"
        " dropped once it is installed (`never`).",
    )
    protection: Protection = setting(
        Protection.AUTO,
        "Against payloads that write: `uid` trusts that they run as another user, `view` that they see the cache"
        " read-only, `manifest` checks each package before each job; `auto` takes the first that is so.",
    )
    share_files: bool = setting(True, "Keep files that several packages have once, as hard links.")
    network_filesystem: NetworkFilesystem = setting(
        NetworkFilesystem.REFUSE,
        "A root on NFS, Lustre and the like: `refuse` it, or `degrade` (check each package before each job, keep"
        " leases of other hosts for `lease_max_age_s`).",
    )
    lease_max_age_s: float = setting(
        604800.0, "Seconds after which a lease ends whose holder cannot be looked at (another container or host)."
    )
    partial_max_age_s: float = setting(
        86400.0, "Seconds for which an interrupted download or a quarantined tree is kept."
    )
