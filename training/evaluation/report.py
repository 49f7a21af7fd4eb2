"""One self-contained HTML page about a model: how well it ranks and is calibrated, how it was trained, on what, and from what."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from markupsafe import Markup

from common.html.page import page_environment
from training.distributed.sharding.placement_report import (
    MIB,
    Line,
    imbalance,
    rank_totals,
    ranks_of,
)
from training.evaluation import metrics, report_plots
from training.evaluation.frequency_buckets import Bands
from training.evaluation.heatmap import heat_maps, not_seen_for
from training.inference.bundle import Bundle

TEMPLATES = Path(__file__).parent / "templates"
LIFT_AT = (0.1, 0.3)  # shares of rows for which the lift is told
NOT_SEEN_FOR = (1, 3, 7, 14, 30, 90)  # days
WARNINGS_SHOWN = 8  # the rest is folded
OPERATORS_SHOWN = 20


@dataclass(frozen=True)
class Report:
    """What the page tells.

    found: metrics.json; days: split -> day -> figures; bands, of_bands: of a column (None: there is none), band -> figures of test rows;
    test: the sums of the test rows; operators: where the time of training went (operator, calls, cpu_time_us, cpu_share and perhaps
    cuda_time_us), None if it was not profiled; plan: where the tables lay, if they were spread over ranks.
    """

    bundle: Bundle
    data: dict[str, Any]
    history: pl.DataFrame
    found: dict[str, metrics.Metrics]
    days: dict[str, dict[int, metrics.Metrics]]
    bands: Bands | None
    of_bands: dict[str, metrics.Metrics]
    test: metrics.Sums
    operators: pl.DataFrame | None
    plan: Sequence[Line] = ()


def write_report(path: Path, report: Report) -> None:
    """Render the page. No time, no path of the machine, no reference to anything outside the file; same data, same bytes."""
    environment = page_environment(TEMPLATES)
    environment.filters.update(spans=spans, ranks_of=ranks_of, mib=lambda n: n / MIB)
    manifest, vocabulary = report.bundle.manifest, report.data["vocabulary"]
    html = environment.get_template("report.html.j2").render(
        version=report.bundle.version,
        found=report.found,
        data=report.data,
        without_skill=metrics.without_skill(report.found),
        warnings_shown=WARNINGS_SHOWN,
        heat_maps=heat_maps(report.data),
        not_seen=not_seen_for(vocabulary, NOT_SEEN_FOR) if vocabulary else {},
        splits=split_rows(report),
        num_parameters=sum(parameter.numel() for parameter in report.bundle.model.parameters()),
        dense=[column for column in report.data["columns"] if column["kind"] == "dense"],
        categorical=[
            column for column in report.data["columns"] if column["kind"] == "categorical"
        ],
        params={
            section: {name: value(content) for name, content in values.items()}
            for section, values in manifest.params.items()
        },
        manifest=manifest,
        ece_bins=metrics.ECE_BINS,
        frequency_bucket_column=report.bands.column if report.bands else None,
        bands=band_rows(report),
        operators=operator_rows(report.operators),
        plan=sorted(report.plan, key=lambda line: -line.num_rows * line.dim),
        totals=[num_bytes / MIB for num_bytes in rank_totals(report.plan)],
        imbalance=imbalance(report.plan) if report.plan else None,
        lifts=lifts(report) if report.found["test"]["auc"] is not None else [],
        figures={name: Markup(svg) for name, svg in figures(report).items()},  # noqa: S704 - our own SVG; matplotlib escapes its texts
    )
    path.write_text(html, encoding="utf-8")


def figures(report: Report) -> dict[str, str]:
    """Name -> SVG. Without ROC and gain where the test rows have one class, without AUC curve where the validation rows do."""
    groups = report.test.pool(metrics.FINE_BINS)
    made = {
        "loss": report_plots.curves(report.history, "loss", "logloss"),
        "accuracy": report_plots.curves(report.history, "accuracy", "accuracy at 0.5"),
        "calibration": report_plots.calibration(report.test.pool(metrics.ECE_BINS)),
        "distribution": report_plots.score_distribution(groups),
        "days": report_plots.days(report.data["days"]),
    }
    if report.history["auc"].count():  # no validation rows of both classes, no curve
        made["auc"] = report_plots.curves(report.history, "auc", "AUC")
    if report.of_bands:
        made["bands"] = report_plots.bands(report.of_bands, report.found["test"])
    area = report.found["test"]["auc"]
    if area is not None:
        made |= {
            "roc": report_plots.roc_curve(groups, area),
            "gain": report_plots.gain_curve(groups, LIFT_AT),
        }
    return made


def lifts(report: Report) -> list[tuple[float, float]]:
    """(share of rows, share of the clicks in so many best scored rows)."""
    shown, caught = metrics.gain(report.test.pool(metrics.FINE_BINS))
    return [(at, float(np.interp(at, shown, caught))) for at in LIFT_AT]


def split_rows(report: Report) -> list[dict[str, Any]]:
    """Lines of the split table: each split, and below it its days where there are several."""
    lines = []
    for split in ("train", "valid", "test"):
        total = report.data["splits"][split]
        days = report.days.get(split, {})
        lines.append(
            {"name": split, **total, **report.found.get(split, {}), "days": spans(total["days"])}
        )
        if len(days) > 1:
            lines += [{"name": "", "days": str(day), **found} for day, found in days.items()]
    return lines


def band_rows(report: Report) -> list[dict[str, Any]]:
    """Lines of the table of bands, rarer ones first, and all test rows below them."""
    if report.bands is None:
        return []
    num_ids = dict(zip(report.bands.names, report.bands.num_ids, strict=True))
    lines = [
        {"name": name, "num_ids": num_ids[name], **found} for name, found in report.of_bands.items()
    ]
    return [*lines, {"name": "all", "num_ids": sum(num_ids.values()), **report.found["test"]}]


def operator_rows(operators: pl.DataFrame | None) -> list[dict[str, Any]]:
    """The operators that took the most time, of the GPU if there was one."""
    if operators is None:
        return []
    by = "cuda_time_us" if "cuda_time_us" in operators.columns else "cpu_time_us"
    return operators.sort(by, "operator", descending=[True, False]).head(OPERATORS_SHOWN).to_dicts()


def spans(days: list[int]) -> str:
    """[0, 1, 2, 5] -> "0–2, 5"."""
    starts = [day for day in days if day - 1 not in days]
    ends = [day for day in days if day + 1 not in days]
    return ", ".join(
        str(start) if start == end else f"{start}–{end}"
        for start, end in zip(starts, ends, strict=True)
    )


def value(content: Any) -> str:
    """A value of params.yaml in one line."""
    if isinstance(content, dict):  # an optimizer: its name, then the rest
        rest = [f"{name} {value(inner)}" for name, inner in content.items() if name != "name"]
        return ", ".join([str(content["name"]), *rest] if "name" in content else rest)
    if isinstance(content, list):
        return ", ".join(value(inner) for inner in content)
    return str(content).lower() if isinstance(content, bool) else str(content)
