"""The swarm as a transport: fetches archives from peers and gives them to others.

One libtorrent session for all packages of an agent, made at the first fetch or seed.  A download goes to
`<target>.part`, reserved to its full size, so that a partial file never looks like a complete one; it is renamed to
`target` when its bytes are flushed and synced.  An interrupted download is taken up by hashing what is there.  When
no peer gives anything, the catalogue's web servers help with the missing pieces inside the same download: what was
verified is kept.  Only then the core tries its next transport.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import libtorrent as lt

from jobagent.plugin import (
    ConfigurationError,
    Context,
    NoFreePort,
    Order,
    Package,
    ScratchUnusable,
    SupplyError,
    Traffic,
    durable,
)
from jobagent_swarm.download import Download, Patience
from jobagent_swarm.finding import can_fetch
from jobagent_swarm.options import Role
from jobagent_swarm.place import move, settle
from jobagent_swarm.reservation import reserve
from jobagent_swarm.session import LISTEN_TIMEOUT_S, Session, Torrent, load, shape_of
from jobagent_swarm.settings import SwarmSettings
from jobagent_swarm.site import TokenFile, options_of
from jobagent_swarm.webseeds import WebSeeds

log = logging.getLogger("jobagent.swarm")

POLL_S = 0.5  # progress reports and patience; the end of a download wakes at once
FORSAKEN_S = 5.0  # without progress, once peers were banned
NEAR_PATIENCE_S = 2.0  # for a first peer, where the archive is also a local file


@dataclass(slots=True)
class _Offer:
    """An archive that is in the session and complete; provisional until the core calls `seed`."""

    torrent: Torrent
    path: Path
    is_provisional: bool
    infohash: str


class _Forsaken(SupplyError):
    """Peers were banned after something had come, and nobody else delivers."""

    def __init__(self, message: str, traffic: Traffic) -> None:
        super().__init__(message)
        self.traffic = traffic


class Swarm:
    """Transport and seeder over one lazy libtorrent session.  Thread-safe."""

    def __init__(
        self,
        context: Context,
        *,
        role: Role = Role.AGENT,
        addresses: tuple[str, ...] = (),
        make_room: Callable[[Path, int], bool] = reserve,
    ) -> None:
        self._context = context
        self._role = role
        self._addresses = addresses
        self._make_room = make_room
        self._lock = threading.RLock()
        self._session: Session | None = None
        self._is_closed = False
        self._offers: dict[str, _Offer] = {}
        self._fetching: dict[str, threading.Lock] = {}
        self._has_warned = False

    @property
    def name(self) -> str:
        """`swarm`."""
        return "swarm"

    @property
    def rank(self) -> int:
        """First among transports."""
        return 10

    def can_fetch(self, order: Order) -> bool:
        """Whether there is a torrent, and anybody who could know of peers."""
        return can_fetch(order, self._context.config)

    def fetch(self, order: Order) -> Traffic:
        """Fetch from peers, and from web servers where peers do not deliver; see `Transport.fetch`.

        A second fetch of the same archive waits for the first and copies.
        """
        infohash = order.package.archive.infohash_v2
        with self._lock:
            turn = self._fetching.setdefault(infohash, threading.Lock())
        if not turn.acquire(timeout=max(0.0, order.deadline - time.monotonic())):
            raise SupplyError(f"{order.package.id} is being fetched by another job and did not arrive in time")
        try:
            with self._lock:
                offer = self._offers.get(order.package.key) or self._same(infohash)
            if offer is not None and _copy(offer.path, order.target, order.package.archive.size_bytes):
                return Traffic()
            return self._fetch(order)
        finally:
            turn.release()

    def seed(self, package: Package, archive: Path, torrent: bytes) -> None:
        """Offer `archive`, which was verified: it is not hashed again.  A file that moved is followed.

        Raises:
            TrustError: The torrent is not the signed one.
            ScratchUnusable: The file is not there or has not the signed size.
        """
        if not self._settings.is_seeding:
            self.unseed(package.key)
            return
        try:
            size = archive.stat().st_size
        except OSError as error:
            raise ScratchUnusable(f"cannot seed {archive}: {error.strerror}") from error
        if size != package.archive.size_bytes:
            raise ScratchUnusable(f"cannot seed {archive}: it has {size} bytes, not {package.archive.size_bytes}")
        self.offer(package.key, archive, torrent, package.archive.infohash_v2)

    def offer(self, key: str, archive: Path, torrent: bytes, infohash: str) -> None:
        """Offer a verified file under any name for it; `unseed` takes that name."""
        with self._lock:
            offer = self._offers.get(key)
            if offer is not None and (offer.path == archive or _follow(offer, archive)):
                offer.is_provisional = False
                return
            parameters = load(torrent, infohash)
            if offer is not None:
                self._open_session().remove(offer.torrent)
            elif self._same(infohash) is not None:
                return  # offered under another name: a file of the catalogue may be asked for by its URL as well
            added = self._open_session().add(parameters, archive, _ignore, is_complete=True)
            self._offers[key] = _Offer(added, archive, is_provisional=False, infohash=infohash)

    def _same(self, infohash: str) -> _Offer | None:
        """What is offered with that infohash, under whatever name."""
        return next((offer for offer in self._offers.values() if offer.infohash == infohash), None)

    def unseed(self, key: str) -> None:
        """Stop offering; when it returns the file is no longer read."""
        with self._lock:
            offer = self._offers.pop(key, None)
            if offer is not None and self._session is not None:
                self._session.remove(offer.torrent)

    def status(self) -> Mapping[str, float]:
        """Counters of the session; all zero while there is none."""
        with self._lock:
            session, seeding = self._session, len(self._offers)
        if session is None:
            names = ("peers", "upload_bytes", "download_bytes", "upload_bytes_per_s", "download_bytes_per_s")
            return {"seeding": 0.0, **dict.fromkeys(names, 0.0)}
        counters = session.statistics()
        states = [offer.torrent.status() for offer in self._snapshot()]
        return {
            "seeding": float(seeding),
            "peers": float(counters.get("peer.num_peers_connected", 0)),
            "upload_bytes": float(counters.get("net.sent_payload_bytes", 0)),
            "download_bytes": float(counters.get("net.recv_payload_bytes", 0)),
            "upload_bytes_per_s": float(sum(s.upload_payload_rate for s in states)),
            "download_bytes_per_s": float(sum(s.download_payload_rate for s in states)),
        }

    def open(self) -> None:
        """Open the session now rather than at the first fetch or seed; a node service does, so that no job waits."""
        self._open_session()

    def port(self) -> int:
        """The listening port; 0 where none could be bound or there is no session yet."""
        return self._session.port() if self._session else 0

    def close(self) -> None:
        """Leave the swarm; idempotent."""
        with self._lock:
            self._is_closed = True
            session, self._session = self._session, None
            self._offers.clear()
        if session is not None:
            session.close()

    @property
    def _settings(self) -> SwarmSettings:
        return self._context.config.get(SwarmSettings)

    def _open_session(self) -> Session:
        with self._lock:
            if self._is_closed:
                raise SupplyError("the swarm is closed")
            if self._session is None:
                options = options_of(self._context.config, self._role)
                if self._addresses:
                    options = dataclasses.replace(options, addresses=self._addresses)
                self._session = Session(options)
                self._session.on_tick(self._drop_vanished)
                self._session.on_tick(functools.partial(self._renew_token, TokenFile(self._context.config)))
                if not self._session.port(LISTEN_TIMEOUT_S):
                    self._refuse_or_warn(self._session)
            return self._session

    def _renew_token(self, token: TokenFile) -> None:
        session = self._session
        if session is not None and token.has_changed():
            try:
                session.announce_to(options_of(self._context.config, self._role).trackers)
            except ConfigurationError as error:
                self._warn(str(error))

    def _refuse_or_warn(self, session: Session) -> None:
        """Where the port range is used up a node can still download through any port, unless its address is wrong."""
        reason = "; ".join(session.listen_failures) or "no interface to listen on"
        if not session.listen_anywhere():
            self._session = None
            session.close()
            raise NoFreePort(f"cannot listen: {reason}", remedy="check [site] address and [swarm] ports")
        self._warn(
            f"no port of {self._settings.ports} is free: peers may be unable to connect to port {session.port()}"
        )

    def _warn(self, message: str) -> None:
        log.warning(message)
        self._context.events.emit("warning", message=message)

    def _fetch(self, order: Order) -> Traffic:
        """Download; anew, from what is verified, where it got on and then stood still after peers were banned.

        libtorrent distrusts all who gave blocks of damaged pieces, and may ban the seeder with the one who lies.
        """
        traffic = Traffic()
        while True:
            try:
                return traffic + self._download(order)
            except _Forsaken as error:
                traffic += error.traffic
                self._warn(f"{error}; all are asked once more")

    def _download(self, order: Order) -> Traffic:
        archive = order.package.archive
        parameters = load(order.torrent or b"", archive.infohash_v2)
        session = self._open_session()
        part = order.target.with_name(order.target.name + ".part")
        has_data = self._make_room(part, archive.size_bytes)
        try:
            with self._added(session, order, parameters, part, is_fresh=not has_data) as (torrent, download):
                self._wait(order, torrent, download)
                _sync(part)
                torrent.place = settle(torrent.handle, part, order.target, download.wait_until_renamed)
                durable.sync_directory(order.target.parent)
                torrent.path = torrent.place.path / order.target.name
                with self._lock:
                    self._offers[order.package.key] = _Offer(
                        torrent, torrent.path, is_provisional=True, infohash=archive.infohash_v2
                    )
                order.progress(archive.size_bytes)
                if download.banned_peers:
                    self._warn(f"peers that gave corrupt data were banned: {' '.join(download.banned_peers)}")
                return download.traffic()
        except OSError as error:
            raise ScratchUnusable(f"cannot complete {order.target}: {error.strerror}") from error

    @contextlib.contextmanager
    def _added(
        self, session: Session, order: Order, parameters: lt.add_torrent_params, part: Path, *, is_fresh: bool
    ) -> Iterator[tuple[Torrent, Download]]:
        """A torrent that leaves the session, and a part that goes if it is worthless, where the block fails."""
        archive = order.package.archive
        download = Download(archive.size_bytes, shape_of(parameters)[1], archive.file_name)
        torrent = session.add(parameters, part, download.on_alert, is_fresh=is_fresh)
        done_bytes = 1
        try:
            yield torrent, download
        except BaseException:
            with contextlib.suppress(RuntimeError):
                done_bytes = torrent.status().total_done
            session.remove(torrent)
            if not done_bytes:
                part.unlink(missing_ok=True)
            raise

    def _wait(self, order: Order, torrent: Torrent, download: Download) -> None:
        """Return when the file is complete and flushed; raise when it is hopeless, late or unwanted."""
        patience: Patience | None = None
        known_bytes = 0
        web_seeds = WebSeeds(self._settings, order, torrent, download, self._warn)
        while not download.is_flushed:
            download.wait(POLL_S)
            download.raise_failure()
            now = time.monotonic()
            state = torrent.status()
            order.progress(state.total_done)
            if order.cancelled.is_set():
                raise SupplyError(f"fetch of {order.package.id} was cancelled")
            if now >= order.deadline:
                raise SupplyError(f"{order.package.id} did not arrive in time: {_describe(order, state, download)}")
            if not download.is_checked or state.is_finished:
                continue
            if patience is None:
                known_bytes = state.total_done
                patience = Patience(_patience_for(order, self._settings), now, known_bytes)
            reason = patience.verdict(now, state.total_done, state.num_peers)
            if download.banned_peers and state.total_done > known_bytes and patience.idle_s(now) >= FORSAKEN_S:
                raise _Forsaken(f"no progress: {_describe(order, state, download)}", download.traffic())
            if reason is not None:
                raise SupplyError(f"{reason}: {_describe(order, state, download)}")
            web_seeds.consider(patience.idle_s(now))

    def _drop_vanished(self) -> None:
        """Forget what was fetched but never adopted, once its file is gone."""
        if not self._lock.acquire(blocking=False):
            return  # the session's thread must never wait for one that waits for an alert
        try:
            gone = [k for k, o in self._offers.items() if o.is_provisional and not o.path.exists()]
            for key in gone:
                self.unseed(key)
        finally:
            self._lock.release()

    def _snapshot(self) -> list[_Offer]:
        with self._lock:
            return list(self._offers.values())


def _ignore(alert: lt.alert) -> None:
    """Watch a seed: nothing of interest happens to it."""


def _follow(offer: _Offer, archive: Path) -> bool:
    """Point a torrent in the session to the new place of its file, keeping its peers."""
    handle = offer.torrent.handle
    if offer.path.exists() and not offer.path.samefile(archive):
        return False
    state = handle.status(0)
    if state.errc.value() or not state.is_seeding:
        return False
    move(handle, offer.path.name, archive)
    offer.torrent.leave()
    offer.path = offer.torrent.path = archive
    return True


def _patience_for(order: Order, settings: SwarmSettings) -> SwarmSettings:
    """Wait less for a first peer where the archive is on a disk of this node's."""
    if any(url.startswith("file:") for url in order.urls):
        return dataclasses.replace(settings, no_peer_timeout_s=min(NEAR_PATIENCE_S, settings.no_peer_timeout_s))
    return settings


def _copy(source: Path, target: Path, size_bytes: int) -> bool:
    """Copy what this process already seeds; False where it cannot be."""
    try:
        if source.stat().st_size != size_bytes:
            return False
        shutil.copyfile(source, target)
        _sync(target)
    except OSError:
        return False
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _describe(order: Order, state: lt.torrent_status, download: Download) -> str:
    """Say how far it came and what the trackers said, for the one line of an error."""
    failures = [f"{url.partition('?')[0]}: {why}" for url, why in download.tracker_failures().items() if why]
    parts = [f"{state.total_done} of {order.package.archive.size_bytes} bytes", f"{state.num_peers} peers", *failures]
    if download.banned_peers:
        parts.append(f"banned for corrupt data: {' '.join(download.banned_peers)}")
    return ", ".join(parts)
