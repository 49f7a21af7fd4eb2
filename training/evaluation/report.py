"""One self-contained HTML page about a model: how well it ranks and is calibrated, how it was trained, on what, and from what."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from training.bundle import Bundle
from training.evaluation import metrics, plots
from training.evaluation.heat import heat_maps, not_seen_for

TEMPLATES = Path(__file__).parent / "templates"
NONE = "–"
LIFT_AT = (0.1, 0.3)  # shares of rows for which the lift is told
NOT_SEEN_FOR = (1, 3, 7, 14, 30, 90)  # days
WARNINGS_SHOWN = 8  # the rest is folded


@dataclass(frozen=True)
class Report:
    """What the page tells. found: metrics.json; days: split -> day -> metrics with label_rate and mean_score; rows of the test split."""

    bundle: Bundle
    data: dict[str, Any]
    history: pl.DataFrame
    found: dict[str, metrics.Metrics]
    days: dict[str, dict[int, metrics.Metrics]]
    labels: NDArray[np.uint8]
    scores: NDArray[np.float32]


def write_report(path: Path, report: Report) -> None:
    """Render the page. No time, no path of the machine, no reference to anything outside the file; same data, same bytes."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(count=count, share=share, figure=figure, spans=spans)
    manifest, vocabulary = report.bundle.manifest, report.data["vocabulary"]
    html = environment.get_template("report.html.j2").render(
        version=report.bundle.version,
        found=report.found,
        data=report.data,
        warnings_shown=WARNINGS_SHOWN,
        heat_maps=heat_maps(report.data),
        not_seen=not_seen_for(vocabulary, NOT_SEEN_FOR) if vocabulary else {},
        splits=split_rows(report),
        num_parameters=sum(parameter.numel() for parameter in report.bundle.model.parameters()),
        dense=[column for column in report.data["columns"] if column["kind"] == "dense"],
        categorical=[column for column in report.data["columns"] if column["kind"] == "categorical"],
        params={section: {name: value(content) for name, content in values.items()} for section, values in manifest.params.items()},
        manifest=manifest,
        ece_bins=metrics.ECE_BINS,
        lifts=lifts(report) if report.found["test"]["auc"] is not None else [],
        figures={name: Markup(svg) for name, svg in figures(report).items()},  # noqa: S704 - our own SVG; matplotlib escapes its texts
    )
    path.write_text(html, encoding="utf-8")


def figures(report: Report) -> dict[str, str]:
    """Name -> SVG. Without ROC and gain where the test rows have one class."""
    groups = metrics.pool(report.labels, report.scores, 500)
    made = {
        "loss": plots.curves(report.history, "loss", "logloss"),
        "accuracy": plots.curves(report.history, "accuracy", "accuracy at 0.5"),
        "calibration": plots.calibration(metrics.pool(report.labels, report.scores, metrics.ECE_BINS)),
        "distribution": plots.score_distribution(report.labels, report.scores),
        "days": plots.days(report.data["days"]),
    }
    area = report.found["test"]["auc"]
    if area is not None:
        made |= {"roc": plots.roc_curve(groups, area), "gain": plots.gain_curve(groups, LIFT_AT)}
    return made


def lifts(report: Report) -> list[tuple[float, float]]:
    """(share of rows, share of the clicks in so many best scored rows)."""
    shown, caught = metrics.gain(metrics.pool(report.labels, report.scores, None))
    return [(at, float(np.interp(at, shown, caught))) for at in LIFT_AT]


def split_rows(report: Report) -> list[dict[str, Any]]:
    """Lines of the split table: each split, and below it its days where there are several."""
    lines = []
    for split in ("train", "valid", "test"):
        total = report.data["splits"][split]
        days = report.days.get(split, {})
        expected_clicks = sum((found["mean_score"] or 0) * (found["num_rows"] or 0) for found in days.values())
        mean_score = expected_clicks / total["num_rows"] if days else None
        lines.append(
            {
                "name": split,
                "days": spans(total["days"]),
                "num_rows": total["num_rows"],
                "label_rate": total["label_rate"],
                **report.found.get(split, {}),
                "mean_score": mean_score,
            }
        )
        if len(days) > 1:
            lines += [{"name": "", "days": str(day), **found} for day, found in days.items()]
    return lines


def spans(days: list[int]) -> str:
    """[0, 1, 2, 5] -> "0–2, 5"."""
    starts = [day for day in days if day - 1 not in days]
    ends = [day for day in days if day + 1 not in days]
    return ", ".join(str(start) if start == end else f"{start}–{end}" for start, end in zip(starts, ends, strict=True))


def value(content: Any) -> str:
    """A value of params.yaml in one line."""
    if isinstance(content, dict):  # an optimizer: its name, then the rest
        rest = [f"{name} {value(inner)}" for name, inner in content.items() if name != "name"]
        return ", ".join([str(content["name"]), *rest] if "name" in content else rest)
    if isinstance(content, list):
        return ", ".join(value(inner) for inner in content)
    return str(content).lower() if isinstance(content, bool) else str(content)


def count(number: int | None) -> str:
    return NONE if number is None else f"{number:,}"


def share(number: float | None, digits: int = 1) -> str:
    """A percentage; a share that is not nothing is not shown as 0."""
    if number is None:
        return NONE
    return f"{number:.{digits}%}" if not 0 < number < 0.5 * 10.0 ** (-digits - 2) else f"< {10.0 ** (-digits - 2):.{digits}%}"


def figure(number: float | None, digits: int = 4) -> str:
    return NONE if number is None else f"{number:.{digits}f}"
