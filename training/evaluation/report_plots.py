"""The figures of the evaluation report, as inline SVG."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from common.html.svg import (
    GRID,
    HALF,
    INK,
    LIMITS_AFTER,
    MUTED,
    TEST,
    THIRD,
    THOUSANDS,
    TRAIN,
    VALID,
    WIDE,
    drawing,
    legend,
)
from training.evaluation.metrics import Array, Metrics, Pool, gain, roc


def curves(history: pl.DataFrame, column: str, label: str) -> str:
    """history (step, split, loss, accuracy, auc): the column over the steps for train and valid, a ring around the kept step."""
    with drawing(THIRD) as result:
        axes: Axes = result.axes
        for split, color in (("train", TRAIN), ("valid", VALID)):
            part = history.filter((pl.col("split") == split) & pl.col(column).is_not_null()).sort(
                "step"
            )
            if part.is_empty():
                continue
            look: dict[str, Any] = (
                {"marker": "o", "markersize": 3.2} if len(part) <= 50 else {"linewidth": 1}
            )
            axes.plot(
                part["step"],
                part[column],
                color=color,
                label={"valid": "validation"}.get(split, split),
                **look,
            )
        valid = history.filter((pl.col("split") == "valid") & pl.col(column).is_not_null()).sort(
            "loss", "step"
        )
        if len(valid):
            step, value = valid["step"][0], valid[column][0]
            axes.plot(
                [step],
                [value],
                "o",
                markersize=8,
                markerfacecolor="none",
                markeredgecolor=INK,
                markeredgewidth=1.2,
            )
        axes.set_xlabel("training step")
        axes.set_ylabel(label)
        axes.xaxis.set_major_formatter(THOUSANDS)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
        later = history.filter(pl.col("step") > LIMITS_AFTER * pl.col("step").max())[
            column
        ].drop_nulls()
        if len(later):
            low, high = float(later.min()), float(later.max())  # type: ignore[arg-type]
            margin = 0.08 * (high - low) or 0.01
            axes.set_ylim(low - margin, high + margin)
        if column == "accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
        legend(axes)
    return result.svg


def roc_curve(groups: Pool, area: float) -> str:
    with drawing(HALF) as result:
        axes: Axes = result.axes
        fpr, tpr = roc(groups)
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (3, 3)), label="chance")
        axes.plot(fpr, tpr, color=TEST, label=f"model, AUC {area:.4f}")
        axes.fill_between(fpr, tpr, color=TEST, alpha=0.08, linewidth=0)
        axes.set_xlabel("false positive rate")
        axes.set_ylabel("true positive rate")
        _unit_square(axes)
        axes.legend(loc="lower right", reverse=True)
    return result.svg


def gain_curve(groups: Pool, marked: Sequence[float]) -> str:
    """Share of clicks caught in the best rows; dots at the marked shares of rows."""
    with drawing(HALF) as result:
        axes: Axes = result.axes
        shown, caught = gain(groups)
        rate = groups.clicks.sum() / groups.rows.sum()
        axes.plot(
            [0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (3, 3)), label="rows at random"
        )
        axes.plot([0, rate, 1], [0, 1, 1], color=MUTED, linewidth=1, label="perfect ranking")
        axes.plot(shown, caught, color=TEST, label="model")
        axes.plot(marked, np.interp(marked, shown, caught), "o", color=TEST, markersize=4.5)
        axes.set_xlabel("share of rows, best scored first")
        axes.set_ylabel("share of clicks caught")
        _unit_square(axes)
        axes.legend(loc="lower right", reverse=True)
    return result.svg


def calibration(groups: Pool) -> str:
    """Mean score against click rate with 95 % bars (normal approximation of the binomial)."""
    with drawing(HALF) as result:
        axes: Axes = result.axes
        rate: Array = groups.clicks / groups.rows
        error = 1.96 * np.sqrt(rate * (1 - rate) / groups.rows)
        high = 1.05 * float(max((rate + error).max(), groups.score.max()))
        axes.plot(
            [0, high],
            [0, high],
            color=MUTED,
            linewidth=1,
            linestyle=(0, (3, 3)),
            label="perfectly calibrated",
        )
        axes.errorbar(
            groups.score,
            rate,
            error,
            fmt="o",
            color=TEST,
            markersize=4,
            elinewidth=1.2,
            label="model, 95% interval",
        )
        axes.set_xlabel("mean score of the group")
        axes.set_ylabel("click rate of the group")
        axes.set(xlim=(0, high), ylim=(0, high))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
            axis.set_major_formatter(PercentFormatter(1, decimals=None))
        axes.legend(loc="upper left")
    return result.svg


def score_distribution(groups: Pool) -> str:
    """Rows by score, from many groups of equally many rows: between their mean scores rows are taken to lie evenly."""
    with drawing(HALF) as result:
        axes: Axes = result.axes
        rows_before = np.cumsum(groups.rows) - groups.rows / 2
        edges = np.linspace(
            0, float(np.interp(0.999 * groups.rows.sum(), rows_before, groups.score)) or 1.0, 41
        )
        clicked, other = (
            np.diff(
                np.interp(edges, groups.score, np.cumsum(rows) - rows / 2, left=0, right=rows.sum())
            )
            for rows in (groups.clicks, groups.rows - groups.clicks)
        )
        middle, width = (edges[:-1] + edges[1:]) / 2, edges[1] * 0.86
        axes.bar(middle, other, width, color=GRID, label="not clicked")
        axes.bar(middle, clicked, width, bottom=other, color=TEST, label="clicked")
        axes.set_xlabel("score")
        axes.set_ylabel("rows")
        axes.yaxis.set_major_formatter(THOUSANDS)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        axes.grid(axis="x", visible=False)
        axes.legend(loc="upper right")
    return result.svg


def bands(of_bands: dict[str, Metrics], overall: Metrics) -> str:
    """AUC and predicted over observed clicks of each band with 95 % bars, dashed all rows' AUC and 1. Without a figure no point."""
    with drawing(WIDE, ncols=2, gridspec_kw={"wspace": 0.06}) as result:
        for axes, name, level in zip(
            result.axes, ("auc", "calibration_ratio"), (overall["auc"], 1.0), strict=True
        ):
            keys = (name, f"{name}_low", f"{name}_high")
            values, low, high = (
                np.array([found[key] for found in of_bands.values()], float) for key in keys
            )
            places = np.arange(len(values))
            axes.vlines(places, low, high, color=TEST, linewidth=1.4)
            axes.plot(places, values, "o", color=TEST, markersize=4.5)
            if level is not None:
                axes.axhline(level, color=MUTED, linewidth=1, linestyle=(0, (3, 3)), zorder=0)
            axes.set_ylabel(
                {"auc": "AUC", "calibration_ratio": "predicted / observed clicks"}[name]
            )
            axes.set_xticks(places, list(of_bands), rotation=20, ha="right")
            axes.set_xlim(-0.6, len(values) - 0.4)
            axes.grid(axis="x", visible=False)
            axes.margins(y=0.15)
    return result.svg


