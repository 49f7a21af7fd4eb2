"""The gate of the data: a day that is not like the others is named, or stops the run, before a model is trained on it,
or has the model that was trained kept out of production (training/promotion/).

Every day is judged, each for all its rows, against its window: the training rows of all other days. A day of validation or test rows is
so held against what the model learns from, and a training day against the rest. The figures of section `gate` of params.yaml:

    rows        the share of rows that the day lacks to the median of the other days
    bad_rows    the malformed share of its lines
    label_rate  how many times as high or as low the label rate is as the window's
    missing     how far the share of missing values of a column is above or below the window's
    unseen      how far the share of rare and new values of a column is above the window's
    drift       the population stability index of a column's other values (features/quality/drift.py)

Of the last four, what chance explains is taken off first, so that a small day raises no alarm by its size. What has no window, or no
ids that tell unseen values, is not judged. A training day that is off stands in the windows of all others, which then seem off as well:
of one figure of one column, a day is passed over that is less than half as far off as some training day.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from common.config.params import Gate, Threshold
from common.files import DataError
from features.quality.drift import beyond_chance

FIGURES = Path("runs/data.json")  # where the figures of a run that was stopped can be read


@dataclass(frozen=True)
class Finding:
    """A figure of section `gate` for a day, or a column of a day: what was found, its value, and what the value means."""

    day: int
    column: str | None
    figure: str
    found: str
    value: float
    meaning: str

    @property
    def subject(self) -> tuple[str | None, str]:
        return self.column, self.figure

    @property
    def distance(self) -> float:
        """How far off, 0 for not at all."""
        return self.value - 1 if self.figure == "label_rate" else self.value


def check_data(data: dict[str, Any], params: Gate) -> tuple[list[str], list[str]]:
    """data: data.json. Returns a line for each figure above its `warn`, and one for each above its `block_promotion`.

    Raises DataError, a line for each, if any is above `stop`.
    """
    warnings = [
        f"{name} is missing in every row: does the log call it otherwise?"
        for name in _never_there(data["days"])
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
                    f"{finding.found}: {finding.value:.3g}{finding.meaning}, above gate.{finding.figure}.{name} {limit:g}"
                )
    if stops:
        first = f"the data is not fit to train on; all its figures are in {FIGURES}"
        last = "repair the log and run again, or raise these thresholds in params.yaml (null: never stop)"
        raise DataError("\n".join([first, *stops, last]))
    return warnings, blocking


def _never_there(days: list[dict[str, Any]]) -> list[str]:
    """Columns without a value on any day."""
    told = [day["columns"] for day in days if day["num_rows"]]
    return (
        [name for name in told[0] if all(columns[name]["missing"] == 1 for columns in told)]
        if told
        else []
    )


def _without_echoes(days: list[dict[str, Any]]) -> Iterator[Finding]:
    """The findings that are not merely there because another day, which is named, is in the window."""
    findings = list(_findings(days))
    of_training: dict[tuple[str | None, str], float] = defaultdict(float)
    for finding in findings:
        if days[finding.day]["split_rows"].get("train"):
            of_training[finding.subject] = max(of_training[finding.subject], finding.distance)
    for finding in findings:
        if (
            finding.figure in ("rows", "bad_rows")
            or finding.distance >= of_training[finding.subject] / 2
        ):
            yield finding


def _findings(days: list[dict[str, Any]]) -> Iterator[Finding]:
    """Every figure of every day."""
    for k, day in enumerate(days):
        others = [other["num_rows"] for other in days[:k] + days[k + 1 :]]
        usual = median(others) if others else 0
        if usual:
            found = f"{day['name']}: {day['num_rows']:,} rows, {usual:,.0f} in the median of the other days"
            yield Finding(k, None, "rows", found, 1 - day["num_rows"] / usual, " of them lacking")
        num_lines = day["num_rows"] + day["num_bad_rows"]
        if num_lines:
            found = f"{day['name']}: {day['num_bad_rows']:,} of {num_lines:,} lines malformed"
            yield Finding(k, None, "bad_rows", found, day["num_bad_rows"] / num_lines, " of all")
        if day["num_rows"] and day["window"]["num_rows"]:
            yield _label_rate(k, day)
            for name, column in day["columns"].items():
                yield from _of_column(k, day, name, column)


def _label_rate(k: int, day: dict[str, Any]) -> Finding:
    ours, theirs = day["label_rate"], day["window"]["label_rate"]
    surplus = _beyond_chance(day, ours, theirs)
    high, times = max(ours, theirs), 1.0
    if surplus:
        times = high / (high - abs(surplus)) if high > abs(surplus) else math.inf
    found = f"{day['name']}: label rate {ours:.2%}, {theirs:.2%} in the window"
    return Finding(
        k, None, "label_rate", found, times, f" times as {'high' if surplus > 0 else 'low'}"
    )


def _of_column(k: int, day: dict[str, Any], name: str, column: dict[str, Any]) -> Iterator[Finding]:
    for figure, called in (("missing", "missing"), ("unseen", "rare or new")):
        ours, theirs = column[figure], column[f"window_{figure}"]
        if ours is not None and theirs is not None:
            change = _beyond_chance(day, ours, theirs)
            found = (
                f"{day['name']}: {name} {called} in {ours:.1%} of rows, {theirs:.1%} in the window"
            )
            yield Finding(
                k,
                name,
                figure,
                found,
                abs(change) if figure == "missing" else change,
                " of rows apart",
            )
    if column["drift"] is not None:
        yield Finding(
            k,
            name,
            "drift",
            f"{day['name']}: {name} has drifted from the window",
            column["drift"],
            " (PSI)",
        )


def _beyond_chance(day: dict[str, Any], ours: float, theirs: float) -> float:
    return beyond_chance(ours, day["num_rows"], theirs, day["window"]["num_rows"])
