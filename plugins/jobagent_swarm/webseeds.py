"""When web servers help inside a download of the swarm, and how much: the site's policy, one object a download.

A web server beside a swarm that delivers makes both figures worse, the server's bytes and the last node's time
(docs/performance.md), so by default it comes last.  A site whose web server is near and idle may let it race.
"""

from __future__ import annotations

import socket
import urllib.parse
from collections.abc import Callable

from jobagent.plugin import Order
from jobagent_swarm.download import Download
from jobagent_swarm.session import Torrent
from jobagent_swarm.settings import SwarmSettings, WebSeedPolicy


class WebSeeds:
    """The web servers of one archive.  Called by the thread that waits for the download."""

    def __init__(
        self,
        settings: SwarmSettings,
        order: Order,
        torrent: Torrent,
        download: Download,
        warn: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._order = order
        self._torrent = torrent
        self._download = download
        self._warn = warn
        # libtorrent takes no query from a torrent's web server, nor other schemes
        self._servers = [u for u in order.urls if u.startswith(("http://", "https://")) and "?" not in u]
        self._is_racing = self._is_last_resort = False

    def consider(self, idle_s: float) -> None:
        """Add or remove them, `idle_s` after the last progress."""
        policy = self._settings.web_seeds
        if policy is WebSeedPolicy.NEVER or not self._servers or self._is_last_resort:
            return
        if 0 < self._settings.web_seed_after_s <= idle_s:
            self._is_last_resort = True
            self._warn(
                f"no peer delivers {self._order.package.id}: fetching what is missing from "
                f"{len(self._servers)} web servers"
            )
            self._add()
        elif policy is WebSeedPolicy.RACE and not self._is_racing:
            self._is_racing = True
            size = self._order.package.archive.size_bytes
            self._download.limit_web(self._settings.web_seed_share * size, self._remove)
            self._add()

    def _add(self) -> None:
        self._download.account_as_web(frozenset(e for url in self._servers for e in _endpoints(url)))
        for url in self._servers:
            self._torrent.handle.add_url_seed(url)

    def _remove(self) -> None:
        """End the race; called in the session's thread while blocks arrive, or they would be too many."""
        if not self._is_last_resort:
            for url in self._servers:
                self._torrent.handle.remove_url_seed(url)


def _endpoints(url: str) -> list[tuple[str, int]]:
    """The addresses and ports behind a URL; none where its name is not known now."""
    parts = urllib.parse.urlsplit(url)
    try:
        port = parts.port or {"https": 443}.get(parts.scheme, 80)
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except (OSError, ValueError):
        return []
    return [(str(address[0]), port) for *_, address in found]
