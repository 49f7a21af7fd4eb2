"""The picture of `clickmill bench`.

It shows hit rates over the size of a cache, and step times over the size of the tables, both in
bytes.
"""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

INK, MUTED, GRID = "#222222", "#666666", "#dddddd"
# The curve of the trace lies on that of the log, so it is dashed.
LINES: dict[str, Any] = {
    "random": {"color": "#b8860b", "linestyle": "-"},
    "log": {"color": "#1f5fa8", "linestyle": "-"},
    "trace": {"color": "#c0392b", "linestyle": (0, (4, 3))},
}
STYLE: Any = {
    "font.size": 9,
    "xtick.labelsize": 7.5,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.labelcolor": MUTED,
}
KIB_BITS = 10


def write_picture(
    path: Path,
    hit_rates: pl.DataFrame,
    step_times: pl.DataFrame,
    caches: dict[str, int],
    row_bytes: int,
) -> None:
    """Write the picture as PNG.

    Args:
        path: The file.
        hit_rates: Hit rates of one cache for all tables, with the columns ids, cache_rows and
            hit_rate.
        step_times: Step times, as `measure_steps` returns them.
        caches: Name of a cache of this machine -> its size in bytes, which is marked.
        row_bytes: Size of a table row in bytes.
    """
    with mpl.rc_context(mpl.rcParamsDefault | STYLE):
        figure = Figure(figsize=(12, 3.8), layout="constrained")
        hits, steps, tables = figure.subplots(1, 3)
        _draw(hits, hit_rates, "cache_rows", "hit_rate", row_bytes)
        hits.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        hits.set_ylim(0, 1.08)  # leaves room for the names of the caches
        hits.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 0.92))
        _finish(hits, "Hit rate of an LRU cache of table rows", "cache size", caches)
        _draw(steps, step_times, "table_rows", "step_ms", row_bytes)
        _finish(steps, "Training step, ms", "size of all tables", caches)
        _draw(tables, step_times, "table_rows", "tables_ms", row_bytes)
        _finish(tables, "Embedding lookup and update alone, ms", "size of all tables", caches)
        for axes in (steps, tables):
            axes.set_ylim(0, 1.12 * axes.dataLim.y1)
        figure.savefig(path, dpi=150, metadata={"Software": None})


def _draw(axes: Axes, frame: pl.DataFrame, rows: str, value: str, row_bytes: int) -> None:
    for (name,), part in frame.group_by("ids", maintain_order=True):
        axes.plot(
            part[rows] * row_bytes,
            part[value],
            label=name,
            marker="o",
            markersize=3,
            **LINES[str(name)],
        )


def _finish(axes: Axes, title: str, label: str, caches: dict[str, int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(label)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _bytes(value)))
    axes.grid(color=GRID, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    low, high = axes.get_xlim()
    for name, size in caches.items():
        if low < size < high:
            axes.axvline(size, color=MUTED, linewidth=0.8, linestyle=":")
            axes.text(
                size,
                1.0,
                f"{name} ",
                transform=axes.get_xaxis_transform(),
                ha="right",
                va="top",
                color=MUTED,
            )


def _bytes(value: float) -> str:
    units = ("B", "KiB", "MiB", "GiB")
    power = min(max(int(value).bit_length() - 1, 0) // KIB_BITS, len(units) - 1)
    return f"{value / (1 << KIB_BITS * power):g} {units[power]}"
