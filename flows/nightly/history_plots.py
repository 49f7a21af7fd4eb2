"""The figures of the history page as inline SVG.

Their horizontal axis is the number of the nightly run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from common.html.svg import GRID, INK, MUTED, PAPER, TEST, TRAIN, VALID, WIDE, drawing, legend
from flows.nightly.record import NightlyRun
from training.evaluation.metrics import Array

MAX_BARS = 60  # runs; with more of them, intervals are drawn as one band and not as bars
# A value more than this many interquartile ranges beyond the quartiles is "far out" (Tukey, 1977).
# It is drawn as a triangle at the edge, because an axis that includes it would flatten all others.
OUTLIER_RANGES = 3
TALL = (WIDE[0], 4.8)
STACKED: dict[str, Any] = {"nrows": 2, "sharex": True, "gridspec_kw": {"hspace": 0.06}}
GRID_2X2: dict[str, Any] = {
    "nrows": 2,
    "ncols": 2,
    "sharex": True,
    "gridspec_kw": {"wspace": 0.06, "hspace": 0.06},
}
METRICS = {"auc": "AUC", "logloss": "logloss"}
MODEL_COLORS = {"champion": TRAIN, "challenger": TEST}
# The longest stage has the first colour. The rest of a run's time is drawn in GRID.
STAGE_COLORS: list[Any] = [TEST, VALID, TRAIN, MUTED, (TEST, 0.5), (VALID, 0.5)]
TIME_UNITS = {"hours": 3600, "minutes": 60, "seconds": 1}  # in seconds
X_LABEL = "nightly run"


@dataclass(frozen=True)
class Plots:
    """Draws the figures.

    Attributes:
        runs: All nightly runs in their order.
        rollbacks: The positions of rollbacks, between the numbers of runs.
    """

    runs: Sequence[NightlyRun]
    rollbacks: Sequence[float]

    @property
    def is_dense(self) -> bool:
        """Whether there are so many runs that each gets a thinner mark."""
        return len(self.runs) > MAX_BARS

    def metrics(self) -> str:
        """Draw AUC and logloss of challenger and champion on each run's test rows.

        The bars are 95 % intervals.
        """
        with drawing(TALL, **STACKED) as result:
            for axes, (metric, label) in zip(result.axes, METRICS.items(), strict=True):
                drawn = [self._draw_model(axes, role, metric) for role in MODEL_COLORS]
                axes.set_ylabel(label)
                self._finish(axes, np.hstack(drawn))
            legend(result.axes[0], ncols=4)
            result.axes[1].set_xlabel(X_LABEL)
        return result.svg

    def differences(self) -> str:
        """Draw challenger minus champion on the same rows.

        The bars are 95 % intervals of the paired bootstrap.
        """
        with drawing(TALL, **STACKED) as result:
            for axes, (metric, label) in zip(result.axes, METRICS.items(), strict=True):
                runs, values = [], []
                for run in self.runs:
                    difference = run.decision["difference"].get(metric) if run.decision else None
                    if difference:
                        runs.append(run)
                        values.append([difference[key] for key in ("value", "low", "high")])
                axes.axhline(0, color=MUTED, linewidth=1, linestyle=(0, (3, 3)), zorder=1)
                drawn = self._draw_intervals(axes, runs, values, TEST, 0)
                self._draw_outcomes(axes, runs, drawn)
                axes.set_ylabel(f"difference in {label}")
                self._finish(axes, drawn)
            result.axes[1].set_xlabel(X_LABEL)
        return result.svg

    def days(self) -> str:
        """Draw label rate, malformed share, largest drift and unseen share of each newest day."""
        numbers = [run.number for run in self.runs if run.newest_day]
        days = [run.newest_day for run in self.runs if run.newest_day]
        figures = {
            "label rate": [day["label_rate"] for day in days],
            "malformed lines": [_malformed_share(day) for day in days],
            "largest drift (PSI)": [day["drift"] and day["drift"]["value"] for day in days],
            "largest unseen share": [day["unseen"] and day["unseen"]["value"] for day in days],
        }
        style: dict[str, Any] = {"linewidth": 1.4, "marker": "o", "markersize": 4}
        if self.is_dense:
            style = {"linewidth": 0.8}
        with drawing(TALL, **GRID_2X2) as result:
            for axes, (label, values) in zip(result.axes.flat, figures.items(), strict=True):
                drawn = np.array([numbers, values], float)
                axes.plot(*drawn, color=INK, **style)
                axes.set_ylabel(label)
                self._finish(axes, drawn, from_zero=label != "label rate")
                if "drift" not in label:
                    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
            for axes in result.axes[1]:
                axes.set_xlabel(X_LABEL)
        return result.svg

    def served(self) -> str:
        """Draw online calibration and the largest drift of the traffic served before each run.

        The bars are 95 % intervals. The version that gave the most answers is shown.
        """
        runs, ratios, drifts = [], [], []
        for run in self.runs:
            one = run.served_figures.main if run.served_figures else None
            if one:
                metrics = one.metrics
                runs.append(run)
                drifts.append(one.drift.value if one.drift else None)
                ratios.append(
                    [
                        metrics.calibration_ratio if metrics else None,
                        metrics.calibration_ratio_low if metrics else None,
                        metrics.calibration_ratio_high if metrics else None,
                    ]
                )
        style: dict[str, Any] = {"marker": "o", "linewidth": 0, "markersize": 4}
        if self.is_dense:
            style = {"linewidth": 0.8}
        with drawing(TALL, **STACKED) as result:
            calibration, drift = result.axes
            calibration.axhline(1, color=MUTED, linewidth=1, linestyle=(0, (3, 3)), zorder=1)
            drawn = self._draw_intervals(calibration, runs, ratios, TEST, 0)
            calibration.plot(*drawn[:2], color=TEST, **style)
            calibration.set_ylabel("predicted / observed")
            self._finish(calibration, drawn)
            values = np.array([[run.number for run in runs], drifts], float)
            drift.plot(*values, color=INK, **style)
            drift.set_ylabel("largest drift (PSI)")
            drift.set_xlabel(X_LABEL)
            self._finish(drift, values, from_zero=True)
        return result.svg

    def durations(self) -> str:
        """Draw each run's duration, stacked by stage, with the time of everything else on top."""
        seconds = np.array([run.seconds for run in self.runs])
        parts = {
            stage: np.array([run.stage_seconds.get(stage, 0) for run in self.runs])
            for stage in self._longest_stages()
        }
        colors = [*STAGE_COLORS[: len(parts)], GRID]
        parts["other"] = np.maximum(seconds - sum(parts.values()), 0)
        unit = _time_unit(float(np.median(seconds)))
        width = 1 if self.is_dense else 0.72
        numbers = np.array([run.number for run in self.runs], float)
        top = np.zeros(len(seconds))
        with drawing(WIDE) as result:
            for (stage, values), color in zip(parts.items(), colors, strict=True):
                bottom, top = top, top + values / TIME_UNITS[unit]
                _draw_bars(result.axes, numbers, bottom, top, width, color=color, label=stage)
            result.axes.set(xlabel=X_LABEL, ylabel=unit)
            self._finish(result.axes, np.array([numbers, top]), from_zero=True)
            legend(result.axes, ncols=len(parts) + 1)
        return result.svg

    def _longest_stages(self) -> list[str]:
        """Return the stages that took the most time in all runs together, one for each colour."""
        totals: dict[str, float] = {}
        for run in self.runs:
            for stage, seconds in run.stage_seconds.items():
                totals[stage] = totals.get(stage, 0) + seconds
        return sorted(totals, key=lambda stage: (-totals[stage], stage))[: len(STAGE_COLORS)]

    def _draw_model(self, axes: Axes, role: str, metric: str) -> Array:
        """Draw a metric of all champions or challengers; return what `_draw_intervals` does."""
        runs, values = [], []
        for run in self.runs:
            metrics = run.decision[role] if run.decision else None
            if metrics:
                runs.append(run)
                values.append([metrics[key] for key in (metric, f"{metric}_low", f"{metric}_high")])
        color = MODEL_COLORS[role]
        # The two bars of a run stand side by side.
        shift = -0.12 if role == "champion" else 0.12
        drawn = self._draw_intervals(axes, runs, values, color, 0 if self.is_dense else shift)
        if role == "challenger":
            self._draw_outcomes(axes, runs, drawn)
        elif runs:
            style: dict[str, Any] = {"marker": "o", "linewidth": 0}
            if self.is_dense:
                style = {"linewidth": 1}
            axes.plot(*drawn[:2], color=color, label=role, **style)
        return drawn

    def _draw_intervals(
        self,
        axes: Axes,
        runs: Sequence[NightlyRun],
        values: list[list[float | None]],
        color: str,
        shift: float,
    ) -> Array:
        """Draw the interval of each run.

        Args:
            axes: Where to draw.
            runs: N runs.
            values: Value, lower and upper end of each run's interval.
            color: The color of the intervals.
            shift: The horizontal distance from the run's number.

        Returns:
            (4, N): positions, values, lower and upper ends.
        """
        value_N, low_N, high_N = np.array(values, float).reshape(-1, 3).T
        position_N = np.array([run.number for run in runs]) + shift
        if self.is_dense:
            axes.fill_between(position_N, low_N, high_N, color=color, alpha=0.2, linewidth=0)
        else:
            axes.vlines(position_N, low_N, high_N, color=color, linewidth=1.4)
        return np.array([position_N, value_N, low_N, high_N])

    def _draw_outcomes(self, axes: Axes, runs: Sequence[NightlyRun], drawn: Array) -> None:
        """Draw a dot for each run, filled if its model was promoted."""
        promoted_N = np.array([run.outcome == "promoted" for run in runs], bool)
        style: dict[str, Any] = {"markersize": 5.5, "markeredgewidth": 1.4}
        if self.is_dense:
            style = {"markersize": 2.8, "markeredgewidth": 0.7}
        for selected_N, face, label in (
            (promoted_N, TEST, "challenger, promoted"),
            (~promoted_N, PAPER, "challenger, rejected"),
        ):
            if selected_N.any():
                points = drawn[:2, selected_N]
                axes.plot(*points, "o", color=TEST, markerfacecolor=face, label=label, **style)

    def _finish(self, axes: Axes, drawn: Array, from_zero: bool = False) -> None:
        """Set limits and ticks, and draw the rollbacks.

        Args:
            axes: The axes with everything else drawn.
            drawn: (2 or 4, N): positions and values, and lower and upper ends if there are any.
            from_zero: Let the vertical axis begin at 0.
        """
        _fit_vertical_axis(axes, drawn[:, ~np.isnan(drawn[1])], from_zero)
        for k, position in enumerate(self.rollbacks):
            label = "rollback" if k == 0 else None
            style: Any = {"linewidth": 1, "linestyle": (0, (4, 2)), "zorder": 1}
            axes.axvline(position, color=VALID, label=label, **style)
        axes.set_xlim(self.runs[0].number - 0.6, self.runs[-1].number + 0.6)
        axes.xaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))
        axes.grid(axis="x", visible=False)


