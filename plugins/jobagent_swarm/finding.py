"""Who could tell this node of peers, and so whether the swarm is worth asking.  Needs no libtorrent."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from jobagent.plugin import Config, Order
from jobagent_swarm.settings import SwarmSettings


def can_fetch(order: Order, config: Config) -> bool:
    """Whether there is a torrent, and a tracker or a network that might name its peers."""
    if order.torrent is None or not order.package.archive.size_bytes:
        return False
    return bool(trackers_of(config)) or config.get(SwarmSettings).local_discovery


def trackers_of(config: Config) -> tuple[str, ...]:
    """The site's trackers, else those of its catalogues."""
    return config.get(SwarmSettings).trackers or tuple(announce_urls(site_value(config, "catalogue", "urls", ())))


def announce_urls(catalogue_urls: Iterable[str]) -> list[str]:
    """The trackers of catalogues that `jobagent serve` serves: `announce` below their URL."""
    return [f"{u.rstrip('/')}/announce" for u in catalogue_urls if u.startswith(("http://", "https://"))]


def site_value(config: Config, section: str, key: str, default: Any) -> Any:
    """A setting of a section that belongs to somebody else, who may be absent."""
    cls = config.sections.get(section)
    if cls is None or key not in {f.name for f in dataclasses.fields(cls)}:
        return default
    return getattr(config.get(cls), key)
