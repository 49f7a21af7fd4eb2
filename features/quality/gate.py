"""The gate: it compares the figures of each day with the thresholds of params.yaml.

These figures are checked. The window of a day is the training rows of all other days.

    figure      what is measured
    rows        the share of rows that the day lacks, compared with the median of the other days
    bad_rows    the share of bad rows among the rows of the day
    label_rate  the label rate of the day and that of its window: the larger divided by the smaller
    missing     the difference between the shares of missing values of a column, up or down
    unseen      the rise of the share of rare and unseen values of a column above that of its window
    drift       the population stability index of a column (features/quality/drift.py); of a column
                of lists, also that of their lengths

Each figure has three thresholds, `gate.FIGURE.NAME` of params.yaml; null is no limit.

    threshold        what happens when a figure is above it
    warn             a warning is logged, and the report lists it
    block_promotion  training and evaluation run, but the nightly run does not promote the model
    stop             the features stage fails with a DataError, and nothing is trained

All rows of a day are compared, whatever their split. So a day of validation or test rows is
compared with what the model learns from, and a training day with the other training days. From the
last four figures, what chance explains is subtracted first, so that a small day raises no alarm by
its size. A figure is not checked if there is nothing to compare with: no window, or no ids that
distinguish unseen values.

An unusual training day is in the windows of all other days, so these then look unusual as well.
Such an echo is left out: for each figure and column, a day is only named if it deviates at least
half as much as the training day that deviates most.
"""

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config.params import Gate, Threshold
from common.files import DataError
from features.quality.drift import beyond_chance

WINDOW = "the training rows of the other days"  # what a day is compared with, in messages
FIGURES = Path("runs/data.json")  # the data profile of the last run, even if the gate stopped it


@dataclass(frozen=True)
class Finding:
    """The value of one figure of a day, or of a column of a day.

    Attributes:
        day: The number of the day in the log.
        column: The column; None for a figure of the whole day.
        figure: The name of the figure, a key of the section `gate`.
        observation: What the figure was computed from, as text.
        value: The figure.
        unit: What the value means, as text that follows it.
    """

    day: int
    column: str | None
    figure: str
    observation: str
    value: float
    unit: str

    @property
    def subject(self) -> tuple[str | None, str]:
        """The column and the figure: findings of the same subject can be compared."""
        return self.column, self.figure

    @property
    def deviation(self) -> float:
        """How unusual the value is; 0 is not at all."""
        return self.value - 1 if self.figure == "label_rate" else self.value


def check_data(data: dict[str, Any], params: Gate) -> tuple[list[str], list[str]]:
    """Compare the figures of all days with their thresholds.

    Args:
        data: The contents of data.json.
        params: The thresholds.

    Returns:
        One line for each figure above `warn`, and one for each above `block_promotion`.

    Raises:
        DataError: A figure is above `stop`; the message has a line for each.
    """
    warnings = [
        f"{name} is missing in every row: does the log use another name for it?"
        for name in _always_missing(data["days"])
    ]
    blocking: list[str] = []
    stops: list[str] = []
    for finding in _without_echoes(data["days"]):
        threshold: Threshold = getattr(params, finding.figure)
        for limit, name, lines in (
            (threshold.warn, "warn", warnings),
            (threshold.block_promotion, "block_promotion", blocking),
            (threshold.stop, "stop", stops),
        ):
            if limit is not None and finding.value > limit:
                lines.append(
                    f"{finding.observation}: {finding.value:.3g}{finding.unit},"
                    f" above gate.{finding.figure}.{name} {limit:g}"
                )
    if stops:
        first = f"the data is not fit to train on; all its figures are in {FIGURES}"
        last = (
            "repair the log and run again, or raise these thresholds in params.yaml"
            " (null: never stop)"
        )
        raise DataError(first, *stops, last)
    return warnings, blocking


def _always_missing(days: list[dict[str, Any]]) -> list[str]:
    """Return the columns that have no value on any day. No comparison of days shows them."""
    columns_by_day = [day["columns"] for day in days if day["num_rows"]]
    if not columns_by_day:
        return []
    return [
        name
        for name in columns_by_day[0]
        if all(columns[name]["missing"] == 1 for columns in columns_by_day)
    ]


