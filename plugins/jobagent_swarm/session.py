"""The one door to libtorrent: a session with the project's settings, and the thread that owns its alerts.

Facts about libtorrent 2.1 that shape this module: alerts die at the next `pop_alerts`, so one thread pops and
watchers copy what they need; rate limits pass by local peers unless all peers are put into the global class; DHT,
LSD, UPnP, NAT-PMP and uTP are on by default; what a torrent file says about trackers and web seeds is obeyed unless
it is removed.  Knows nothing of packages, catalogues and jobs.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import libtorrent as lt

from jobagent.plugin import DigestMismatch, HostileArchive
from jobagent_swarm.limits import Schedule, networks
from jobagent_swarm.options import Options, interfaces, rates, settings_pack
from jobagent_swarm.place import Place
from jobagent_swarm.settings import SwarmSettings
from jobagent_swarm.slots import MIN_SLOTS, first_slots, slots_by_givers, usual_slots

log = logging.getLogger("jobagent.swarm")

LOAD_LIMITS = {
    "max_buffer_size": 4 << 20,
    "max_pieces": 100_000,
    "max_decode_depth": 12,
    "max_decode_tokens": 10_000,
}
TICK_S = 0.9
PUMP_WAIT_MS = 3000  # between looks at files and the clock where no alert comes
LISTEN_TIMEOUT_S = 5.0
PUMP_END_S = 10.0  # it is woken; a process that ended with it inside libtorrent could crash
CLOSE_WAIT_S = 1.0  # for the trackers to hear "stopped"
Watcher = Callable[[lt.alert], None]
_PROGRESS = (lt.block_finished_alert, lt.piece_finished_alert, lt.torrent_checked_alert, lt.torrent_finished_alert)


class Torrent:
    """One torrent of a session.  Made by `Session.add`; `path` is where its only file is.

    `held` is how many of its `pieces` are here, as long as it is not complete; `givers` is who gave some of it.
    """

    def __init__(
        self, handle: lt.torrent_handle, path: Path, watcher: Watcher, shape: tuple[int, int], *, is_complete: bool
    ) -> None:
        self.handle = handle
        self.path = path
        self.watcher = watcher
        self.pieces, self.piece_bytes = shape
        self.held = 0
        self.givers: set[tuple[str, int]] = set()
        self.is_complete = is_complete
        self.failing_trackers: set[str] = set()
        self.exchanges_peers = False
        self.place: Place | None = None

    def status(self) -> lt.torrent_status:
        """State as libtorrent sees it; a synchronous call of about 0.1 ms."""
        return self.handle.status(0)

    def leave(self) -> None:
        """Let the place of its file go."""
        if self.place is not None:
            self.place.close()
            self.place = None


class _Farewell:
    """Counts, while a session ends, the torrents that paused and the trackers that answered."""

    def __init__(self) -> None:
        self.is_said = threading.Event()
        self._torrents_left: int | None = None
        self._answers_left = 0

    def begin(self, torrents: int) -> None:
        """Expect so many torrents to pause; call before the session is paused."""
        self._torrents_left = torrents
        if not torrents:
            self.is_said.set()

    def on_alert(self, alert: lt.alert) -> None:
        """Count; called in the session's thread."""
        if self._torrents_left is None:
            return
        if isinstance(alert, lt.torrent_paused_alert):
            self._torrents_left -= 1
        elif isinstance(alert, lt.tracker_announce_alert):
            self._answers_left += 1
        elif isinstance(alert, lt.tracker_reply_alert | lt.tracker_error_alert):
            self._answers_left -= 1
        if self._torrents_left <= 0 and self._answers_left <= 0:
            self.is_said.set()