def _fit_vertical_axis(axes: Axes, drawn: Array, from_zero: bool) -> None:
    """Fit the vertical axis to all values but far outliers, and mark these at its edges."""
    positions, values = drawn[:2]
    if not len(values):
        return
    first, third = np.percentile(values, (25, 75))
    reach = OUTLIER_RANGES * (third - first)
    if reach == 0:  # most values are the same, and the rule would call all others outliers
        reach = np.inf
    above, below = values > third + reach, values < first - reach
    if from_zero:
        below = np.zeros_like(below)
    usual = drawn[1:, ~above & ~below]
    low, high = 0 if from_zero else np.nanmin(usual), np.nanmax(usual)
    margin = 0.08 * (high - low) or 0.01
    axes.set_ylim(low if from_zero else low - margin, high + margin)
    style: Any = {"color": INK, "markersize": 5, "clip_on": False}
    for beyond, edge, marker in ((above, 1, "^"), (below, 0, "v")):
        if beyond.any():  # an empty line would still take space at (0, 0)
            edges = np.full(beyond.sum(), edge)
            transform = axes.get_xaxis_transform()
            axes.plot(positions[beyond], edges, marker, transform=transform, **style)


def _draw_bars(
    axes: Axes, positions: Array, bottom: Array, top: Array, width: float, **style: Any
) -> None:
    """Draw all bars as one path, so that the SVG stays small."""
    edges = np.column_stack([positions - width / 2, positions + width / 2]).ravel()
    gaps = np.full(len(positions), np.nan)
    values = np.column_stack([top, gaps]).ravel()[:-1]
    baseline = np.column_stack([bottom, gaps]).ravel()[:-1]
    axes.stairs(values, edges, baseline=baseline, fill=True, linewidth=0, **style)


def _malformed_share(day: dict[str, Any]) -> float:
    num_lines = day["num_rows"] + day["num_bad_rows"]
    share: float = day["num_bad_rows"] / num_lines if num_lines else 0.0
    return share


def _time_unit(median_s: float) -> str:
    """Return the largest unit of which a typical run takes at least two."""
    for unit, seconds in TIME_UNITS.items():
        if median_s >= 2 * seconds:
            return unit
    return "seconds"
