"""What the central services say of themselves: numbers for the status page, for Prometheus, and for pictures.

Plain values only; sizes in bytes, times in seconds since the epoch.  Knows nothing of HTTP.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from jobagent.central.services.neighbours import Neighbourhood
from jobagent.central.services.plot import Sample
from jobagent.central.services.tracker import Counts, Tracker
from jobagent.central.services.watch import CatalogueWatch
from jobagent.model import Package

NOBODY = Counts(0, 0, 0)


class Seeding(Protocol):
    """A seeder as it is shown."""

    def seeded(self) -> Mapping[str, Package]:
        """What is offered now, by swarm."""

    def status(self) -> Mapping[str, float]:
        """Counters."""

    def sent(self) -> Mapping[str, int]:
        """Bytes that left, by swarm; cheap."""


class History:
    """Traffic since the start in a bounded number of samples: the longer it is, the further apart they are."""

    def __init__(self, *, interval_s: float = 2.0, most: int = 600) -> None:
        self.samples: list[Sample] = []
        self._interval_s = interval_s
        self._most = most

    def note(self, sample: Sample) -> None:
        """Keep a sample, unless the last is too near."""
        if self.samples and sample.time_s - self.samples[-1].time_s < self._interval_s:
            return
        self.samples.append(sample)
        if len(self.samples) > self._most:
            self.samples = self.samples[::2]
            self._interval_s *= 2


@dataclass(slots=True)
class Shown:
    """The services that are shown; None is what does not run.  One event loop owns it."""

    watch: CatalogueWatch
    tracker: Tracker | None = None
    seeder: Seeding | None = None
    neighbourhood: Neighbourhood = dataclasses.field(default_factory=lambda: Neighbourhood(clock=time.monotonic))
    http_bytes: int = 0
    archive_bytes: Counter[str] = dataclasses.field(default_factory=Counter)  # of these, by digest
    history: History = dataclasses.field(default_factory=History)
    clock: Callable[[], float] = time.time


def note(shown: Shown) -> None:
    """Take a sample for the history; cheap, and called at each announce: else there is nothing to draw."""
    sent = sum(shown.seeder.sent().values()) if shown.seeder else 0
    received = shown.tracker.received_bytes if shown.tracker else 0
    shown.history.note(Sample(shown.clock(), sent + shown.http_bytes, received))


def status(shown: Shown, seeder: Mapping[str, float]) -> dict[str, Any]:
    """Everything that the status page shows, and `jobagent swarm status`."""
    snapshot, tracker = shown.watch.snapshot(), shown.tracker
    return {
        "time_s": shown.clock(),
        "catalogue": {
            "is_verified": snapshot is not None,
            "version": snapshot.freshness.version if snapshot else 0,
            "expires_s": snapshot.freshness.expires_s if snapshot else 0,
            "error": shown.watch.last_error,
        },
        "packages": _packages(shown),
        "sites": tracker.sites() if tracker else {},
        "server": {
            "seeder": dict(seeder),
            "http_bytes": shown.http_bytes,
            "received_bytes": tracker.received_bytes if tracker else 0,
            "announces": tracker.announces if tracker else 0,
            "refusals": tracker.refusals if tracker else 0,
            "peers": tracker.peer_count if tracker else 0,
        },
    }


def _packages(shown: Shown) -> list[dict[str, Any]]:
    snapshot = shown.watch.snapshot()
    seeded = shown.seeder.seeded() if shown.seeder else {}
    sent = shown.seeder.sent() if shown.seeder else {}
    found = []
    for package, swarm in snapshot.listed() if snapshot else ():
        counts = shown.tracker.counts(swarm) if shown.tracker else NOBODY
        found.append(
            {
                "package": str(package.id),
                "platform": package.platform,
                "state": str(package.state),
                "description": package.description,
                "published_s": package.published_s,
                "sha256": package.key,
                "size_bytes": package.archive.size_bytes,
                "infohash_v2": package.archive.infohash_v2,
                "is_seeded": swarm in seeded,
                "complete": counts.complete,
                "incomplete": counts.incomplete,
                "downloaded": counts.downloaded,
                "transferred_bytes": counts.transferred_bytes,
                "sent_bytes": sent.get(swarm, 0) + shown.archive_bytes[package.key],
                "sites": dict(counts.by_site),
            }
        )
    return found


def metrics(shown: Shown, seeder: Mapping[str, float]) -> str:
    """The numbers of `status` in Prometheus' text format."""
    lines: list[str] = []

    def family(name: str, kind: str, samples: Mapping[str, float]) -> None:
        lines.append(f"# TYPE jobagent_{name} {kind}")
        lines.extend(f"jobagent_{name}{labels} {value:.17g}" for labels, value in samples.items())

    tracker, snapshot = shown.tracker, shown.watch.snapshot()
    family("catalogue_expires_seconds", "gauge", {"": snapshot.freshness.expires_s if snapshot else 0})
    family("http_sent_bytes_total", "counter", {"": shown.http_bytes})
    if seeder:
        family("seeder_sent_bytes_total", "counter", {"": seeder["upload_bytes"]})
        family("seeder_peers", "gauge", {"": seeder["peers"]})
        family("seeder_packages", "gauge", {"": seeder["seeding"]})
    if tracker is not None:
        family("tracker_announces_total", "counter", {"": tracker.announces})
        family("tracker_refusals_total", "counter", {"": tracker.refusals})
        family("tracker_peers", "gauge", {"": tracker.peer_count})
        family("peers_received_bytes_total", "counter", {"": tracker.received_bytes})
        packages = {
            _labels(package=p["package"], platform=p["platform"], digest=p["sha256"][:12]): p
            for p in _packages(shown)
        }
        for name, kind, key in (
            ("swarm_complete", "gauge", "complete"),
            ("swarm_incomplete", "gauge", "incomplete"),
            ("swarm_completions_total", "counter", "downloaded"),
            ("swarm_received_bytes_total", "counter", "transferred_bytes"),
            ("swarm_sent_bytes_total", "counter", "sent_bytes"),
            ("swarm_package_bytes", "gauge", "size_bytes"),
        ):
            family(name, kind, {labels: p[key] for labels, p in packages.items()})
        sites = {_labels(site=name): numbers for name, numbers in tracker.sites().items()}
        for name, kind in (("complete", "gauge"), ("incomplete", "gauge"), ("received_bytes", "counter")):
            suffix = "_total" if kind == "counter" else ""
            family(f"site_{name}{suffix}", kind, {labels: numbers[name] for labels, numbers in sites.items()})
    return "\n".join(lines) + "\n"


def _labels(**labels: str) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
