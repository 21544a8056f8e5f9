"""The traffic picture: bytes over time, from the server and in the whole swarm.

matplotlib is an optional dependency (`pip install jobagent[plot]`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jobagent.errors import SiteError, UsageError

_WINDOW = 3  # samples of the sliding mean of rates: polling jitters


@dataclass(frozen=True, slots=True)
class Sample:
    """Totals since the start, at `time_s` seconds after it."""

    time_s: float
    server_bytes: int
    swarm_bytes: int


def plot_traffic(samples: Sequence[Sample], path: Path, *, title: str = "Traffic") -> None:
    """Draw rates and totals of server and swarm into a PNG.

    Raises:
        UsageError: There are fewer than two samples.
        SiteError: matplotlib is not installed, or `path` cannot be written.
    """
    if len(samples) < 2:
        raise UsageError("a traffic picture needs at least two samples")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SiteError("matplotlib is not installed", remedy="pip install 'jobagent[plot]'") from error
    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    rates, totals = figure.subplots(2, 1, sharex=True)
    times = [s.time_s for s in samples]
    for name, colour, values in (
        ("all nodes received", "tab:blue", [s.swarm_bytes for s in samples]),
        ("server sent", "tab:red", [s.server_bytes for s in samples]),
    ):
        rates.fill_between(times, _rates(times, values), alpha=0.3, color=colour)
        rates.plot(times, _rates(times, values), color=colour, label=name)
        totals.plot(times, [v / 1e6 for v in values], color=colour, label=f"{name}: {values[-1] / 1e6:.0f} MB")
    rates.set_ylabel("MB/s")
    rates.set_title(title)
    totals.set_ylabel("MB in total")
    totals.set_xlabel("seconds")
    for axes in (rates, totals):
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left")
        axes.set_ylim(bottom=0)
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise SiteError(f"cannot write {path}: {error.strerror}") from error


def _rates(times: Sequence[float], values: Sequence[int]) -> list[float]:
    """MB/s at each sample, as a mean over the last samples."""
    rates = [0.0]
    for i in range(1, len(values)):
        first = max(0, i - _WINDOW)
        rates.append((values[i] - values[first]) / 1e6 / max(1e-9, times[i] - times[first]))
    return rates
