"""One process of central services: the object graph of `jobagent serve`, `tracker` and `seeder`."""

from __future__ import annotations

import logging
import random
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jobagent.central.catalogue.keys import KeyStore
from jobagent.central.catalogue.repository import Repository
from jobagent.central.services.neighbours import Neighbourhood
from jobagent.central.services.seeder import CatalogueSeeder
from jobagent.central.services.settings import CentralSettings, parse_sites, read_token_keys
from jobagent.central.services.siteseeder import SiteSeeder
from jobagent.central.services.siteshelf import SiteShelf
from jobagent.central.services.tracker import Tracker
from jobagent.central.services.watch import CatalogueWatch
from jobagent.central.services.web import Services, build
from jobagent.central.services.webserver import WebServer
from jobagent.config import Config
from jobagent.contracts import Catalogue
from jobagent.errors import ConfigurationError, JobAgentError
from jobagent.events import Events
from jobagent_catalogue.client import SignedCatalogue
from jobagent_catalogue.settings import CatalogueSettings

log = logging.getLogger("jobagent.central")

RENEWAL_PERIOD_S = 60.0  # the repository signs anew only when half of a validity is over
WILDCARDS = frozenset({"", "0.0.0.0", "::"})


@dataclass(frozen=True, slots=True)
class HostOptions:
    """What runs here.

    `catalogue` is a directory, or the URL of one elsewhere, which then needs `root`, its first root metadata.
    `keys` holds the online key, for renewing the timestamp.  `advertise` is the address under which clients reach
    the seeder, where it is not the one by which they reach the tracker.
    """

    catalogue: str
    host: str = "0.0.0.0"
    port: int = 0
    root: Path | None = None
    keys: Path | None = None
    advertise: str = ""
    is_tracking: bool = True
    is_seeding: bool = True
    is_serving: bool = True

    @property
    def directory(self) -> Path | None:
        """The catalogue directory, None where the catalogue is elsewhere."""
        return None if "://" in self.catalogue else Path(self.catalogue)


class CentralHost:
    """Starts and stops the services in order.

    Raises:
        ConfigurationError: There is no catalogue, or a setting is wrong.
        NoFreePort: The port is taken.
    """

    def __init__(self, options: HostOptions, config: Config) -> None:
        self._options = options
        settings = config.get(CentralSettings)
        self._scratch = tempfile.TemporaryDirectory(prefix="jobagent-central-")
        self._renewal = _Renewal(options.directory, options.keys) if options.directory and options.keys else None
        catalogue = _catalogue(options, Path(self._scratch.name))
        self.watch = CatalogueWatch(
            catalogue,
            period_s=settings.refresh_s,
            poll_s=0.5,
            has_changed=_changes_of(options.directory / "metadata" / "timestamp.json") if options.directory else None,
            with_legacy=options.directory is not None,
        )
        self.seeder = self._make_seeder(config, settings) if options.is_seeding else None
        tracker = self._make_tracker(settings) if options.is_tracking else None
        directory = options.directory if options.is_serving else None
        keys = read_token_keys(settings.token_keys)
        neighbourhood = Neighbourhood(clock=time.monotonic, sites=parse_sites(settings.sites))
        self.services = Services(
            self.watch,
            tracker,
            self.seeder,
            neighbourhood,
            directory=directory,
            token_keys=keys,
            advertise=options.advertise,
        )
        self.web = WebServer(build(self.services), options.host, options.port)

    def start(self) -> None:
        """Start; when it returns everything answers and what is published is seeded."""
        if self._renewal is not None:
            self._renewal.start()
        self.watch.start()
        self.web.start()

    def stop(self) -> None:
        """Stop within a few seconds; idempotent."""
        self.web.stop()
        self.watch.stop()
        if self._renewal is not None:
            self._renewal.stop()
        if self.seeder is not None:
            self.seeder.close()
        self._scratch.cleanup()

    def _make_seeder(self, config: Config, settings: CentralSettings) -> CatalogueSeeder:
        if self._options.directory is None:
            raise ConfigurationError("a seeder needs the catalogue's directory", remedy="give a directory, not a URL")
        addresses = () if self._options.host in WILDCARDS else (self._options.host,)
        seeder = CatalogueSeeder(
            self._options.directory,
            config,
            addresses=addresses,
            mode=settings.mode,
            announces=not self._options.is_tracking,
        )
        seeder.follow(self.watch)
        return seeder

    def _make_tracker(self, settings: CentralSettings) -> Tracker:
        return Tracker(
            self.watch.tracked,
            clock=time.monotonic,
            choice=random.Random(),
            sites=parse_sites(settings.sites),
            home=self._port_of,
            policy=settings.policy(),
        )

    def _port_of(self, key: str) -> int:
        return self.seeder.port_of(key) if self.seeder is not None else 0


