"""Leases: records on disk that end with their holder, although nobody releases them.

A record names the holder's pid and start time, the boot and the pid namespace in which they mean something, and the
session (a lock file) of the agent that wrote it.  Whether a lease is live follows from the record and the machine
alone, so every agent judges alike, and a node service that is killed and restarted loses none: `docs/adr/leases.md`.
Records are written under the shared lock of their key and removed under any lock, or by their owner; who evicts
holds the exclusive lock and so sees all of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields

from jobagent.plugin import Holder, processes
from jobagent_sharedcache import locks
from jobagent_sharedcache.layout import Layout, is_key

_MAX_RECORD_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """One lease as it is on disk.  `is_own` tells that the holder is the agent itself."""

    id: str
    key: str
    pid: int
    start_ticks: int
    boot: str
    pid_namespace: int
    host: str
    uid: int
    job_id: str
    session: str
    is_own: bool
    created_s: float

    @property
    def holder(self) -> Holder:
        """Whose lease it is."""
        return Holder(self.pid, self.start_ticks, self.job_id, self.uid)


@dataclass(frozen=True, slots=True)
class Place:
    """Where and when a lease is judged."""

    boot: str
    pid_namespace: int
    host: str
    now_s: float
    max_age_s: float
    is_network_disk: bool = False


def is_live(
    record: LeaseRecord,
    place: Place,
    *,
    is_session_held: Callable[[str], bool],
    is_running: Callable[[int, int], bool] = processes.is_running,
) -> bool:
    """Decide whether a lease still counts.

    A pid is believed only within its own boot and pid namespace and with its start time; an agent's lease for itself
    goes by its session's lock; what cannot be looked at lives as long as its session, or `max_age_s`.
    """
    is_young = abs(place.now_s - record.created_s) < place.max_age_s  # a clock that went back makes nothing immortal
    if record.boot != place.boot:
        is_other_host = place.is_network_disk and record.host != place.host
        return is_other_host and is_young
    if record.is_own:
        return is_session_held(record.session)
    if record.pid and record.pid_namespace == place.pid_namespace:
        return is_running(record.pid, record.start_ticks)
    return is_session_held(record.session) or is_young


class Leases:
    """Reads and writes the records of one cache."""

    def __init__(self, layout: Layout, *, max_age_s: float, is_network_disk: bool = False) -> None:
        self._layout = layout
        self._max_age_s = max_age_s
        self._is_network_disk = is_network_disk
        self._boot = processes.boot_id()
        self._pid_namespace = processes.pid_namespace()
        self._host = os.uname().nodename
        self._session = os.urandom(8).hex()
        self._descriptor = -1
        self._guard = threading.Lock()

    @property
    def boot(self) -> str:
        """The boot that we are in."""
        return self._boot

    def write(self, key: str, holder: Holder) -> LeaseRecord:
        """Record a lease; the caller holds the lock of `key`, shared or exclusive."""
        self._open_session()
        is_own = holder.pid == os.getpid() and holder.start_ticks == processes.start_ticks(holder.pid)
        record = LeaseRecord(
            id=os.urandom(12).hex(),
            key=key,
            pid=holder.pid,
            start_ticks=holder.start_ticks,
            boot=self._boot,
            pid_namespace=self._pid_namespace,
            host=self._host,
            uid=holder.uid,
            job_id=holder.job_id,
            session=self._session,
            is_own=is_own,
            created_s=time.time(),
        )
        directory = self._layout.leases(key)
        directory.mkdir(exist_ok=True)
        # No fsync: after a power loss the boot is another and the lease has ended anyway.
        temporary = directory / f".{record.id}"
        try:
            temporary.write_text(json.dumps(asdict(record)), encoding="utf-8")
            os.rename(temporary, directory / record.id)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return record

    def remove(self, key: str, lease_id: str) -> bool:
        """End a lease; False where it had ended."""
        if not is_key(key) or not lease_id.isalnum():
            return False
        try:
            (self._layout.leases(key) / lease_id).unlink()
        except FileNotFoundError:
            return False
        return True

    def live(self, key: str) -> list[LeaseRecord]:
        """Return the leases of `key` that count."""
        return [record for record, counts in self._judged(key) if counts]

    def reap(self, key: str) -> int:
        """Remove records that no longer count; the caller holds the exclusive lock of `key`."""
        reaped = 0
        for record, counts in self._judged(key):
            reaped += not counts and self.remove(key, record.id)
        directory = self._layout.leases(key)
        with contextlib.suppress(FileNotFoundError):
            for left in directory.glob(".*"):  # no writer is at work under the exclusive lock
                left.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            directory.rmdir()
        return reaped

    def sweep_sessions(self) -> None:
        """Remove the lock files of agents that have ended."""
        for path in self._layout.sessions.iterdir():
            if path.name != self._session:
                locks.unlink_if_free(path)

    def close(self) -> None:
        """End the session: leases that this agent took for itself end, those of other processes stay."""
        with self._guard:
            if self._descriptor >= 0:
                with contextlib.suppress(OSError):  # the next sweep removes it
                    (self._layout.sessions / self._session).unlink(missing_ok=True)
                os.close(self._descriptor)
                self._descriptor = -1

    def _open_session(self) -> None:
        with self._guard:
            if self._descriptor < 0:
                self._descriptor = locks.open_held(self._layout.sessions / self._session)

    def _judged(self, key: str) -> Iterator[tuple[LeaseRecord, bool]]:
        place = Place(
            self._boot, self._pid_namespace, self._host, time.time(), self._max_age_s, self._is_network_disk
        )
        for record in self._records(key):
            yield record, is_live(record, place, is_session_held=self._is_session_held)

    def _is_session_held(self, session: str) -> bool:
        return session.isalnum() and locks.is_exclusively_held(self._layout.sessions / session)

    def _records(self, key: str) -> list[LeaseRecord]:
        try:
            names = os.listdir(self._layout.leases(key))
        except FileNotFoundError:
            return []
        found = []
        for name in names:
            if name.isalnum():
                with contextlib.suppress(FileNotFoundError):
                    found.append(_decode((self._layout.leases(key) / name).read_bytes(), key, name))
        return found


def _decode(data: bytes, key: str, name: str) -> LeaseRecord:
    """Return the record, whatever a later agent wrote more; one that cannot be read was never handed out."""
    try:
        written = json.loads(data[:_MAX_RECORD_BYTES])
        record = LeaseRecord(**{f.name: written[f.name] for f in fields(LeaseRecord)})
        if record.id == name and record.key == key:
            return record
    except (ValueError, TypeError, KeyError):
        pass
    return LeaseRecord(name, key, 0, 0, "", 0, "", -1, "", "", False, 0.0)
