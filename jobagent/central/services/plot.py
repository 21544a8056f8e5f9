"""The picture of a distribution: bytes over time, by the server and by the swarm.  Needs matplotlib, an extra."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from jobagent.errors import SiteError, UsageError


@dataclass(frozen=True, slots=True)
class Sample:
    """Totals at one time: what the server sent, and what all clients received from whomever."""

    time_s: float
    server_bytes: int
    received_bytes: int


def write_samples(samples: Sequence[Sample], path: Path) -> None:
    """Write a run as `read_samples` reads it."""
    path.write_text(json.dumps({"samples": [asdict(s) for s in samples]}) + "\n", encoding="utf-8")


def read_samples(path: Path) -> list[Sample]:
    """Read a run: an object with `samples`, as benchmarks and `jobagent swarm status --record` write.

    Raises:
        UsageError: It is not that.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return [
            Sample(float(s["time_s"]), int(s["server_bytes"]), int(s["received_bytes"])) for s in document["samples"]
        ]
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is no run with samples: {error!r}") from error


def plot_traffic(
    samples: Sequence[Sample], path: Path, *, title: str = "Distribution of software by torrent"
) -> None:
    """Draw bytes over time, and rates below, into a PNG.

    Raises:
        UsageError: There is nothing to draw.
        SiteError: matplotlib is not installed.
    """
    if len(samples) < 2:
        raise UsageError("a picture needs two samples")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SiteError("matplotlib is not installed", remedy="pip install 'jobagent[plot]'") from error
    start = samples[0].time_s
    times = [s.time_s - start for s in samples]
    server = [s.server_bytes / 1e6 for s in samples]
    everything = [max(s.received_bytes, s.server_bytes) / 1e6 for s in samples]
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    total, rate = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    total.fill_between(times, everything, server, color="#1a7f8c", alpha=0.35, lw=0, label="from neighbours")
    total.fill_between(times, server, color="#c2571a", alpha=0.8, lw=0, label="from the server")
    total.set_ylabel("MB delivered")
    total.set_title(title, loc="left", fontsize="medium")
    total.legend(loc="upper left", frameon=False)
    rate.plot(times[1:], _rates(times, everything), color="#1a7f8c", label="all clients")
    rate.plot(times[1:], _rates(times, server), color="#c2571a", label="server")
    rate.set_xlabel("s")
    rate.set_ylabel("MB/s")
    for axes in (total, rate):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(bottom=0)
        axes.margins(x=0)
    figure.savefig(path, format="png", dpi=130)


def _rates(times: Sequence[float], values: Sequence[float]) -> list[float]:
    pairs = zip(zip(times, values, strict=True), zip(times[1:], values[1:], strict=True), strict=False)
    return [max(0.0, (v1 - v0) / max(t1 - t0, 1e-9)) for (t0, v0), (t1, v1) in pairs]
