"""The picture of benchmarks/results/servers.md."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from training.bench.picture import GRID, INK, MUTED, STYLE

PAPER = "#f4f4f4"  # background of what is simulated without a real model
SYNCHRONOUS, STRONG, MIDDLE, WEAK, DENSE = "#1f5fa8", "#c0392b", "#b8860b", "#7d3c98", "#2e7d32"
PROJECTED = {  # kind -> label, color, line
    "hybrid": ("hybrid, B rows each", SYNCHRONOUS, "-"),
    "hybrid, B of all": ("hybrid, B rows together", SYNCHRONOUS, ":"),
    "2W - 1, dense 8": ("2W - 1, dense every 8", DENSE, "-"),
    "2W - 1": ("2W - 1, dense every 1", STRONG, "-"),
    "W - 1": ("W - 1, dense every 1", MIDDLE, "-"),
    "staleness 0": ("staleness 0", MUTED, "-"),
}
LINES = (SYNCHRONOUS, MIDDLE, STRONG, WEAK, DENSE)  # of the trainings with a slow worker


def write_picture(path: Path, num_machines: Sequence[int], results: dict[str, Any]) -> None:
    """Write the picture.

    Args:
        path: A PNG file.
        num_machines: Numbers of machines of the projection.
        results: What each part of benchmarks/servers_simulation.py has returned.
    """
    with mpl.rc_context(mpl.rcParamsDefault | STYLE):
        figure = Figure(figsize=(12.5, 4.6), layout="constrained")
        speed, slow, stale = figure.subplots(1, 3)
        *_, projected = results["projection"].items()
        _draw_projection(speed, num_machines, *projected)
        _draw_slow(slow, results["slow"])
        _draw_staleness(stale, results["staleness"])
        figure.savefig(path, dpi=150, metadata={"Software": None})


def _draw_projection(
    axes: Axes, num_machines: Sequence[int], speed: str, rows_s: dict[str, list[float]]
) -> None:
    axes.set_facecolor(PAPER)
    for kind, (label, color, line) in PROJECTED.items():
        thousands = [value / 1e3 for value in rows_s[kind]]
        axes.plot(num_machines, thousands, line, color=color, label=label, marker="o", markersize=3)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(num_machines, [f"{n}" for n in num_machines])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_title(
        f"PROJECTED, not run: thousand rows/s\nof machines of {speed} cores, B = 2,048",
        loc="left",
        fontsize=10,
    )
    axes.set_xlabel("machines, each a worker and a server")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * 8)  # room for the legend
    axes.legend(frameon=False, loc="upper left", fontsize=7.5)
    _finish(axes)


def _draw_slow(axes: Axes, curves: dict[str, list[dict[str, Any]]]) -> None:
    for color, (name, of_seeds) in zip(LINES, curves.items(), strict=True):
        times_s = of_seeds[0]["times_s"]
        loglosses = np.mean([one["loglosses"] for one in of_seeds], axis=0)
        rows_s = mean(one["rows_s"] for one in of_seeds)
        label = f"{name}, {rows_s / 1e3:,.0f}"
        axes.plot(times_s, loglosses, color=color, linewidth=1.5, label=label)
        for one in of_seeds:
            axes.plot(times_s[-1], one["loglosses"][-1], "o", color=color, markersize=2.5)
    axes.set_title(
        "SIMULATED time, real model: validation logloss\nwith one of four workers 3 times slower",
        loc="left",
        fontsize=10,
    )
    axes.set_xlabel("simulated seconds, until the fastest has ended its epoch")
    axes.legend(
        frameon=False,
        loc="upper right",
        fontsize=7.5,
        title="training, thousand rows/s",
        title_fontsize=7.5,
    )
    _finish(axes)


def _draw_staleness(axes: Axes, differences: dict[str, list[float]]) -> None:
    labels = []
    for place, (name, of_seeds) in enumerate(differences.items()):
        color = DENSE if name.endswith("every 8") else STRONG
        axes.plot(
            np.linspace(place - 0.12, place + 0.12, len(of_seeds)),
            of_seeds,
            "o",
            color=color,
            markersize=4,
        )
        axes.hlines(mean(of_seeds), place - 0.3, place + 0.3, color=color, linewidth=1.5)
        labels.append(name.replace(", ", "\n"))
    axes.axhline(0, color=MUTED, linewidth=0.9, linestyle=":")
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlim(-0.6, len(labels) - 0.4)
    axes.set_title(
        "SIMULATED schedule, real model: logloss after\nan epoch minus synchronous, same seed",
        loc="left",
        fontsize=10,
    )
    _finish(axes)


def _finish(axes: Axes) -> None:
    axes.grid(color=GRID, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.title.set_color(INK)
