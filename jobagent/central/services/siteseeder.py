"""The seeder of a site, on a VO-box: it brings what the site's nodes use across the wide area once, and keeps it.

The tracker says which packages nodes of the site have or want (`demand`).  Those are fetched through the swarm like
on any node, verified, and offered; the tracker then sends the site's nodes here, and only this seeder outside.
What was not used for longest goes when the quota is full; what is banned goes at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from jobagent.central.services.demand import Demand
from jobagent.central.services.seeder import has_digest
from jobagent.central.services.siteshelf import SiteShelf
from jobagent.central.services.watch import CatalogueWatch, Snapshot
from jobagent.config import Config
from jobagent.contracts import Context, Order
from jobagent.errors import JobAgentError
from jobagent.events import Events
from jobagent.model import Package
from jobagent_swarm.options import Role
from jobagent_swarm.site import options_of
from jobagent_swarm.swarm import Swarm

log = logging.getLogger("jobagent.central")

POLL_S = 5.0
END_TIMEOUT_S = 5.0
PARALLEL_FETCHES = 4
FETCH_TIMEOUT_S = 6 * 3600.0
RETRY_S = 30.0


class SiteSeeder:
    """Follows the demand of one site.

    Args:
        shelf: What it keeps.
        watch: The verified catalogue; `start` subscribes to it.
        config: `[swarm]` and `[site]`, as on the site's nodes.
        addresses: To listen on, instead of the site's.
        poll_s: Seconds between looks at what the site wants, where no tracker tells of a change.
    """

    def __init__(
        self,
        shelf: SiteShelf,
        watch: CatalogueWatch,
        config: Config,
        *,
        addresses: tuple[str, ...] = (),
        poll_s: float = POLL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shelf = shelf
        self._watch = watch
        self._clock = clock
        self._poll_s = poll_s
        options = options_of(config, Role.SEEDER)
        address = next(iter(addresses or options.addresses), "")
        self._demand = Demand(options.trackers, address, retry_s=poll_s, say=self._say)
        self._swarm = Swarm(Context(config, shelf.directory, Events(), ""), role=Role.SEEDER, addresses=addresses)
        self._packages: Mapping[str, Package] = {}
        self._lock = threading.Lock()
        self._offered: dict[str, Package] = {}
        self._fetching: dict[str, tuple[Future[None], threading.Event]] = {}
        self._retry_s: dict[str, float] = {}
        self._said: dict[str, str] = {}
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(PARALLEL_FETCHES, thread_name_prefix="site-fetch")
        self._thread = threading.Thread(target=self._run, name="site-seeder", daemon=True)

    def start(self) -> None:
        """Begin; needs a watch that has not started, or that will see another snapshot."""
        self._watch.subscribe(self._update)
        self._swarm.open()
        self._demand.start()
        self._thread.start()

    def seeded(self) -> Mapping[str, Package]:
        """What is offered now, by digest."""
        with self._lock:
            return dict(self._offered)

    def status(self) -> Mapping[str, float]:
        """Counters, as of any `Seeder`, and the bytes that are kept."""
        return {**self._swarm.status(), "kept_bytes": float(self._shelf.used_bytes())}

    def sent(self) -> Mapping[str, int]:
        """Nothing: libtorrent counts by session, see `status`."""
        return {}

    def close(self) -> None:
        """End all fetches and leave the swarms; what was fetched stays.  Idempotent."""
        self._stopping.set()
        self._demand.close()
        self._demand.changed.set()
        for _, cancelled in list(self._fetching.values()):
            cancelled.set()
        if self._thread.is_alive():
            self._thread.join(END_TIMEOUT_S)
        self._pool.shutdown(cancel_futures=True)
        self._swarm.close()

    def _update(self, snapshot: Snapshot | None) -> None:
        """Take the new catalogue; without one what is offered stays."""
        if snapshot is not None:
            # what is kept is found by its digest: swarms whose key is another one are left to the central seeder
            self._packages = {group[0].key: group[0] for key, group in snapshot.swarms.items() if key == group[0].key}

    def _run(self) -> None:
        while True:
            try:
                self._turn()
            except OSError as error:  # the directory: said, and tried again
                self._say("directory", f"site seeder: {error}")
            self._demand.changed.wait(self._poll_s)
            if self._stopping.is_set():
                return
            self._demand.changed.clear()

    def _turn(self) -> None:
        """One look at what the site wants."""
        packages = self._packages
        if not packages:
            return
        self._fetching = {d: job for d, job in self._fetching.items() if not job[0].done()}
        for digest in self._shelf.kept():
            if digest not in packages:
                self._drop(digest)
        wanted = [d for d in self._demand.wanted() if d in packages]
        for digest in wanted:
            self._shelf.used(digest)
        for digest in wanted:
            self._begin(packages[digest], {*wanted, *self._fetching})
        for digest in self._shelf.kept():  # from an earlier life
            if digest in packages and self._shelf.path_of(packages[digest].archive).exists():
                self._begin(packages[digest], {*wanted, *self._fetching})

    def _begin(self, package: Package, needed: set[str]) -> None:
        """Have a package fetched and offered, unless it is, or failed a moment ago."""
        is_due = self._clock() >= self._retry_s.get(package.key, 0.0)
        if package.key in self._offered or package.key in self._fetching or not is_due:
            return
        try:
            for victim in self._shelf.plan(package.archive, needed):
                log.info("%s goes: the site has not used it for longest", victim[:12])
                self._drop(victim)
        except JobAgentError as error:
            self._say(package.key, f"cannot keep {package.id}: {error}")
            self._retry_s[package.key] = self._clock() + RETRY_S
            return
        cancelled = threading.Event()
        self._fetching[package.key] = (self._pool.submit(self._fetch, package, cancelled), cancelled)

    def _fetch(self, package: Package, cancelled: threading.Event) -> None:
        """Have the archive, verified, and offer it."""
        archive = package.archive
        target = self._shelf.path_of(archive)
        try:
            torrent = self._watch.catalogue.torrent(archive)
            if not target.exists():
                target.parent.mkdir(exist_ok=True)
                urls = tuple(self._watch.catalogue.urls(package))
                deadline = time.monotonic() + FETCH_TIMEOUT_S
                traffic = self._swarm.fetch(Order(package, torrent, urls, target, deadline, cancelled=cancelled))
                log.info("fetched %s: %s", package.id, traffic)
            if not has_digest(target, package.key):
                self._swarm.unseed(package.key)
                self._shelf.drop(package.key)
                raise OSError(f"{target} was not what was signed")
            self._swarm.seed(package, target, torrent)
        except (JobAgentError, OSError) as error:
            if not self._stopping.is_set():
                self._say(package.key, f"cannot offer {package.id} to the site: {error}")
            self._retry_s[package.key] = self._clock() + RETRY_S
            return
        with self._lock:
            self._offered[package.key] = package
        self._say(package.key, "")
        log.info("offering %s to the site (%s)", package.id, package.key[:12])

    def _drop(self, digest: str) -> None:
        """Offer it no more, and delete it."""
        if digest in self._fetching:
            self._fetching[digest][1].set()
            return  # it is deleted when the fetch has ended
        with self._lock:
            self._offered.pop(digest, None)
        self._swarm.unseed(digest)
        self._shelf.drop(digest)

    def _say(self, about: str, message: str) -> None:
        """Log a trouble once, until it is over (empty) or another."""
        if message and self._said.get(about) != message:
            log.warning(message)
        self._said[about] = message
