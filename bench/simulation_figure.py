"""The picture of `bench.simulate`: what central server and clients see as a grid grows.  Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SWARM, SERVER, MEASURED = "#1a7f8c", "#c2571a", "#333333"


def draw(figures: dict[str, Any], path: Path) -> None:
    """Draw copies and seconds over the number of nodes, simulated as lines, measured as points."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    grids = [g for g in figures["simulated"] if g["elected"] == 1 and g["sites"] and g["arrivals_s"] == 60.0]
    nodes = [g["clients"] for g in grids]
    mpl.rcParams["svg.hashsalt"] = "simulate"  # the same figures give the same file
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(nodes, nodes, color=SERVER, label="one server (every node from it)")
    left.plot(nodes, [g["intersite_gb"] / g["package_bytes"] * 1e9 for g in grids], "--", color=SWARM, marker="o",
              label="across the wide area, simulated")  # fmt: skip
    left.plot(nodes, [g["copies"] for g in grids], color=SWARM, marker="o", label="central server, simulated")
    points = [(c["run"], c["measured"]["copies"]) for c in figures["checks"]]
    left.plot([int(name.split()[0]) for name, _ in points], [copies for _, copies in points], "x", color=MEASURED,
              label="central server, measured")  # fmt: skip
    left.set_ylabel("copies of the package")
    right.plot(nodes, [g["one_server_s"] for g in grids], color=SERVER, label="one server")
    for name, label, style in (("last_s", "last", "-"), ("p999_s", "p99.9", ":"), ("median_s", "median", "--")):
        right.plot(nodes, [g[name] for g in grids], style, color=SWARM, marker="o", label=f"{label} node, simulated")
    right.set_ylabel("seconds")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("nodes (500 a site)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize="small")
        axes.grid(alpha=0.2)
    figure.suptitle(
        "SIMULATED: 1 GB to grids of sites, arrivals within a minute", x=0.01, ha="left", fontsize="medium"
    )
    figure.savefig(path, metadata={"Date": None})
