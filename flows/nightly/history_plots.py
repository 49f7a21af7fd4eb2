"""The nights' figures as inline SVG, drawn as the model report's are, all over the numbers of the nights, rollbacks between two of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from common.html.svg import GRID, INK, MUTED, PAPER, TEST, TRAIN, VALID, WIDE, drawing, legend
from flows.nightly.record import Night
from training.evaluation.metrics import Array

MANY = 60  # nights; with more of them an interval is not a bar but part of a band
REACH = 3  # interquartile ranges: Tukey's "far out"; beyond it a figure would flatten the rest, and is a triangle at the edge
TALL = (WIDE[0], 4.8)
STACKED: dict[str, Any] = {"nrows": 2, "sharex": True, "gridspec_kw": {"hspace": 0.06}}
NAMES = {"auc": "AUC", "logloss": "logloss"}
TASKS: list[Any] = [
    TEST,
    VALID,
    TRAIN,
    MUTED,
    (TEST, 0.5),
    (VALID, 0.5),
]  # the longest first; what is left of a night is in GRID
UNITS = {"h": 3600, "min": 60, "s": 1}  # in seconds


@dataclass(frozen=True)
class Plots:
    """Each method is one figure. rollbacks: their places between the numbers of nights."""

    nights: Sequence[Night]
    rollbacks: Sequence[float]

    @property
    def many(self) -> bool:
        return len(self.nights) > MANY

    def quality(self) -> str:
        """AUC and logloss of challenger and champion on the night's test rows, with their 95 % intervals."""
        with drawing(TALL, **STACKED) as result:
            for axes, name in zip(result.axes, NAMES, strict=True):
                shown = []
                for who, color in (("champion", TRAIN), ("challenger", TEST)):
                    judged = [night for night in self.nights if (night.decision or {}).get(who)]
                    keys = (name, f"{name}_low", f"{name}_high")
                    figures = [
                        [night.decision[who][key] for key in keys]
                        for night in judged
                        if night.decision
                    ]
                    aside = 0 if self.many else {"champion": -0.12, "challenger": 0.12}[who]
                    shown.append(self._intervals(axes, judged, figures, color, aside))
                    if who == "challenger":
                        self._outcomes(axes, judged, shown[-1])
                    elif judged:
                        look: dict[str, Any] = (
                            {"linewidth": 1} if self.many else {"marker": "o", "linewidth": 0}
                        )
                        axes.plot(*shown[-1][:2], color=color, label=who, **look)
                axes.set_ylabel(NAMES[name])
                self._finish(axes, np.hstack(shown))
            legend(result.axes[0], ncols=4)
            result.axes[1].set_xlabel("night")
        return result.svg

    def differences(self) -> str:
        """Challenger less champion on the same rows, with the 95 % intervals of the paired bootstrap."""
        with drawing(TALL, **STACKED) as result:
            for axes, name in zip(result.axes, NAMES, strict=True):
                judged = [
                    night
                    for night in self.nights
                    if name in (night.decision or {}).get("difference", {})
                ]
                found = [night.decision["difference"][name] for night in judged if night.decision]
                axes.axhline(0, color=MUTED, linewidth=1, linestyle=(0, (3, 3)), zorder=1)
                shown = self._intervals(
                    axes,
                    judged,
                    [[one["value"], one["low"], one["high"]] for one in found],
                    TEST,
                    0,
                )
                self._outcomes(axes, judged, shown)
                axes.set_ylabel(f"difference of {NAMES[name]}")
                self._finish(axes, shown)
            result.axes[1].set_xlabel("night")
        return result.svg

    def data(self) -> str:
        """Of each night's newest day: label rate, malformed share of its lines, largest drift and largest unseen share of a column."""
        told = [(night.number, night.data) for night in self.nights if night.data]
        figures = {
            "label rate": [day["label_rate"] for _, day in told],
            "malformed lines": [
                day["num_bad_rows"] / (day["num_rows"] + day["num_bad_rows"] or 1)
                for _, day in told
            ],
            "largest drift (PSI)": [day["drift"] and day["drift"]["value"] for _, day in told],
            "largest unseen share": [day["unseen"] and day["unseen"]["value"] for _, day in told],
        }
        look: dict[str, Any] = (
            {"linewidth": 0.8} if self.many else {"linewidth": 1.4, "marker": "o", "markersize": 4}
        )
        with drawing(
            TALL, nrows=2, ncols=2, sharex=True, gridspec_kw={"wspace": 0.06, "hspace": 0.06}
        ) as result:
            for axes, (name, values) in zip(result.axes.flat, figures.items(), strict=True):
                shown = np.array([[number for number, _ in told], values], float)
                axes.plot(*shown, color=INK, **look)
                axes.set_ylabel(name)
                self._finish(axes, shown, from_zero=name != "label rate")
                if "drift" not in name:
                    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
            for axes in result.axes[1]:
                axes.set_xlabel("night")
        return result.svg

    def durations(self) -> str:
        """Of each night, stacked by task; on top what is beyond the longest of them, such as the clone."""
        tasks = {
            task: sum(night.tasks.get(task, 0) for night in self.nights)
            for night in self.nights
            for task in night.tasks
        }
        longest = sorted(tasks, key=lambda task: (-tasks[task], task))[: len(TASKS)]
        whole = np.array([night.seconds for night in self.nights])
        unit = next(
            (unit for unit, seconds in UNITS.items() if np.median(whole) >= 2 * seconds), "s"
        )
        parts = {
            task: np.array([night.tasks.get(task, 0) for night in self.nights]) for task in longest
        }
        parts["the rest"] = np.maximum(whole - sum(parts.values()), 0)
        numbers, top = (
            np.array([night.number for night in self.nights], float),
            np.zeros(len(whole)),
        )
        with drawing(WIDE) as result:
            for (task, seconds), color in zip(
                parts.items(), [*TASKS[: len(longest)], GRID], strict=True
            ):
                bottom, top = top, top + seconds / UNITS[unit]
                _bars(
                    result.axes,
                    numbers,
                    bottom,
                    top,
                    1 if self.many else 0.72,
                    color=color,
                    label=task,
                )
            result.axes.set(
                xlabel="night", ylabel={"s": "seconds", "min": "minutes", "h": "hours"}[unit]
            )
            self._finish(result.axes, np.array([numbers, top]), from_zero=True)
            legend(result.axes, ncols=len(parts) + 1)
        return result.svg

    def _intervals(
        self,
        axes: Axes,
        nights: Sequence[Night],
        figures: list[list[float | None]],
        color: str,
        aside: float,
    ) -> Array:
        """Draw the intervals of each night's (value, low, high); returns (4, N): places, values, low, high."""
        values, low, high = np.array(figures, float).reshape(-1, 3).T
        places = np.array([night.number for night in nights]) + aside
        if self.many:
            axes.fill_between(places, low, high, color=color, alpha=0.2, linewidth=0)
        else:
            axes.vlines(places, low, high, color=color, linewidth=1.4)
        return np.array([places, values, low, high])

    def _outcomes(self, axes: Axes, nights: Sequence[Night], shown: Array) -> None:
        """A dot each, full where the model was promoted."""
        promoted = np.array([night.outcome == "promoted" for night in nights], bool)
        for some, face, name in (
            (promoted, TEST, "challenger, promoted"),
            (~promoted, PAPER, "challenger, not promoted"),
        ):
            look: dict[str, Any] = (
                {"markersize": 2.8, "markeredgewidth": 0.7}
                if self.many
                else {"markersize": 5.5, "markeredgewidth": 1.4}
            )
            if some.any():
                axes.plot(
                    *shown[:2, some], "o", color=TEST, markerfacecolor=face, label=name, **look
                )

    def _finish(self, axes: Axes, shown: Array, from_zero: bool = False) -> None:
        """Limits and ticks for what is shown, (2 or 4, N): places, values and perhaps their intervals; the rollbacks."""
        _fit(axes, shown[:, ~np.isnan(shown[1])], from_zero)
        for k, place in enumerate(self.rollbacks):
            axes.axvline(
                place,
                color=VALID,
                linewidth=1,
                linestyle=(0, (4, 2)),
                label=None if k else "rollback",
                zorder=1,
            )
        axes.set_xlim(self.nights[0].number - 0.6, self.nights[-1].number + 0.6)
        axes.xaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))
        axes.grid(axis="x", visible=False)


