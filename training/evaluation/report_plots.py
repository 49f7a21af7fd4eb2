"""The figures of the evaluation report; each function returns one as inline SVG."""

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
from training.evaluation.importance import ColumnImportance
from training.evaluation.metrics import Array, Metrics, ScoreGroups, gain_curve, roc_curve

SPLIT_LABELS = {"valid": "validation"}
DASHED = (0, (3, 3))
NORMAL_95 = 1.96  # standard deviations on each side of a 95 % interval
SHARE_OF_SCORES_SHOWN = 0.999
SCORE_BARS = 40
MAX_MARKERS = 50  # a curve of more points is a line without markers
AXIS_TITLES = {"auc": "AUC", "calibration_ratio": "predicted / observed clicks"}


def training_curve(history: pl.DataFrame, column: str, label: str) -> str:
    """Draw a training curve.

    Args:
        history: The training curves with the columns member, step, split, loss, accuracy and auc.
        column: The column to draw over the steps, for training and validation; one line for each
            member of an ensemble. A ring marks the step with the lowest validation loss of each
            model, whose weights are saved.
        label: Title of the vertical axis.
    """
    with drawing(THIRD) as result:
        axes: Axes = result.axes
        num_members = history["member"].n_unique()
        for split, color in (("train", TRAIN), ("valid", VALID)):
            points = _points(history, split, column).sort("member", "step")
            split_label: str | None = SPLIT_LABELS.get(split, split)
            for of_member in points.partition_by("member"):
                style: dict[str, Any] = {"linewidth": 1}
                if num_members == 1 and len(of_member) <= MAX_MARKERS:
                    style = {"marker": "o", "markersize": 3.2}
                elif num_members > 1 and split == "train":
                    style["alpha"] = 0.4  # so that they do not hide the validation lines
                steps, values = of_member["step"], of_member[column]
                axes.plot(steps, values, color=color, label=split_label, **style)
                split_label = None  # one entry of the legend for all members
        validations = _points(history, "valid", column).sort("loss", "step")
        best = validations.unique("member", keep="first", maintain_order=True)
        if len(best):
            ring: dict[str, Any] = {
                "markerfacecolor": "none",
                "markeredgecolor": INK,
                "markeredgewidth": 1.2,
            }
            axes.plot(best["step"].to_list(), best[column].to_list(), "o", markersize=8, **ring)
        axes.set_xlabel("training step")
        axes.set_ylabel(label)
        axes.xaxis.set_major_formatter(THOUSANDS)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
        later = history.filter(pl.col("step") > LIMITS_AFTER * pl.col("step").max())
        _set_limits(axes, later[column].drop_nulls())
        if column == "accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
        legend(axes)
    return result.svg


def _points(history: pl.DataFrame, split: str, column: str) -> pl.DataFrame:
    return history.filter((pl.col("split") == split) & pl.col(column).is_not_null())


def _set_limits(axes: Axes, values: pl.Series) -> None:
    """Fit the vertical axis to some values, with a margin."""
    if len(values):
        low, high = float(values.min()), float(values.max())  # type: ignore[arg-type]
        margin = 0.08 * (high - low) or 0.01
        axes.set_ylim(low - margin, high + margin)


def roc(groups: ScoreGroups, auc: float) -> str:
    """Draw the ROC curve, with the AUC in its legend."""
    with drawing(HALF) as result:
        axes: Axes = result.axes
        fpr, tpr = roc_curve(groups)
        _dashed_diagonal(axes, 1, "chance")
        axes.plot(fpr, tpr, color=TEST, label=f"model, AUC {auc:.4f}")
        axes.fill_between(fpr, tpr, color=TEST, alpha=0.08, linewidth=0)
        axes.set_xlabel("false positive rate")
        axes.set_ylabel("true positive rate")
        _unit_square(axes)
        axes.legend(loc="lower right", reverse=True)
    return result.svg


def gain(groups: ScoreGroups, marked: Sequence[float]) -> str:
    """Draw the cumulative gain, with a dot at each of the marked shares of rows."""
    with drawing(HALF) as result:
        axes: Axes = result.axes
        rows, clicks = gain_curve(groups)
        click_rate = groups.clicks.sum() / groups.rows.sum()
        _dashed_diagonal(axes, 1, "rows at random")
        axes.plot([0, click_rate, 1], [0, 1, 1], color=MUTED, linewidth=1, label="perfect ranking")
        axes.plot(rows, clicks, color=TEST, label="model")
        axes.plot(marked, np.interp(marked, rows, clicks), "o", color=TEST, markersize=4.5)
        axes.set_xlabel("share of rows, highest scores first")
        axes.set_ylabel("share of all clicks")
        _unit_square(axes)
        axes.legend(loc="lower right", reverse=True)
    return result.svg


def calibration(groups: ScoreGroups) -> str:
    """Draw click rate over mean score, with 95 % bars (normal approximation of the binomial)."""
    with drawing(HALF) as result:
        axes: Axes = result.axes
        rate: Array = groups.clicks / groups.rows
        error = NORMAL_95 * np.sqrt(rate * (1 - rate) / groups.unweighted_rows)
        high = 1.05 * float(max((rate + error).max(), groups.score.max()))
        _dashed_diagonal(axes, high, "perfectly calibrated")
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