def _without_echoes(days: list[dict[str, Any]]) -> Iterator[Finding]:
    """Yield the findings that are not the echo of a training day in the window."""
    findings = list(_findings(days))
    largest_in_training: dict[tuple[str | None, str], float] = defaultdict(float)
    for finding in findings:
        if days[finding.day]["split_rows"].get("train"):
            largest = max(largest_in_training[finding.subject], finding.deviation)
            largest_in_training[finding.subject] = largest
    for finding in findings:
        has_no_window = finding.figure in ("rows", "bad_rows")
        if has_no_window or finding.deviation >= largest_in_training[finding.subject] / 2:
            yield finding


def _findings(days: list[dict[str, Any]]) -> Iterator[Finding]:
    """Yield every figure of every day."""
    all_rows = sorted(day["num_rows"] for day in days)
    for k, day in enumerate(days):
        usual_rows = _median_of_others(all_rows, day["num_rows"])
        if usual_rows:
            observation = (
                f"{day['name']}: {day['num_rows']:,} rows,"
                f" {usual_rows:,.0f} in the median of the other days"
            )
            lacking = 1 - day["num_rows"] / usual_rows
            yield Finding(k, None, "rows", observation, lacking, " of them lacking")
        num_lines = day["num_rows"] + day["num_bad_rows"]
        if num_lines:
            bad_share = day["num_bad_rows"] / num_lines
            observation = f"{day['name']}: {day['num_bad_rows']:,} of {num_lines:,} rows are bad"
            yield Finding(k, None, "bad_rows", observation, bad_share, " of all")
        if day["num_rows"] and day["window"]["num_rows"]:
            yield _label_rate(k, day)
            for name, column in day["columns"].items():
                yield from _column_findings(k, day, name, column)


def _median_of_others(sorted_numbers: list[int], number: int) -> float:
    """Return the median of sorted numbers without one of them; 0 if it is the only one."""
    place, num_others = bisect_left(sorted_numbers, number), len(sorted_numbers) - 1
    if not num_others:
        return 0
    middle = ((num_others - 1) // 2, num_others // 2)
    return sum(sorted_numbers[i + (i >= place)] for i in middle) / 2


def _label_rate(k: int, day: dict[str, Any]) -> Finding:
    rate, window_rate = day["label_rate"], day["window"]["label_rate"]
    difference = _beyond_chance(day, rate, window_rate)
    higher = max(rate, window_rate)
    if difference == 0:
        ratio = 1.0
    elif higher > abs(difference):
        ratio = higher / (higher - abs(difference))
    else:
        ratio = math.inf
    observation = f"{day['name']}: label rate {rate:.2%}, {window_rate:.2%} in {WINDOW}"
    direction = "high" if difference > 0 else "low"
    return Finding(k, None, "label_rate", observation, ratio, f" times as {direction}")


def _column_findings(
    k: int, day: dict[str, Any], name: str, column: dict[str, Any]
) -> Iterator[Finding]:
    for figure, words in (("missing", "missing"), ("unseen", "rare or unseen")):
        share, window_share = column[figure], column[f"window_{figure}"]
        if share is None or window_share is None:
            continue
        change = _beyond_chance(day, share, window_share)
        if figure == "missing":
            change = abs(change)
        observation = (
            f"{day['name']}: {name} {words} in {share:.1%} of its rows and"
            f" {window_share:.1%} of {WINDOW}"
        )
        yield Finding(k, name, figure, observation, change, " beyond chance")
    if column["drift"] is not None:
        observation = f"{day['name']}: {name} has drifted from {WINDOW}"
        yield Finding(k, name, "drift", observation, column["drift"], " (PSI)")
    if column.get("length_drift") is not None:
        observation = f"{day['name']}: the lengths of {name} have drifted from {WINDOW}"
        yield Finding(k, f"{name} lengths", "drift", observation, column["length_drift"], " (PSI)")


def _beyond_chance(day: dict[str, Any], share: float, window_share: float) -> float:
    return beyond_chance(share, day["num_rows"], window_share, day["window"]["num_rows"])