def days(days_: list[dict[str, Any]]) -> str:
    """Rows of each day (of data.json), stacked by split, and the label rate of each day."""
    with drawing(WIDE, ncols=2, gridspec_kw={"wspace": 0.06}) as result:
        left, right = result.axes
        numbers = [day["day"] for day in days_]
        bottom = np.zeros(len(numbers))
        for split, color in (("train", TRAIN), ("valid", VALID), ("test", TEST)):
            rows = np.array([day["split_rows"].get(split, 0) for day in days_])
            left.bar(
                numbers,
                rows,
                0.7,
                bottom=bottom,
                color=color,
                label={"valid": "validation"}.get(split, split),
            )
            bottom += rows
        left.set_ylabel("rows")
        left.yaxis.set_major_formatter(THOUSANDS)
        left.set_ylim(0, bottom.max() * 1.2)  # room for the legend
        left.legend(ncols=3, loc="upper right", borderaxespad=0)
        rates = np.array([day["label_rate"] for day in days_], float)  # NaN for a day without rows
        right.plot(numbers, rates, color=INK, marker="o", markersize=4, linewidth=1.4)
        right.set_ylabel("label rate")
        right.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
        right.margins(y=0.25)
        for axes in (left, right):
            axes.set_xlabel("day")
            axes.set_xlim(-0.6 + numbers[0], numbers[-1] + 0.6)
            axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
            axes.grid(axis="x", visible=False)
    return result.svg


def _unit_square(axes: Axes) -> None:
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
