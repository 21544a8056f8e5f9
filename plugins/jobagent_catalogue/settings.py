"""`[catalogue]`: where the catalogue is, and what vouches for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jobagent.plugin import setting


@dataclass(frozen=True, slots=True)
class CatalogueSettings:
    """`[catalogue]`: where the catalogue is, and what vouches for it."""

    urls: tuple[str, ...] = setting(
        (), "Base URLs (http, https, file) of the catalogue, tried in order: mirrors first."
    )
    root: Path = setting(Path(), "The catalogue's root metadata, got from its manager: the anchor of all trust.")
    refresh_interval_s: float = setting(60.0, "For so long, what was verified is used without asking a mirror.")
    grace_s: float = setting(0.0, "For so long, expired metadata is used where no mirror answers.")
    timeout_s: float = setting(10.0, "Seconds to connect, and to wait for the next bytes.")
    min_rate_bytes_s: int = setting(2048, "Slower mirrors are given up, after `timeout_s`.")
    clock_tolerance_s: float = setting(3600.0, "A node's clock may be off a mirror's by so many seconds.")
    proxy: str = setting("", "HTTP proxy of the site; empty: as $http_proxy, $https_proxy and $no_proxy say.")
    max_object_bytes: int = setting(64 * 1024 * 1024, "Largest manifest or other object that is read.")
