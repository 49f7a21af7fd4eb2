"""Figures of the HTML pages: matplotlib figures as inline SVG.

Text stays text, and the page's CSS sets its font and all colours. The same data gives the same
bytes.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

# A figure is drawn in these placeholder colours, which are then replaced by the CSS variables of
# the same names.
NAMES = ("ink", "muted", "grid", "train", "valid", "test", "paper")
COLORS = {name: f"#{k:02}{k:02}{k:02}" for k, name in enumerate(NAMES, 1)}
INK, MUTED, GRID, TRAIN, VALID, TEST, PAPER = COLORS.values()
# The loss falls so far in the first tenth of a run that the rest would look flat, so the axes show
# the range after it.
LIMITS_AFTER = 0.1
# Sizes of a figure in inches; an inch is 72 units of the SVG.
WIDE, HALF, THIRD = (9.6, 2.6), (4.7, 3.0), (3.1, 2.6)
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
    """A figure that is being drawn.

    Attributes:
        figure: The matplotlib figure.
        axes: Its axes, one or an array of them.
        svg: The SVG text, set when the `drawing` block ends.
    """

    def __init__(self, figure: Figure, axes: Any) -> None:
        self.figure, self.axes, self.svg = figure, axes, ""


@contextmanager
def drawing(size: tuple[float, float], **subplots: Any) -> Iterator[Drawing]:
    """Open a figure, and turn it into SVG at the end of the block.

    Args:
        size: Width and height in inches.
        subplots: Arguments of `Figure.subplots`.
    """
    # The defaults come first, so that a user's matplotlibrc has no effect.
    with mpl.rc_context(mpl.rcParamsDefault | STYLE):
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
        result.svg = _inline_svg(file.getvalue())


def _inline_svg(svg: str) -> str:
    """Return the <svg> element without fixed size, unused ids and fonts, and with named colours."""
    svg = svg[svg.index("<svg") :].strip()
    for attribute in ("height", "width"):
        svg = re.sub(rf'(<svg[^>]*?) {attribute}="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    # The ids of markers, clip paths and collections stay, because others refer to them.
    svg = re.sub(r' id="(?![mpC][0-9a-f_]+")[^"]*"', "", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px var(--font)", svg)
    for name, color in COLORS.items():
        svg = svg.replace(color, f"var(--{name})")
    return svg


def legend(axes: Axes, ncols: int = 3) -> None:
    """Draw the legend above the axes."""
    axes.legend(
        ncols=ncols,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0.2,
        handlelength=1.4,
        columnspacing=1.4,
    )
