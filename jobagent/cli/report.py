"""The report of one job as JSON: what `--json` writes and scripts read.  Keys are added, never changed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from jobagent import __version__
from jobagent.errors import JobAgentError
from jobagent.events import Event
from jobagent.job.prepare import Prepared
from jobagent.job.session import Result
from jobagent.model import Installed, Traffic

FORMAT = 1


class Timings:
    """Sums the seconds of every phase from the event stream."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.warnings: list[str] = []
        self.started_s = time.time()

    def __call__(self, event: Event) -> None:
        if event.name == "phase.ended":
            phase = str(event.fields["phase"])
            self.seconds[phase] = self.seconds.get(phase, 0.0) + float(event.fields["seconds"] or 0)
        elif event.name == "warning":
            self.warnings.append(str(event.fields["message"]))


def report(job_id: str, timings: Timings, *, result: Result | None, error: JobAgentError | None) -> dict[str, Any]:
    """Return the report of a job that ended with `result`, or with `error`."""
    document: dict[str, Any] = {
        "format": FORMAT,
        "jobagent": __version__,
        "job_id": job_id,
        "started_s": round(timings.started_s, 3),
        "seconds": {k: round(v, 4) for k, v in timings.seconds.items()},
        "warnings": timings.warnings,
        "error": None,
    }
    if error is not None:
        document["error"] = {"kind": error.kind, "message": str(error), "exit_code": error.exit_code}
    if result is not None:
        document |= prepared_report(result.prepared)
        document["payload"] = {
            "exit_code": result.outcome.exit_code,
            "signal": result.outcome.signal,
            "wall_s": round(result.outcome.wall_s, 4),
            "cpu_s": round(result.outcome.cpu_s, 4),
            "max_rss_bytes": result.outcome.max_rss_bytes,
            "outputs": list(result.outputs),
        }
        document["protection"] = result.protection
    return document


def prepared_report(prepared: Prepared) -> dict[str, Any]:
    """Return what is to say about the packages of a job."""
    return {
        "packages": [_package(item) for item in prepared.installed],
        "traffic": _traffic(prepared.traffic),
        "cache_hits": sum(item.is_cache_hit for item in prepared.installed),
        "catalogue_version": prepared.freshness.version if prepared.freshness else None,
        "prepare_s": round(prepared.seconds, 4),
    }


def _package(item: Installed) -> Mapping[str, Any]:
    return {
        "package": str(item.package.id),
        "platform": item.package.platform,
        "sha256": item.package.key,
        "size_bytes": item.package.archive.size_bytes,
        "cache_hit": item.is_cache_hit,
        "traffic": _traffic(item.traffic),
        "seconds": {k: round(v, 4) for k, v in item.seconds.items()},
    }


def _traffic(traffic: Traffic) -> Mapping[str, int]:
    return {
        "seeder_bytes": traffic.seeder_bytes,
        "neighbour_bytes": traffic.neighbour_bytes,
        "web_bytes": traffic.web_bytes,
    }
