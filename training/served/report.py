"""The report of served traffic: one page that needs no other file."""

from pathlib import Path

from common.html.page import page_environment
from training.served.figures import ServedFigures

TEMPLATES = Path(__file__).parent / "templates"


def render_report(figures: ServedFigures) -> str:
    """Return the page as HTML. The same figures give the same bytes."""
    environment = page_environment(TEMPLATES)
    return environment.get_template("served.html.j2").render(figures=figures, main=figures.main)
