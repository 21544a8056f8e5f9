"""The seeder: offers every archive of a catalogue directory that the verified catalogue names and nobody banned.

One is enough for the whole grid, because peers give to each other; more can run anywhere.  It holds no trust: what
it offers is refused by every client where it differs from what was signed.

It deals (`dealing`): about one copy leaves it, whatever the number of clients.  For old clients, which need torrents
of their own, it is a libtorrent peer that has everything.
"""

from __future__ import annotations

import datetime
import hashlib
import logging
import threading
from collections.abc import Mapping
from pathlib import Path

from jobagent.central.packaging import torrents
from jobagent.central.services.announcer import Announcer
from jobagent.central.services.dealer import DealingPolicy, Mode
from jobagent.central.services.dealing import DealingSeeder
from jobagent.central.services.watch import LEGACY_SUFFIX, CatalogueWatch, Snapshot, infohashes_of
from jobagent.config import Config
from jobagent.contracts import Catalogue, Context
from jobagent.errors import JobAgentError
from jobagent.events import Events
from jobagent.model import Package
from jobagent_swarm.limits import Schedule
from jobagent_swarm.options import Role
from jobagent_swarm.site import options_of
from jobagent_swarm.swarm import Swarm

log = logging.getLogger("jobagent.central")


class CatalogueSeeder:
    """Follows a `CatalogueWatch`: what appears is seeded, what disappears or is banned is not.

    Args:
        directory: The catalogue directory with `archives/<sha256>/<file name>`.
        config: For `[swarm]` and `[site]`.
        addresses: To listen on, instead of the site's.
        mode: How it deals.
        announces: Whether it announces itself to `[swarm] trackers`; not where the tracker runs beside it.
    """

    def __init__(
        self,
        directory: Path,
        config: Config,
        *,
        addresses: tuple[str, ...] = (),
        mode: Mode = Mode.DEFAULT,
        announces: bool = False,
    ) -> None:
        self._directory = directory
        context = Context(config, directory, Events(), "")
        self._swarm = Swarm(context, role=Role.SEEDER, addresses=addresses)
        options = options_of(config, Role.SEEDER)
        addresses = addresses or options.addresses
        schedule = Schedule.of(options.settings)
        self._dealing = DealingSeeder(
            addresses,
            options.settings.port_range,
            policy=DealingPolicy.of(mode),
            upload_rate_bytes=lambda: schedule.at(datetime.datetime.now()).upload_bytes,
        )
        self._announcer: Announcer | None = None
        if announces:
            self._announcer = Announcer(
                options.trackers,
                peer_id=self._dealing.peer_id,
                port=self._dealing.port,
                address=addresses[0] if addresses else "",
            )
        self._lock = threading.Lock()
        self._seeded: dict[str, Package] = {}
        self._refused: set[str] = set()
        self._legacy: set[str] = set()
        self._said: dict[str, str] = {}  # why a swarm could not be seeded: said once, tried at each snapshot

    def follow(self, watch: CatalogueWatch) -> None:
        """Seed what `watch` sees from now on."""
        watch.subscribe(lambda snapshot: self.update(snapshot, watch.catalogue))

    def update(self, snapshot: Snapshot | None, catalogue: Catalogue) -> None:
        """Make what is seeded equal to the snapshot; without one nothing new is seeded and nothing is taken away."""
        if snapshot is None:
            return
        with self._lock:
            for key in self._seeded.keys() - snapshot.swarms.keys():
                self._withdraw(key, self._seeded.pop(key))
            for key in snapshot.swarms.keys() - self._seeded.keys():
                package = next((p for p in snapshot.swarms[key] if self._seed(key, p, catalogue)), None)
                if package is not None:
                    self._seeded[key] = package

    def seeded(self) -> Mapping[str, Package]:
        """What is offered now, by the key of its swarm."""
        with self._lock:
            return dict(self._seeded)

    def port_of(self, key: str) -> int:
        """The port where that swarm is seeded, else 0; a swarm of old clients is joined when it is asked for."""
        package = self._seeded.get(key.removesuffix(LEGACY_SUFFIX))
        if package is None:
            return 0
        if key.endswith(LEGACY_SUFFIX) and key not in self._legacy:
            self._seed_legacy(package, key)
        return self._swarm.port() if key in self._legacy else self._dealing.port

    def status(self) -> Mapping[str, float]:
        """Counters, as of any `Seeder`."""
        numbers = dict(self._swarm.status())
        numbers["seeding"] = float(len(self._seeded))
        numbers["upload_bytes"] += self._dealing.sent_bytes
        numbers["peers"] += len(self._dealing.connections)
        return numbers

    def sent(self) -> Mapping[str, int]:
        """Bytes that were dealt, by swarm; cheap, and without those for old clients."""
        return {package.key: package.sent_bytes for package in dict(self._dealing.packages).values()}

    def close(self) -> None:
        """Leave all swarms; idempotent."""
        if self._announcer is not None:
            self._announcer.close()
        self._swarm.close()
        self._dealing.close()

    def _withdraw(self, key: str, package: Package) -> None:
        if self._announcer is not None:
            self._announcer.withdraw(infohashes_of(package))
        self._dealing.withdraw(key)
        self._swarm.unseed(key + LEGACY_SUFFIX)
        self._legacy.discard(key + LEGACY_SUFFIX)
        log.info("no longer seeding %s", package.id)

    def _seed_legacy(self, package: Package, key: str) -> None:
        """Offer the same file under its v1-only torrent."""
        self._legacy.add(key)
        archive = package.archive
        path = self._directory / "archives" / package.key / archive.file_name
        try:
            hybrid = (self._directory / "torrents" / f"{archive.infohash_v2}.torrent").read_bytes()
            torrent = torrents.legacy(hybrid)
            self._swarm.offer(key, path, torrent.data, torrent.infohash_v1)
        except (JobAgentError, OSError) as error:
            log.error("cannot seed %s for old clients: %s", package.id, error)

    def _seed(self, key: str, package: Package, catalogue: Catalogue) -> bool:
        archive = self._directory / "archives" / package.key / package.archive.file_name
        try:
            if package.key not in self._refused and not has_digest(archive, package.key):
                log.error("%s is not what was signed: it is not seeded", archive)
                self._refused.add(package.key)
            if package.key in self._refused:
                return False
            piece_size = torrents.check(catalogue.torrent(package.archive)).piece_size
            size, infohashes = package.archive.size_bytes, infohashes_of(package)
            self._dealing.offer(key, archive, infohashes, size, piece_size)
            if self._announcer is not None:
                self._announcer.offer(infohashes, size)
        except (JobAgentError, OSError) as error:
            if self._said.get(key) != str(error):
                log.error("cannot seed %s: %s", package.id, error)
            self._said[key] = str(error)
            return False
        self._said.pop(key, None)
        log.info("seeding %s (%s)", package.id, package.key[:12])
        return True


def has_digest(path: Path, sha256: str) -> bool:
    """Whether a file has the signed content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == sha256
