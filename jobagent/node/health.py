"""Whether this node should get jobs with packages: failures in a row close it for a while, so that no node becomes
a black hole that eats a queue of jobs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from jobagent.errors import JobAgentError, SiteError, SupplyError

LONGEST_PAUSE_S = 3600.0


class Health:
    """Counts failures that are not the job's fault.  After a pause the next job is a trial."""

    def __init__(
        self, *, failures_before_pause: int, pause_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._allowed = max(1, failures_before_pause)
        self._pause_s = pause_s
        self._clock = clock
        self._guard = threading.Lock()
        self._failures = 0
        self._reason = ""
        self._paused_until_s = float("-inf")

    def succeeded(self) -> None:
        """Note a job that got its packages: all is well again."""
        with self._guard:
            self._failures, self._reason, self._paused_until_s = 0, "", float("-inf")

    def failed(self, error: JobAgentError) -> None:
        """Note a failure; those of jobs (unknown package, conflict) and of trust do not count against the node."""
        if not isinstance(error, SiteError | SupplyError):
            return
        with self._guard:
            self._failures += 1
            self._reason = str(error)
            beyond = self._failures - self._allowed
            if beyond >= 0:
                pause_s = min(self._pause_s * 2 ** min(beyond, 16), LONGEST_PAUSE_S)
                self._paused_until_s = self._clock() + pause_s

    @property
    def failures(self) -> int:
        """Failures in a row."""
        return self._failures

    @property
    def reason(self) -> str:
        """Why the node is not ready; empty where it is."""
        with self._guard:
            left_s = self._paused_until_s - self._clock()
            return f"{self._failures} failures in a row, pausing {left_s:.0f} s: {self._reason}" if left_s > 0 else ""
