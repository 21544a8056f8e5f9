"""The swarm of an agent that may not need one.

A fetch opens it at once.  What was on the node already is offered by a thread of its own, a second later: loading
libtorrent and opening ports is not on the path of a job that has all it wants, and a payload that ends within that
second has nobody to give to.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from jobagent.plugin import Context, JobAgentError, Order, Package, SupplyError, Traffic
from jobagent_swarm.finding import can_fetch
from jobagent_swarm.settings import SwarmSettings

if TYPE_CHECKING:
    from jobagent_swarm.swarm import Swarm

log = logging.getLogger("jobagent.swarm")

OFFER_AFTER_S = 1.0


class LateSwarm:
    """Transport and seeder; see `jobagent_swarm.swarm.Swarm`, which it makes when it is needed.  Thread-safe."""

    def __init__(self, context: Context, *, offer_after_s: float = OFFER_AFTER_S) -> None:
        self._context = context
        self._offer_after_s = offer_after_s
        self._lock = threading.RLock()
        self._swarm: Swarm | None = None
        self._is_closed = False
        self._waiting: dict[str, tuple[Package, Path, bytes]] = {}
        self._timer: threading.Timer | None = None

    @property
    def name(self) -> str:
        """`swarm`."""
        return "swarm"

    @property
    def rank(self) -> int:
        """First among transports."""
        return 10

    @property
    def is_seeding(self) -> bool:
        """What the site says."""
        return self._context.config.get(SwarmSettings).is_seeding

    def can_fetch(self, order: Order) -> bool:
        """Whether there is a torrent, and anybody who could know of peers."""
        return can_fetch(order, self._context.config)

    def fetch(self, order: Order) -> Traffic:
        """See `Swarm.fetch`."""
        return self._open().fetch(order)

    def seed(self, package: Package, archive: Path, torrent: bytes) -> None:
        """Offer `archive`, which was verified: at once where the swarm is open, else a little later.

        What goes wrong later is a warning: the job has its package.
        """
        with self._lock:
            if self._swarm is None:
                self._waiting[package.key] = (package, archive, torrent)
                if self._timer is None and not self._is_closed:
                    self._timer = threading.Timer(self._offer_after_s, self._offer)
                    self._timer.name, self._timer.daemon = "swarm-offer", True
                    self._timer.start()
                return
            swarm = self._swarm
        swarm.seed(package, archive, torrent)

    def unseed(self, key: str) -> None:
        """Stop offering; when it returns the file is no longer read."""
        with self._lock:
            self._waiting.pop(key, None)
            swarm = self._swarm
        if swarm is not None:
            swarm.unseed(key)

    def status(self) -> Mapping[str, float]:
        """Counters of the session; all zero while there is none."""
        with self._lock:
            swarm, waiting = self._swarm, len(self._waiting)
        if swarm is not None:
            return swarm.status()
        names = ("peers", "upload_bytes", "download_bytes", "upload_bytes_per_s", "download_bytes_per_s")
        return {"seeding": float(waiting), **dict.fromkeys(names, 0.0)}

    def close(self) -> None:
        """Leave the swarm; idempotent."""
        with self._lock:
            self._is_closed = True
            self._waiting.clear()
            if self._timer is not None:
                self._timer.cancel()
            swarm = self._swarm
        if swarm is not None:
            swarm.close()

    def _open(self) -> Swarm:
        """Return the swarm, which from then on also offers what waited."""
        with self._lock:
            if self._is_closed:
                raise SupplyError("the swarm is closed")
            if self._swarm is None:
                from jobagent_swarm.swarm import Swarm

                self._swarm = Swarm(self._context)
            self._flush(self._swarm)
            return self._swarm

    def _offer(self) -> None:
        try:
            self._open()
        except SupplyError:
            log.debug("the job ended before its packages were offered")

    def _flush(self, swarm: Swarm) -> None:
        while self._waiting:
            _, (package, archive, torrent) = self._waiting.popitem()
            try:
                swarm.seed(package, archive, torrent)
            except JobAgentError as error:
                log.warning("%s is not offered to others: %s", package.id, error)
                self._context.events.emit("warning", message=f"{package.id} is not offered to others: {error}")