class SiteHost:
    """A site seeder with its status page: the object graph of `jobagent seeder --site`.

    Raises:
        ConfigurationError: `[catalogue]` is not set, another seeder uses the directory, or a setting is wrong.
        NoFreePort: The port is taken.
        ScratchUnusable: The directory cannot be used.
    """

    def __init__(self, directory: Path, quota_bytes: int, config: Config, *, host: str, port: int) -> None:
        source = config.get(CatalogueSettings)
        if not source.urls or source.root == Path():
            raise ConfigurationError(
                "a site seeder needs the catalogue", remedy="set [catalogue] urls and root as on the site's nodes"
            )
        self._shelf = SiteShelf(directory, quota_bytes)
        catalogue = SignedCatalogue(source, directory / "catalogue", Events())
        self.watch = CatalogueWatch(catalogue, period_s=config.get(CentralSettings).refresh_s)
        addresses = () if host in WILDCARDS else (host,)
        self.seeder = SiteSeeder(self._shelf, self.watch, config, addresses=addresses)
        self.web = WebServer(build(Services(self.watch, seeder=self.seeder)), host, port)

    def start(self) -> None:
        """Start; when it returns the status page answers."""
        self.seeder.start()
        self.watch.start()
        self.web.start()

    def stop(self) -> None:
        """Stop within a few seconds; what was fetched stays, what was not complete is taken up the next time."""
        self.web.stop()
        self.watch.stop()
        self.seeder.close()
        self._shelf.close()


class _Renewal:
    """Keeps timestamp and snapshot of a catalogue from expiring, in a thread of its own."""

    def __init__(self, directory: Path, keys: Path) -> None:
        self._repository = Repository(directory, KeyStore(keys))
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="renewal", daemon=True)

    def start(self) -> None:
        """Renew now, so that what is served is valid, and then in the background."""
        self._renew()
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._stopping.wait(RENEWAL_PERIOD_S):
            self._renew()

    def _renew(self) -> None:
        try:
            self._repository.refresh()
        except JobAgentError as error:
            log.error("the catalogue's timestamp cannot be renewed: %s", error)


def _catalogue(options: HostOptions, state: Path) -> Catalogue:
    """The verifying client of the catalogue; for a directory its own first root is the anchor."""
    directory = options.directory
    root = options.root or (directory / "metadata" / "1.root.json" if directory else None)
    if root is None:
        raise ConfigurationError(f"{options.catalogue} cannot be verified", remedy="give its root metadata by --root")
    if not root.is_file():
        raise ConfigurationError(f"{root} is not there", remedy="make a catalogue with: jobagent catalogue init")
    url = directory.resolve().as_uri() + "/" if directory else options.catalogue
    settings = CatalogueSettings(urls=(url,), root=root, refresh_interval_s=0.0)
    return SignedCatalogue(settings, state / "catalogue", Events())


def _changes_of(path: Path) -> Callable[[], bool]:
    """Return a test whether the file was replaced since the last call."""
    last: list[tuple[int, int] | None] = [None]

    def has_changed() -> bool:
        try:
            status = path.stat()
            now = (status.st_ino, status.st_mtime_ns)
        except OSError:
            now = None
        changed, last[0] = now != last[0], now
        return changed

    return has_changed
