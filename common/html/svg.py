"""The report's figures as inline SVG. Text stays text, and the page's CSS decides its font and all colours. Same data, same bytes."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

# drawn in these colours, which then give way to the page's CSS variables of the same names
NAMES = ("ink", "muted", "grid", "train", "valid", "test", "paper")
COLORS = {name: f"#{k:02}{k:02}{k:02}" for k, name in enumerate(NAMES, 1)}
INK, MUTED, GRID, TRAIN, VALID, TEST, PAPER = COLORS.values()
LIMITS_AFTER = 0.1  # the first tenth of a run falls so far that it would flatten the rest: the axes are fitted to what follows
WIDE, HALF, THIRD = (9.6, 2.6), (4.7, 3.0), (3.1, 2.6)  # inches; one inch is 72 units of the SVG
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "clickmill",
    "font.size": 8.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 8.5,
    "axes.edgecolor": GRID,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.left": False,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.labelcolor": INK,
    "text.parse_math": False,
}
THOUSANDS = FuncFormatter(lambda value, _: f"{value:,.0f}")


class Drawing:
    """A figure in the making; `svg` is filled when the `drawing` block ends."""

    def __init__(self, figure: Figure, axes: Any) -> None:
        self.figure, self.axes, self.svg = figure, axes, ""


@contextmanager
def drawing(size: tuple[float, float], **subplots: Any) -> Iterator[Drawing]:
    with mpl.rc_context(mpl.rcParamsDefault | STYLE):  # a person's own matplotlibrc must not show
        figure = Figure(figsize=size, layout="constrained")
        result = Drawing(figure, figure.subplots(**subplots))
        yield result
        file = io.StringIO()
        figure.savefig(
            file,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
        result.svg = _for_the_page(file.getvalue())


def _for_the_page(svg: str) -> str:
    """Only the <svg> element, without a fixed size, unused ids and fonts, its colours named."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(
        r'(<svg[^>]*?) width="[^"]*"',
        r"\1",
        re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1),
        count=1,
    )
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r' id="(?![mpC][0-9a-f_]+")[^"]*"', "", svg
    )  # ids that markers, clips and collections are referred to by stay
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px var(--font)", svg)
    for name, color in COLORS.items():
        svg = svg.replace(color, f"var(--{name})")
    return svg


def legend(axes: Axes, ncols: int = 3) -> None:
    """Above the axes."""
    axes.legend(
        ncols=ncols,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0.2,
        handlelength=1.4,
        columnspacing=1.4,
    )