def score_distribution(groups: ScoreGroups) -> str:
    """Draw a histogram of the scores, clicked rows on top of the others.

    Args:
        groups: Many groups of about equally many rows. Rows are assumed to be spread evenly between
            the mean scores of neighbouring groups.
    """
    with drawing(HALF) as result:
        axes: Axes = result.axes
        rows_before = np.cumsum(groups.rows) - groups.rows / 2
        num_shown = SHARE_OF_SCORES_SHOWN * groups.rows.sum()
        highest = float(np.interp(num_shown, rows_before, groups.score)) or 1.0
        edges = np.linspace(0, highest, SCORE_BARS + 1)
        clicked = _rows_between(edges, groups.score, groups.clicks)
        other = _rows_between(edges, groups.score, groups.rows - groups.clicks)
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


def _rows_between(edges: Array, scores_K: Array, rows_K: Array) -> Array:
    """Estimate the rows between neighbouring scores, from groups with known mean scores."""
    rows_below_K = np.cumsum(rows_K) - rows_K / 2
    return np.diff(np.interp(edges, scores_K, rows_below_K, left=0, right=rows_K.sum()))


def frequency_buckets(metrics_by_bucket: dict[str, Metrics], overall: Metrics) -> str:
    """Draw AUC and calibration ratio of each frequency bucket, with 95 % bars.

    Args:
        metrics_by_bucket: Frequency bucket -> metrics. A bucket without the metric has no point.
        overall: The metrics of all rows. Dashed lines mark their AUC and a calibration ratio of 1.
    """
    with drawing(WIDE, ncols=2, gridspec_kw={"wspace": 0.06}) as result:
        for axes, name, level in zip(
            result.axes, ("auc", "calibration_ratio"), (overall["auc"], 1.0), strict=True
        ):
            keys = (name, f"{name}_low", f"{name}_high")
            values, low, high = (
                np.array([values[key] for values in metrics_by_bucket.values()], float)
                for key in keys
            )
            places = np.arange(len(values))
            axes.vlines(places, low, high, color=TEST, linewidth=1.4)
            axes.plot(places, values, "o", color=TEST, markersize=4.5)
            if level is not None:
                axes.axhline(level, color=MUTED, linewidth=1, linestyle=DASHED, zorder=0)
            axes.set_ylabel(AXIS_TITLES[name])
            axes.set_xticks(places, list(metrics_by_bucket), rotation=20, ha="right")
            axes.set_xlim(-0.6, len(values) - 0.4)
            axes.grid(axis="x", visible=False)
            axes.margins(y=0.15)
    return result.svg


def importance(columns: Sequence[ColumnImportance]) -> str:
    """Draw the importance of columns, the most important first, with bars of 95 %."""
    with drawing(WIDE) as result:
        axes: Axes = result.axes
        places = np.arange(len(columns))
        means = np.array([one.rise.mean for one in columns])
        errors = NORMAL_95 * np.array([one.rise.standard_error for one in columns])
        for kind, color in (("categorical", TEST), ("dense", TRAIN)):
            chosen = np.array([one.kind == kind for one in columns])
            if chosen.any():
                axes.bar(places[chosen], means[chosen], 0.7, color=color, label=kind)
        axes.vlines(places, means - errors, means + errors, color=INK, linewidth=1)
        axes.set_ylabel("rise of the logloss")
        axes.set_xticks(places, [one.column for one in columns], rotation=60, ha="right")
        axes.set_xlim(-0.6, len(columns) - 0.4)
        axes.grid(axis="x", visible=False)
        axes.legend(loc="upper right")
    return result.svg


def days(days_: list[dict[str, Any]]) -> str:
    """Draw the rows of each day, stacked by split, and the label rate of each day.

    Args:
        days_: The key `days` of data.json.
    """
    with drawing(WIDE, ncols=2, gridspec_kw={"wspace": 0.06}) as result:
        left, right = result.axes
        numbers = [day["day"] for day in days_]
        bottom = np.zeros(len(numbers))
        for split, color in (("train", TRAIN), ("valid", VALID), ("test", TEST)):
            rows = np.array([day["split_rows"].get(split, 0) for day in days_])
            label = SPLIT_LABELS.get(split, split)
            left.bar(numbers, rows, 0.7, bottom=bottom, color=color, label=label)
            bottom += rows
        left.set_ylabel("rows")
        left.yaxis.set_major_formatter(THOUSANDS)
        left.set_ylim(0, bottom.max() * 1.2)  # room for the legend
        left.legend(ncols=3, loc="upper right", borderaxespad=0)
        rates = np.array([day["label_rate"] for day in days_], float)  # a day without rows has NaN
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


def _dashed_diagonal(axes: Axes, end: float, label: str) -> None:
    axes.plot([0, end], [0, end], color=MUTED, linewidth=1, linestyle=DASHED, label=label)


def _unit_square(axes: Axes) -> None:
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