def _fit(axes: Axes, shown: Array, from_zero: bool) -> None:
    """Have the y axis end where all but far outliers do, and mark these at its edges."""
    places, values = shown[:2]
    if not len(values):
        return
    first, third = np.percentile(values, (25, 75))
    reach = REACH * (third - first) or np.inf  # most are the same: none is an outlier by this rule
    above, below = values > third + reach, (values < first - reach) & (not from_zero)
    usual = shown[1:, ~above & ~below]
    low, high = 0 if from_zero else np.nanmin(usual), np.nanmax(usual)
    margin = 0.08 * (high - low) or 0.01
    axes.set_ylim(low - margin * (not from_zero), high + margin)
    for beyond, edge, marker in ((above, 1, "^"), (below, 0, "v")):
        if beyond.any():  # an empty line would have a place in the layout, at 0, 0
            look: dict[str, Any] = {
                "color": INK,
                "markersize": 5,
                "transform": axes.get_xaxis_transform(),
                "clip_on": False,
            }
            axes.plot(places[beyond], np.full(beyond.sum(), edge), marker, **look)


def _bars(axes: Axes, places: Array, bottom: Array, top: Array, width: float, **look: Any) -> None:
    """As one path, however many."""
    edges = np.column_stack([places - width / 2, places + width / 2]).ravel()
    values, baseline = (
        np.column_stack([ends, np.full(len(ends), np.nan)]).ravel()[:-1] for ends in (top, bottom)
    )
    axes.stairs(values, edges, baseline=baseline, fill=True, linewidth=0, **look)
