"""The picture of docs/scaling.md: the measured part on the left, the projection on the right."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullLocator
from traffic.counted import Measured
from traffic.projection import GPUS_PER_NODE, Projected

from training.bench.picture import GRID, INK, MUTED, STYLE

COLORS = {"data": "#c0392b", "model": "#b8860b", "hybrid": "#1f5fa8"}
PAPER = "#f4f4f4"  # background of the projections
MIB = 1 << 20
MILLION = 1e6


def write_picture(
    path: Path,
    measured: dict[int, list[Measured]],
    projected: dict[str, dict[str, list[Projected | None]]],
) -> None:
    """Write the picture.

    Args:
        path: A PNG file.
        measured: What was measured, by number of ranks.
        projected: The projections by case and mode, for each number of GPUs; the first number is 1.
    """
    with mpl.rc_context(mpl.rcParamsDefault | STYLE):
        figure = Figure(figsize=(12.5, 4.6), layout="constrained")
        left, *right = figure.subplots(1, 1 + len(projected))
        _draw_measured(left, measured)
        for axes, (name, modes) in zip(right, projected.items(), strict=True):
            _draw_projected(axes, name, modes)
        figure.savefig(path, dpi=150, metadata={"Software": None})


def _draw_measured(axes: Axes, measured: dict[int, list[Measured]]) -> None:
    (one,) = measured[1]
    for mode in [of_mode.mode for of_mode in measured[max(measured)]]:
        runs = [one] + [
            run for n, modes in measured.items() if n > 1 for run in modes if run.mode == mode
        ]
        axes.plot(
            list(measured),
            [mean(run.by_plan) / MIB for run in runs],
            color=COLORS[mode],
            linewidth=1.4,
            zorder=2,
        )
        axes.plot(
            list(measured),
            [mean(run.by_system) / MIB for run in runs],
            "o",
            color=COLORS[mode],
            markersize=6,
            zorder=3,
        )
        axes.annotate(
            mode,
            (max(measured), mean(runs[-1].by_plan) / MIB),
            (7, -3),
            textcoords="offset points",
            color=COLORS[mode],
        )
    axes.set_title(
        "MEASURED on gloo ranks:\nMiB that a rank sends in a step", loc="left", fontsize=10
    )
    axes.set_xlabel("ranks, which share batches of 4,096 rows")
    axes.set_xticks(list(measured))
    axes.set_xlim(0.8, max(measured) + 0.55)
    axes.set_ylim(bottom=0)
    marks = {"label": "counted by the system"}, {"label": "from the plan"}
    dots = Line2D([], [], color=MUTED, marker="o", linestyle="", **marks[0])
    axes.legend(
        handles=[dots, Line2D([], [], color=MUTED, linewidth=1.4, **marks[1])],
        frameon=False,
        loc="upper left",
    )
    _finish(axes)


def _draw_projected(axes: Axes, name: str, modes: dict[str, list[Projected | None]]) -> None:
    axes.set_facecolor(PAPER)
    (alone, *_), *_ = modes.values()
    assert alone is not None
    num_gpus = [one.num_gpus for one in modes["data"] if one is not None]
    axes.plot(
        num_gpus,
        [n * alone.rows_s / MILLION for n in num_gpus],
        color=MUTED,
        linewidth=0.9,
        linestyle=":",
    )
    axes.annotate(
        "one GPU, as many times",
        (num_gpus[-2], num_gpus[-2] * alone.rows_s / MILLION),
        (-4, 4),
        **_text(MUTED, "right"),
    )
    for mode, points in modes.items():
        _draw_mode(axes, mode, [point for point in points if point is not None])
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_title(f"PROJECTED, not run: million rows/s,\n{name}", loc="left", fontsize=10)
    axes.set_xlabel(f"GPUs, {GPUS_PER_NODE} a node, 8,192 rows each")
    axes.set_xticks(num_gpus, [f"{n}" for n in num_gpus])
    axes.set_yticks([10, 100, 1000, 10000])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(5, 30000)
    axes.set_xlim(0.85, num_gpus[-1] * 1.2)
    axes.legend(handles=_legend(), frameon=False, loc="upper left", fontsize=8)
    _finish(axes)


def _draw_mode(axes: Axes, mode: str, points: Sequence[Projected]) -> None:
    """Draw a line without overlap, a band up to full overlap, and rings without enough memory."""
    num_gpus, rows_s = [one.num_gpus for one in points], [one.rows_s / MILLION for one in points]
    axes.plot(num_gpus, rows_s, color=COLORS[mode], linewidth=1.6, zorder=3)
    if mode in ("data", "hybrid"):
        axes.fill_between(
            num_gpus,
            rows_s,
            [one.rows_s_overlapped / MILLION for one in points],
            color=COLORS[mode],
            alpha=0.13,
            linewidth=0,
        )
    for one in points[1:]:
        fill = COLORS[mode] if one.fits else PAPER
        axes.plot(
            one.num_gpus,
            one.rows_s / MILLION,
            "o",
            markersize=4.5,
            color=COLORS[mode],
            markerfacecolor=fill,
            zorder=4,
        )


def _legend() -> list[Any]:
    lines = [
        Line2D([], [], color=COLORS[mode], linewidth=1.6, label=mode)
        for mode in ("hybrid", "model", "data")
    ]
    band = Patch(
        color=MUTED, alpha=0.2, linewidth=0, label="up to all sending overlapped (hybrid, data)"
    )
    ring = Line2D(
        [],
        [],
        color=MUTED,
        marker="o",
        markerfacecolor=PAPER,
        markersize=4.5,
        linestyle="",
        label="does not fit into memory",
    )
    return [*lines, band, ring]


def _text(color: str, side: str) -> dict[str, Any]:
    return {"textcoords": "offset points", "color": color, "ha": side, "fontsize": 8}


def _finish(axes: Axes) -> None:
    axes.grid(color=GRID, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.title.set_color(INK)
