"""The picture of a distribution: bytes over time, by the server and by the swarm.  Needs matplotlib, an extra."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobagent.errors import SiteError, UsageError

MARGIN = 0.1  # of the time until the last byte
RATE_POINTS = 60
MIN_WINDOW_S = 0.5


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
        return samples_of(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is no run with samples: {error!r}") from error


def samples_of(document: Any) -> list[Sample]:
    """Read the samples of a run; raises ValueError, KeyError or TypeError where it has none."""
    return [Sample(float(s["time_s"]), int(s["server_bytes"]), int(s["received_bytes"])) for s in document["samples"]]


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
    samples = _until_the_end(samples)
    start = samples[0].time_s
    times = [s.time_s - start for s in samples]
    server = [s.server_bytes / 1e6 for s in samples]
    everything = [max(s.received_bytes, s.server_bytes) / 1e6 for s in samples]
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    total, rate = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    total.fill_between(times, everything, server, color="#1a7f8c", alpha=0.35, lw=0, label="from neighbours")
    total.fill_between(times, server, color="#c2571a", alpha=0.8, lw=0, label="from the server")
    total.set_ylabel("MB delivered")
    figure.suptitle(title, x=0.01, ha="left", fontsize="medium")
    window_s = max(MIN_WINDOW_S, times[-1] / RATE_POINTS)
    rate.plot(*_rates(times, everything, window_s), color="#1a7f8c", label="to all clients")
    rate.plot(*_rates(times, server, window_s), color="#c2571a", label="from the server")
    rate.set_xlabel("seconds")
    rate.set_ylabel("MB/s")
    for axes in (total, rate):
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, fontsize="small")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(bottom=0)
        axes.margins(x=0)
    figure.savefig(path, format="png", dpi=130)


def _until_the_end(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Leave out what comes after the last byte, but for a little: it would press the rest together."""
    last = samples[-1]
    end = next(
        i
        for i, s in enumerate(samples)
        if (s.server_bytes, s.received_bytes) == (last.server_bytes, last.received_bytes)
    )
    end_s = samples[end].time_s + MARGIN * (samples[end].time_s - samples[0].time_s)
    return [s for s in samples if s.time_s <= end_s] if end else samples


def _rates(times: Sequence[float], values: Sequence[float], window_s: float) -> tuple[list[float], list[float]]:
    """Return the middles of windows and the mean rates in them."""
    middles, rates, first = [], [], 0
    for i, now in enumerate(times):
        if now - times[first] >= window_s or (i == len(times) - 1 and i > first):
            middles.append((times[first] + now) / 2)
            rates.append(max(0.0, (values[i] - values[first]) / max(now - times[first], 1e-9)))
            first = i
    return middles, rates
