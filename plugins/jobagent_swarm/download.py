"""One download as seen through its alerts, and the rules for giving up.  No I/O, no clock of its own.

`Download` is fed by the session's thread and watched by the thread that fetches; `Patience` is fed facts.
"""

from __future__ import annotations

import errno
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import libtorrent as lt

from jobagent.plugin import DiskFull, JobAgentError, ScratchUnusable, Traffic
from jobagent_swarm.options import Role
from jobagent_swarm.settings import SwarmSettings

BLOCK_BYTES = 16384
RENAME_TIMEOUT_S = 5.0
_SEEDER_PREFIX = Role.SEEDER.fingerprint[:3].encode().hex()  # "-JS", whatever its version
_WEB = "web"  # in place of a peer id, which libtorrent invents for web servers
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Download:
    """What happened so far.  Thread-safe: `on_alert` in the session's thread, the rest anywhere."""

    def __init__(self, size_bytes: int, piece_size: int, file_name: str) -> None:
        self._size = size_bytes
        self._piece_size = piece_size
        self._file_name = file_name
        self._changed = threading.Condition()
        self._received: dict[str, int] = {}
        self._trackers: dict[str, str] = {}
        self._web_servers: frozenset[tuple[str, int]] = frozenset()
        self._web_limit = math.inf
        self._on_web_limit: Callable[[], None] = lambda: None
        self._failure: JobAgentError | None = None
        self._is_flushing = self._is_renamed = False
        self.is_checked = False
        self.is_flushed = False
        self.banned_peers: list[str] = []
        self.failed_pieces = 0

    def on_alert(self, alert: lt.alert) -> None:
        """Take one alert; block alerts come by the ten thousands and are first."""
        if isinstance(alert, lt.block_finished_alert):
            peer = _WEB if self._web_servers and alert.ip in self._web_servers else str(alert.pid)
            offset = alert.piece_index * self._piece_size + alert.block_index * BLOCK_BYTES
            length = min(BLOCK_BYTES, self._size - offset)
            received = self._received[peer] = self._received.get(peer, 0) + length
            if peer == _WEB and received >= self._web_limit:
                self._web_limit, on_limit = math.inf, self._on_web_limit
                on_limit()
        elif isinstance(alert, lt.block_downloading_alert | lt.piece_finished_alert):
            return
        else:
            with self._changed:
                self._on_rare_alert(alert)
                self._changed.notify_all()

    def _on_rare_alert(self, alert: lt.alert) -> None:
        if isinstance(alert, lt.torrent_checked_alert):
            self.is_checked = True
        elif isinstance(alert, lt.torrent_finished_alert):
            # finished comes before the data is on disk: only a flush that was asked for now counts
            self._is_flushing = True
            alert.handle.flush_cache()
        elif isinstance(alert, lt.cache_flushed_alert):
            self.is_flushed = self.is_flushed or self._is_flushing
        elif isinstance(alert, lt.file_renamed_alert):
            self._is_renamed = True
        elif isinstance(alert, lt.file_error_alert):
            self._failure = self._disk_error(alert)
        elif isinstance(alert, lt.torrent_error_alert):
            self._failure = ScratchUnusable(f"download of {self._file_name} failed: {alert.message()}")
        elif isinstance(alert, lt.peer_ban_alert):
            self.banned_peers.append(str(alert.ip[0]))
        elif isinstance(alert, lt.hash_failed_alert):
            self.failed_pieces += 1
        elif isinstance(alert, lt.tracker_reply_alert):
            self._trackers[alert.url] = ""
        elif isinstance(alert, lt.tracker_error_alert):
            reason = alert.failure_reason() or alert.error.message()
            self._trackers[alert.url] = reason

    def _disk_error(self, alert: lt.file_error_alert) -> JobAgentError:
        where = f"{self._file_name}: {alert.error.message()} while it was downloaded"
        if alert.error.value() in _NO_ROOM:
            return DiskFull(f"no room for {where}", remedy="free space or quota, or set [site] scratch")
        return ScratchUnusable(f"cannot write {where}", remedy="check [site] scratch")

    def account_as_web(self, endpoints: frozenset[tuple[str, int]]) -> None:
        """Account what comes from these addresses and ports as from the web."""
        self._web_servers = endpoints

    def limit_web(self, count: float, on_limit: Callable[[], None]) -> None:
        """Call `on_limit` once, in the session's thread and promptly, when so many bytes came from the web."""
        self._on_web_limit, self._web_limit = on_limit, count

    def wait(self, timeout_s: float) -> None:
        """Wait until something other than data arrived; returns at once where the download has ended."""
        with self._changed:
            if not self.is_flushed and self._failure is None:
                self._changed.wait(timeout_s)

    def wait_until_renamed(self) -> None:
        """Return when the file has its new name in the session; in vain for `RENAME_TIMEOUT_S` at most."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_renamed, RENAME_TIMEOUT_S)

    def raise_failure(self) -> None:
        """Raise DiskFull or ScratchUnusable where libtorrent could not write."""
        if self._failure is not None:
            raise self._failure

    def tracker_failures(self) -> Mapping[str, str]:
        """By URL, why each tracker that answered last with an error did so; an empty text is success."""
        with self._changed:
            return dict(self._trackers)

    def traffic(self) -> Traffic:
        """Payload bytes so far by origin."""
        received = list(self._received.items())
        seeder = sum(n for peer, n in received if peer.startswith(_SEEDER_PREFIX))
        web = sum(n for peer, n in received if peer == _WEB)
        return Traffic(seeder, sum(n for _, n in received) - seeder - web, web)


@dataclass(slots=True)
class Patience:
    """Decides when a download is hopeless.  All times are seconds of one monotonic clock.

    `start_s` is when the download could begin: after the check of a partial file.
    """

    settings: SwarmSettings
    start_s: float
    done_bytes: int = 0
    _progress_s: float = field(init=False)
    _window_s: float = field(init=False)
    _window_bytes: int = field(init=False)
    _had_peer: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._progress_s = self._window_s = self.start_s
        self._window_bytes = self.done_bytes

    def idle_s(self, now_s: float) -> float:
        """Seconds since the last progress."""
        return now_s - self._progress_s

    def verdict(self, now_s: float, done_bytes: int, peers: int) -> str | None:
        """Return why to give up, or None."""
        site = self.settings
        self._had_peer = self._had_peer or peers > 0
        if done_bytes > self.done_bytes:
            self._progress_s = now_s
        self.done_bytes = done_bytes
        if now_s - self._window_s >= site.rate_window_s:
            rate = (done_bytes - self._window_bytes) / (now_s - self._window_s)
            self._window_s, self._window_bytes = now_s, done_bytes
            if rate < site.minimum_rate_bytes:
                return f"{rate:.0f} bytes/s over {site.rate_window_s:.0f} s, the minimum is {site.minimum_rate_bytes}"
        if not self._had_peer and self.idle_s(now_s) >= site.no_peer_timeout_s:
            return f"no peer within {site.no_peer_timeout_s:.0f} s"
        if self.idle_s(now_s) >= site.stall_timeout_s:
            return f"no progress for {site.stall_timeout_s:.0f} s with {peers} peers"
        return None
