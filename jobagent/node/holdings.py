"""What jobs hold: groups of leases, each tied to a process, given back when it ends however it ends."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from jobagent.contracts import Holder, Lease
from jobagent.node.watcher import Watcher

log = logging.getLogger("jobagent.node")


@dataclass(frozen=True, slots=True)
class Holding:
    """The leases of one job.  A holder with pid 0 is nobody: it is released by name."""

    id: str
    holder: Holder
    leases: tuple[Lease, ...]
    since_s: float


class Holdings:
    """All holdings of a node service.  Thread-safe."""

    def __init__(self, watcher: Watcher, give_back: Callable[[Sequence[Lease]], None]) -> None:
        self._watcher = watcher
        self._give_back = give_back
        self._guard = threading.Lock()
        self._held: dict[str, Holding] = {}
        self._handles: dict[str, int] = {}
        self._last_change_s = time.monotonic()

    def add(self, holder: Holder, leases: Iterable[Lease]) -> Holding | None:
        """Hold leases until `release` or the holder's end; None where it has ended already: they are given back."""
        holding = Holding(secrets.token_hex(16), holder, tuple(leases), time.time())
        with self._guard:
            self._held[holding.id] = holding
            self._last_change_s = time.monotonic()
        if holder.pid == 0:
            return holding
        handle = self._watcher.process(holder.pid, holder.start_ticks, lambda: self._ended(holding))
        if handle is None:
            self.release(holding.id)
            return None
        with self._guard:
            if holding.id in self._held:
                self._handles[holding.id] = handle
        return holding

    def adopt(self, leases: Iterable[Lease]) -> int:
        """Watch leases that an earlier service gave; return the number of their holders."""
        groups: dict[Holder, list[Lease]] = {}
        for lease in leases:
            groups.setdefault(lease.holder, []).append(lease)
        return sum(self.add(holder, group) is not None for holder, group in groups.items())

    def find(self, holding_id: str) -> Holding | None:
        """Return a holding by its name, or by the job's where exactly one has it."""
        with self._guard:
            if holding_id in self._held:
                return self._held[holding_id]
            named = [h for h in self._held.values() if h.holder.job_id == holding_id]
        return named[0] if len(named) == 1 else None

    def release(self, holding_id: str) -> int:
        """Give all leases of a holding back; return their number, 0 where it is gone already."""
        with self._guard:
            holding = self._held.pop(holding_id, None)
            handle = self._handles.pop(holding_id, None)
            self._last_change_s = time.monotonic()
        if handle is not None:
            self._watcher.forget(handle)
        if holding is None:
            return 0
        self._give_back(holding.leases)
        return len(holding.leases)

    def all(self) -> list[Holding]:
        """What is held now."""
        with self._guard:
            return list(self._held.values())

    def idle_s(self) -> float:
        """Seconds since the last holding ended; 0 while there is one."""
        with self._guard:
            return 0.0 if self._held else time.monotonic() - self._last_change_s

    def _ended(self, holding: Holding) -> None:
        with self._guard:
            self._handles.pop(holding.id, None)  # the watcher has dropped it
        log.info("holder %d of job %s ended", holding.holder.pid, holding.holder.job_id)
        self.release(holding.id)