class Session:
    """A libtorrent session.  Thread-safe; watchers are called in the session's own thread and must return at once."""

    def __init__(self, options: Options, *, now: Callable[[], datetime.datetime] = datetime.datetime.now) -> None:
        self._options = options
        self._schedule = Schedule.of(options.settings)
        self._now = now
        self._limits = self._schedule.at(now())
        self._lock = threading.Lock()
        self._fitting: dict[str, int] = {}
        self._torrents: dict[lt.torrent_handle, Torrent] = {}
        self._stats_arrived = threading.Condition(self._lock)
        self._stats: Mapping[str, int] = {}
        self._stats_round = 0
        self._tried = threading.Event()  # listening succeeded or failed
        self._bound = threading.Event()
        self._ports: dict[str, int] = {}
        self._farewell = _Farewell()
        self.listen_failures: list[str] = []
        pack = settings_pack(options) | rates(self._limits)
        parameters = lt.session_params(cast("lt.settings_pack", pack))
        parameters.disk_io_constructor = "posix_disk_io_constructor"
        self._session: lt.session | None = lt.session(parameters)
        self._session.set_peer_class_filter(_classes(self._session, options.settings))
        self._closing = threading.Event()
        self._tickers: list[Callable[[], None]] = [self._follow_schedule]
        self._pump = threading.Thread(target=self._run, name="swarm-alerts", daemon=True)
        self._pump.start()

    @property
    def native(self) -> lt.session:
        """The libtorrent session; raises RuntimeError after close."""
        if self._session is None:
            raise RuntimeError("the swarm session is closed")
        return self._session

    def port(self, timeout_s: float = 0.0) -> int:
        """The port that peers can reach, 0 where none could be bound, or not yet within `timeout_s`."""
        self._tried.wait(timeout_s)
        return next(iter(self._ports.values()), 0)

    def listen_anywhere(self) -> bool:
        """Listen on any free port after the configured ones failed; whether that worked."""
        if self._options.settings.port_range == (0, 0):
            return False  # that was tried
        self.apply(listen_interfaces=interfaces(self._options.addresses, 0))
        return self._bound.wait(LISTEN_TIMEOUT_S)

    def announce_to(self, trackers: tuple[str, ...]) -> None:
        """Use these trackers, for the torrents that are there too."""
        self._options = replace(self._options, trackers=trackers)
        with self._lock:
            for handle in self._torrents:
                handle.replace_trackers([lt.announce_entry(url) for url in trackers])
                handle.force_reannounce()

    def on_tick(self, tick: Callable[[], None]) -> None:
        """Call `tick` in the session's thread about every second, every three where no alert comes."""
        self._tickers.append(tick)

    def add(
        self,
        parameters: lt.add_torrent_params,
        path: Path,
        watcher: Watcher,
        *,
        is_complete: bool = False,
        is_fresh: bool = False,
        is_super_seed: bool = False,
    ) -> Torrent:
        """Add a torrent, as `load` returned it, whose only file is `path`.

        `is_complete`: the file was verified, it is not hashed again.  `is_fresh`: the file holds nothing yet, it is
        not hashed in search of a partial download.
        """
        parameters.save_path = str(path.parent)
        parameters.renamed_files = {0: path.name}
        parameters.trackers = list(self._options.trackers)
        parameters.max_connections = self._options.settings.connections_per_package
        flags = lt.torrent_flags
        parameters.flags = flags.update_subscribe | flags.apply_ip_filter | flags.disable_dht
        parameters.flags |= flags.override_trackers | flags.override_web_seeds | flags.duplicate_is_error
        if not self._options.settings.local_discovery:
            parameters.flags |= flags.disable_lsd
        if self._options.trackers or not self._options.settings.peer_exchange:
            parameters.flags |= flags.disable_pex  # until no tracker answers
        if is_complete:
            parameters.flags |= flags.seed_mode
        elif is_fresh:
            parameters.flags |= flags.no_verify_files
        if is_super_seed:
            parameters.flags |= flags.super_seeding
        with self._lock:  # held so that the first alerts find their watcher
            handle = self.native.add_torrent(parameters)
            added = Torrent(handle, path, watcher, shape_of(parameters), is_complete=is_complete)
            self._torrents[handle] = added
            self._fit()
        return added

    def remove(self, torrent: Torrent) -> None:
        """Remove a torrent, its file stays; trackers hear "stopped".  Idempotent."""
        with self._lock:
            if self._torrents.pop(torrent.handle, None) is None or self._session is None:
                return
            self._session.remove_torrent(torrent.handle)
            self._fit()
        torrent.leave()

    def connect(self, torrent: Torrent, address: str, port: int) -> None:
        """Try a peer that no tracker named."""
        torrent.handle.connect_peer((address, port))

    def apply(self, **settings: int | bool | str) -> None:
        """Change libtorrent settings, such as rate limits, of the running session."""
        self.native.apply_settings(cast("lt.settings_pack", settings))

    def statistics(self, timeout_s: float = 1.0) -> Mapping[str, int]:
        """libtorrent's session counters by name, not older than this call unless the session is too busy."""
        with self._stats_arrived:
            if self._session is None:
                return self._stats
            wanted = self._stats_round + 1
            self._session.post_session_stats()
            self._stats_arrived.wait_for(lambda: self._stats_round >= wanted, timeout_s)
            return self._stats

    def close(self) -> None:
        """Tell the trackers and end, within about a second; idempotent."""
        with self._lock:
            if self._session is None:
                return
            session, self._session = self._session, None
            self._farewell.begin(len(self._torrents))
        session.pause()  # says "stopped" to the trackers; waited for here because the destructor keeps the GIL
        self._farewell.is_said.wait(CLOSE_WAIT_S)
        self._closing.set()
        session.post_session_stats()  # wakes the pump
        self._pump.join(PUMP_END_S)
        for torrent in self._torrents.values():
            torrent.leave()
        self._torrents.clear()

    def _fit(self) -> None:
        """Fit settings to the torrents that are there; call with the lock held.

        While something is missing no connection counts as redundant: libtorrent would leave a peer that becomes a
        seed by the very piece that we miss.
        """
        torrents = self._torrents.values()
        incomplete = [t for t in torrents if not t.is_complete]
        most = self._options.settings.unchoke_slots
        slots = min(most, max(map(self._slots, torrents), default=MIN_SLOTS))
        if incomplete and all(t.held >= slots for t in incomplete):
            slots = slots_by_givers(slots, sum(len(t.givers) for t in incomplete))
        fitting = {
            "unchoke_slots_limit": slots,
            "close_redundant_connections": not incomplete,
        }
        if fitting != self._fitting:
            self._fitting = fitting
            self.apply(**fitting)

    def _slots(self, torrent: Torrent) -> int:
        """Return how many peers are to be served at once for a torrent."""
        usual = usual_slots(torrent.pieces)
        if torrent.is_complete:
            return usual
        first = first_slots(torrent.pieces, torrent.piece_bytes, self._limits.upload_bytes)
        return min(usual, max(first, torrent.held))

    def _run(self) -> None:
        session = self._session
        due_s = 0.0
        while session is not None and not self._closing.is_set():
            session.wait_for_alert(PUMP_WAIT_MS)
            for alert in session.pop_alerts():
                self._dispatch(alert)
            if (now_s := time.monotonic()) >= due_s:  # alerts come by the thousand, ticks look at files
                due_s = now_s + TICK_S
                for tick in self._tickers:
                    tick()

    def _follow_schedule(self) -> None:
        """Apply the limits of this time; called in the session's thread every few seconds."""
        limits = self._schedule.at(self._now())
        if limits != self._limits and self._session is not None:
            self._limits = limits
            self.apply(**rates(limits))

    def _dispatch(self, alert: lt.alert) -> None:
        self._farewell.on_alert(alert)
        if isinstance(alert, lt.torrent_alert):
            with self._lock:
                torrent = self._torrents.get(alert.handle)
                if torrent is not None and isinstance(alert, _PROGRESS):
                    self._follow(torrent, alert)
            if torrent is not None:
                if isinstance(alert, lt.tracker_reply_alert | lt.tracker_error_alert):
                    self._choose_exchange(torrent, alert)
                torrent.watcher(alert)
        elif isinstance(alert, lt.session_stats_alert):
            with self._stats_arrived:
                self._stats = dict(alert.values)
                self._stats_round += 1
                self._stats_arrived.notify_all()
        elif isinstance(alert, lt.listen_succeeded_alert):
            self._ports[str(alert.address)] = alert.port
            self._bound.set()
            self._tried.set()
        elif isinstance(alert, lt.listen_failed_alert):
            self.listen_failures.append(alert.message())
            if len(self.listen_failures) >= max(1, len(self._options.addresses)):
                self._tried.set()
        elif isinstance(alert, lt.alerts_dropped_alert):
            log.error("libtorrent dropped alerts: transfer accounting is incomplete")

    def _follow(self, torrent: Torrent, alert: lt.torrent_alert) -> None:
        """Note what is here of a torrent and fit the settings to it; called with the lock held."""
        if isinstance(alert, lt.block_finished_alert):
            if alert.ip in torrent.givers:
                return
            torrent.givers.add(alert.ip)
        elif isinstance(alert, lt.piece_finished_alert):
            torrent.held += 1
            if torrent.held > self._options.settings.unchoke_slots:
                return
        elif isinstance(alert, lt.torrent_checked_alert):
            torrent.held = torrent.status().num_pieces
        else:
            torrent.is_complete = True
            torrent.givers.clear()
        self._fit()

    def _choose_exchange(self, torrent: Torrent, alert: lt.tracker_reply_alert | lt.tracker_error_alert) -> None:
        """Let peers tell each other of peers (PEX) only while no tracker answers.

        The tracker chooses who of a site talks to the outside; peers would tell everybody of everybody.
        """
        if isinstance(alert, lt.tracker_error_alert):
            torrent.failing_trackers.add(alert.url)
        else:
            torrent.failing_trackers.discard(alert.url)
        is_alone = torrent.failing_trackers.issuperset(self._options.trackers)
        if is_alone == torrent.exchanges_peers or not self._options.settings.peer_exchange:
            return
        torrent.exchanges_peers = is_alone
        change = torrent.handle.unset_flags if is_alone else torrent.handle.set_flags
        with contextlib.suppress(RuntimeError):  # it left the session meanwhile
            change(lt.torrent_flags.disable_pex)


