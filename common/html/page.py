"""The parts that all HTML pages share: templates, style sheet and formats of numbers.

A page contains its style and figures, and needs no other file.
"""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from common.printable import printable_lines

TEMPLATES = Path(__file__).parent / "templates"
NONE = "–"


def page_environment(*more: Path) -> Environment:
    """Create the Jinja environment of a page.

    Args:
        more: Folders with the page's own templates, which are searched after the shared ones.

    Returns:
        An environment that escapes every value, refuses undefined ones, and has the filters
        count, share and figure.
    """
    environment = Environment(
        loader=FileSystemLoader([TEMPLATES, *more]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_without_controls,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(count=count, share=share, figure=figure)
    return environment


def _without_controls(value: Any) -> Any:
    """Escape control characters of a text; what is HTML already stays as it is."""
    return printable_lines(value) if type(value) is str else value


def count(number: int | None) -> str:
    """Format a whole number with thousands separators."""
    return NONE if number is None else f"{number:,}"


def share(number: float | None, digits: int = 1) -> str:
    """Format a share as a percentage.

    A positive share that would be rounded to 0 is shown as less than the smallest step, "< 0.1%".

    Args:
        number: The share, 0 to 1.
        digits: Number of decimals.
    """
    if number is None:
        return NONE
    smallest = 10.0 ** (-digits - 2)
    if 0 < number < 0.5 * smallest:
        return f"< {smallest:.{digits}%}"
    return f"{number:.{digits}%}"


def figure(number: float | None, digits: int = 4) -> str:
    """Format a number with a fixed number of decimals."""
    return NONE if number is None else f"{number:.{digits}f}"
