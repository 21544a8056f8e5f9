"""A catalogue that is refreshed in the background, so that no job waits for it.

Wraps the real one; what it hands out is as verified, and at most one interval old.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from jobagent.contracts import Catalogue, Freshness
from jobagent.errors import JobAgentError
from jobagent.model import Archive, Blob, Package

log = logging.getLogger("jobagent.node")

FORCED_INTERVAL_S = 2.0


class CurrentCatalogue:
    """A `Catalogue` for the node service.

    `refresh` asks the network only where the last refresh is older than twice the interval (the background is late
    or was never right); its errors are those of the wrapped catalogue.  Answers are kept until metadata change.
    """

    def __init__(
        self, catalogue: Catalogue, interval_s: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._catalogue = catalogue
        self._interval_s = interval_s
        self._clock = clock
        self._guard = threading.Lock()
        self._refreshing = threading.Lock()
        self._freshness: Freshness | None = None
        self._refreshed_s = float("-inf")
        self._versions: dict[tuple[str, str], Sequence[Package]] = {}

    @property
    def freshness(self) -> Freshness | None:
        """What the last successful refresh said."""
        return self._freshness

    def refresh(self, *, is_forced: bool = False) -> Freshness:
        """Return the freshness, asking the wrapped catalogue where the background is late or `is_forced`.

        Jobs that ask for packages that do not exist force at most one request in `FORCED_INTERVAL_S`.
        """
        enough_s = FORCED_INTERVAL_S if is_forced else 2 * self._interval_s
        with self._guard:
            known, age_s = self._freshness, self._clock() - self._refreshed_s
        if known is not None and age_s < enough_s and time.time() < known.expires_s:
            return known
        return self.renew()

    def renew(self) -> Freshness:
        """Ask the wrapped catalogue now; concurrent callers share one request."""
        asked_s = self._clock()
        with self._refreshing:
            with self._guard:
                if self._freshness is not None and self._refreshed_s > asked_s:
                    return self._freshness
            freshness = self._catalogue.refresh(is_forced=True)
            with self._guard:
                if self._freshness is None or freshness.version != self._freshness.version:
                    self._versions.clear()
                self._freshness = freshness
                self._refreshed_s = self._clock()
            return freshness

    def namespaces(self) -> Sequence[str]:
        """As the wrapped one."""
        return self._catalogue.namespaces()

    def names(self, namespace: str) -> Sequence[str]:
        """As the wrapped one."""
        return self._catalogue.names(namespace)

    def versions(self, namespace: str, name: str) -> Sequence[Package]:
        """As the wrapped one, read once per version of the metadata."""
        with self._guard:
            known, freshness = self._versions.get((namespace, name)), self._freshness
        if known is not None:
            return known
        found = self._catalogue.versions(namespace, name)
        with self._guard:
            if self._freshness is freshness:
                self._versions[(namespace, name)] = found
        return found

    def torrent(self, archive: Archive) -> bytes:
        """As the wrapped one."""
        return self._catalogue.torrent(archive)

    def blob(self, blob: Blob) -> bytes:
        """As the wrapped one."""
        return self._catalogue.blob(blob)

    def urls(self, package: Package) -> Sequence[str]:
        """As the wrapped one."""
        return self._catalogue.urls(package)


class Refresher:
    """The background: one thread that renews the catalogue every interval; calls `changed` where it is another."""

    def __init__(self, catalogue: CurrentCatalogue, interval_s: float, changed: Callable[[], None]) -> None:
        self._catalogue = catalogue
        self._interval_s = interval_s
        self._changed = changed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="refresher", daemon=True)

    def start(self) -> None:
        """Begin; the first refresh comes at once."""
        self._thread.start()

    def close(self, *, timeout_s: float = 5.0) -> None:
        """End; a refresh that hangs is left behind in its daemon thread."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        version = -1
        while True:
            try:
                before, version = version, self._catalogue.renew().version
                if version != before:
                    self._changed()
            except JobAgentError as error:
                log.warning("catalogue: %s", error)
            if self._stop.wait(self._interval_s):
                return
