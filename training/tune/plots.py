"""The figures of a study's report, as inline SVG."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from common.html.svg import INK, MUTED, TEST, THOUSANDS, TRAIN, VALID, WIDE, drawing, legend
from training.tune.choice import finished, result_of
from training.tune.journal import Trial
from training.tune.summary import Summary

# Of the minor ticks of a logarithmic axis, those of other digits would overlap.
THOUSANDS_OF_FEW_DIGITS = FuncFormatter(
    lambda value, _: f"{value:,.0f}" if f"{value:.0e}"[0] in "25" else ""
)
# A logarithmic axis of a smaller range would have a single label, or none.
MIN_RATIO_FOR_LOG = 5
TALL = (WIDE[0], 3.6)
COST_NAMES = {
    "macs": "multiply-adds",
    "bytes": "bytes",
    "parameters": "parameters",
    "bytes_per_row": "bytes per row",
}
X_LABELS = {
    "macs": "multiply-adds per row",
    "bytes": "bytes of all weights",
    "parameters": "parameters",
    "bytes_per_row": "bytes looked up per row",
}
# A logloss above the best one by more than this many times the range of the front is drawn as a
# triangle at the edge; an axis with a trial that diverged would flatten all others.
MAX_RANGES = 3.0
MARGIN = 0.08
EDGE = 0.98  # of the height of the axes


def draw_front(summary: Summary) -> str:
    """Draw the logloss of finished trials against the cost, with the front and params.yaml."""
    done, front, cost = finished(summary.trials), summary.front, summary.cost
    with drawing(TALL) as result:
        axes = result.axes
        others = [one for one in done if one not in front]
        low, high = _limits([result_of(one).logloss for one in done], front, summary)
        _points(axes, others, cost, high, color=MUTED, label="finished trial")
        points = [(getattr(result_of(one), cost), result_of(one).logloss) for one in front]
        axes.plot(*zip(*points, strict=True), "o-", color=TEST, label="Pareto front", zorder=3)
        for one, point in zip(front, points, strict=True):
            axes.annotate(
                str(one.number), point, (4, 5), textcoords="offset points", color=INK, fontsize=8
            )
        _confirmed(axes, summary, is_present=False)
        _confirmed(axes, summary, is_present=True)
        left, right = axes.dataLim.intervalx
        if right >= MIN_RATIO_FOR_LOG * left:
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(THOUSANDS_OF_FEW_DIGITS)
        axes.xaxis.set_major_formatter(THOUSANDS)
        axes.set_ylim(low, high)
        axes.set_xlabel(X_LABELS[cost])
        axes.set_ylabel("validation logloss")
        legend(axes, ncols=4)
    return result.svg


def _confirmed(axes: Axes, summary: Summary, *, is_present: bool) -> None:
    """Draw the mean and the spread of params.yaml, or of the confirmed trials."""
    shown = [
        one for one in summary.candidates if (one.trial is None) == is_present and not one.error
    ]
    if not shown:
        return
    name, marker, color = ("params.yaml", "D", VALID) if is_present else ("confirmed", "s", TRAIN)
    axes.errorbar(
        [one.costs[summary.cost] for one in shown],
        [one.logloss for one in shown],
        [one.spread for one in shown],
        fmt=marker,
        color=color,
        capsize=3,
        zorder=4 if is_present else 2,
        label=f"{name}, mean and spread of its seeds",
    )


def draw_course(summary: Summary) -> str:
    """Draw the logloss of each trial, and the lowest so far, over the rows trained."""
    trials = [one for one in summary.trials if one.outcome.result]
    with drawing(WIDE) as result:
        axes = result.axes
        rows, best = 0, float("inf")
        drawn: dict[bool, tuple[list[int], list[float]]] = {True: ([], []), False: ([], [])}
        course: tuple[list[int], list[float]] = ([], [])
        for one in trials:
            reached = result_of(one)
            rows += reached.rows
            xs, ys = drawn[reached.is_stopped]
            xs.append(rows)
            ys.append(reached.logloss)
            if not reached.is_stopped and reached.logloss < best:
                best = reached.logloss
            if best < float("inf"):
                course[0].append(rows)
                course[1].append(best)
        low, high = _limits([result_of(one).logloss for one in trials], summary.front, summary)
        for is_stopped, (xs, ys) in drawn.items():
            marker, label = ("x", "stopped trial") if is_stopped else ("o", "finished trial")
            clipped = [min(y, low + EDGE * (high - low)) for y in ys]
            axes.plot(xs, clipped, marker, color=TRAIN if is_stopped else MUTED, label=label, ms=5)
        axes.step(*course, where="post", color=TEST, label="lowest so far")
        axes.set_ylim(low, high)
        axes.xaxis.set_major_formatter(THOUSANDS)
        axes.set_xlabel("rows trained, by all trials together")
        axes.set_ylabel("validation logloss")
        legend(axes)
    return result.svg


def _limits(
    losses: Sequence[float], front: Sequence[Trial], summary: Summary
) -> tuple[float, float]:
    """Return the ends of the axis: from the lowest logloss to a little above the front."""
    shown = [result_of(one).logloss for one in front]
    shown += [one.logloss + one.spread for one in summary.candidates if not one.error]
    shown += [one.logloss - one.spread for one in summary.candidates if not one.error]
    low, high = min([*losses, *shown]), max(shown)
    typical = sorted(losses)[len(losses) // 2]
    high = max(high, min(max(losses), typical + MAX_RANGES * max(typical - low, 1e-6)))
    margin = MARGIN * max(high - low, 1e-6)
    return low - margin, high + margin


def _points(
    axes: Axes, trials: Sequence[Trial], cost: str, high: float, color: str, label: str
) -> None:
    inside = [one for one in trials if result_of(one).logloss <= high]
    outside = [one for one in trials if result_of(one).logloss > high]
    if inside:
        xs = [getattr(result_of(one), cost) for one in inside]
        axes.plot(
            xs, [result_of(one).logloss for one in inside], "o", color=color, ms=4, label=label
        )
    if outside:
        xs = [getattr(result_of(one), cost) for one in outside]
        axes.plot(
            xs,
            [EDGE] * len(xs),
            "^",
            color=color,
            transform=axes.get_xaxis_transform(),
            label="far above",
        )