def shape_of(parameters: lt.add_torrent_params) -> tuple[int, int]:
    """Return how many pieces there are, and the bytes of one."""
    assert parameters.ti is not None
    return parameters.ti.num_pieces(), parameters.ti.piece_length()


def load(torrent: bytes, infohash: str) -> lt.add_torrent_params:
    """Decode a torrent within tight limits and strip it of trackers, web seeds and peers.

    `infohash` is the expected one in hex: v2, or v1 where it has 40 digits.

    Raises:
        DigestMismatch: Its infohash is not the expected one.
        HostileArchive: It cannot be read, or holds anything but one file.
    """
    try:
        limits: Any = LOAD_LIMITS
        parameters: lt.add_torrent_params = lt.load_torrent_buffer(torrent, limits)
    except RuntimeError as error:
        raise HostileArchive(f"torrent {infohash[:12]}… is refused: {error}") from error
    assert parameters.ti is not None
    hashes = parameters.ti.info_hashes()
    found = str(hashes.v1 if len(infohash) == 40 else hashes.v2)
    if found != infohash:
        raise DigestMismatch(f"torrent has infohash {found[:12]}…, signed is {infohash[:12]}…")
    if parameters.ti.num_files() != 1:
        raise HostileArchive(f"torrent {infohash[:12]}… holds {parameters.ti.num_files()} files, expected is one")
    parameters.trackers, parameters.tracker_tiers = [], []
    parameters.url_seeds, parameters.http_seeds = [], []
    parameters.dht_nodes, parameters.peers = [], []
    return parameters


def _classes(session: lt.session, settings: SwarmSettings) -> lt.ip_filter:
    """Put every peer into the global class, whose limits are the session's; those of the own site into another."""
    everyone = 1 << int(session.global_peer_class_id)
    classes = lt.ip_filter()
    classes.add_rule("0.0.0.0", "255.255.255.255", everyone)
    classes.add_rule("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", everyone)
    local = networks(settings.local_networks)
    if local:
        site = session.create_peer_class("site")
        about = session.get_peer_class(site)
        about["upload_limit"], about["download_limit"] = (
            settings.local_upload_rate_bytes,
            settings.local_download_rate_bytes,
        )
        session.set_peer_class(site, about)
        for first, last in local:
            classes.add_rule(first, last, 1 << int(site))
    return classes
