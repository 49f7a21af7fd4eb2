"""What the pages have in common: the templates' folder, style and wording of numbers. A page needs nothing but itself."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Path(__file__).parent / "templates"
NONE = "–"


def page_environment(*more: Path) -> Environment:
    """Templates are looked for here, then in the folders `more`; all that they print is escaped."""
    loader = FileSystemLoader([TEMPLATES, *more])
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(count=count, share=share, figure=figure)
    return environment


def count(number: int | None) -> str:
    return NONE if number is None else f"{number:,}"


def share(number: float | None, digits: int = 1) -> str:
    """A percentage; a share that is not nothing is not shown as 0."""
    if number is None:
        return NONE
    return (
        f"{number:.{digits}%}"
        if not 0 < number < 0.5 * 10.0 ** (-digits - 2)
        else f"< {10.0 ** (-digits - 2):.{digits}%}"
    )


def figure(number: float | None, digits: int = 4) -> str:
    return NONE if number is None else f"{number:.{digits}f}"
