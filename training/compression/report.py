"""The report of a compression: one page that needs no other file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.files import replaced
from common.html.page import NONE, page_environment
from training.compression.compress_model import Steps
from training.compression.judge import Judged
from training.compression.statistics import groups_of_tables
from training.compression.variants import name_of
from training.inference.bundle import Bundle
from training.models.ensemble import members_of

TEMPLATES = Path(__file__).parent / "templates"
MIB = 1 << 20


@dataclass(frozen=True)
class Report:
    """The contents of the report.

    Attributes:
        original: The bundle that was compressed.
        compressed: The compressed bundle.
        steps: What was done.
        rows: The models that were judged; the original is the first.
    """

    original: Bundle
    compressed: Bundle
    steps: Steps
    rows: Sequence[Judged]


def write_report(path: Path, report: Report) -> None:
    """Render the page."""
    environment = page_environment(TEMPLATES)
    environment.filters.update(mib=as_mib, change=change)
    compression = report.compressed.manifest.compression
    assert compression is not None
    html = environment.get_template("compression.html.j2").render(
        original=report.rows[0],
        rows=report.rows[1:],
        chosen=next(row for row in report.rows if row.is_chosen),
        name=name_of(report.steps),
        version=report.compressed.version,
        compression=compression,
        kept=[
            (tables.num_rows, kept)
            for tables, kept in zip(
                groups_of_tables(members_of(report.original.model)[0]),
                compression.kept_rows,
                strict=True,
            )
        ],
    )
    with replaced(path) as scratch:
        scratch.write_text(html, encoding="utf-8")


def as_mib(num_bytes: int) -> float:
    """Return bytes as MiB."""
    return num_bytes / MIB


def change(new: float | None, old: float | None, digits: int = 5) -> str:
    """Format a difference with its sign."""
    if new is None or old is None:
        return NONE
    return f"{new - old:+.{digits}f}"
