"""The report of served traffic: one page that needs no other file."""

from pathlib import Path

from common.files import replaced
from common.html.page import page_environment
from training.served.figures import ServedFigures

TEMPLATES = Path(__file__).parent / "templates"


def write_report(path: Path, figures: ServedFigures) -> None:
    """Write the page. The same figures give the same bytes."""
    with replaced(path) as scratch:
        scratch.write_text(render_report(figures), encoding="utf-8")


def render_report(figures: ServedFigures) -> str:
    """Return the page as HTML."""
    environment = page_environment(TEMPLATES)
    return environment.get_template("served.html.j2").render(figures=figures, main=figures.main)
