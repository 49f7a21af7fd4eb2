"""The evaluation report: one HTML page about a model that needs no other file.

It shows how well the model ranks and is calibrated, how it was trained, and on which data.
"""

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
    TablePlacement,
    imbalance,
    rank_totals,
    ranks_of,
)
from training.evaluation import report_plots
from training.evaluation.frequency_buckets import FrequencyBuckets
from training.evaluation.heatmap import heat_maps, values_not_seen
from training.evaluation.importance import Importance
from training.evaluation.metrics import (
    ECE_BINS,
    FINE_BINS,
    Metrics,
    MetricSums,
    gain_curve,
    skill_warnings,
)
from training.inference.bundle import Bundle
from training.models.footprint import Footprint
from training.servers.traffic import MB, TrafficFile

TEMPLATES = Path(__file__).parent / "templates"
LIFT_AT = (0.1, 0.3)  # shares of rows, highest scores first
NOT_SEEN_IN_LAST = (1, 3, 7, 14, 30, 90)  # days
MAX_WARNINGS = 8  # further warnings are folded
MAX_OPERATORS = 20
MAX_COLUMNS = 40  # most important columns that the page shows
MAX_DAYS = 100  # last days that the data section shows one by one; a page of all may have 40 MB


@dataclass(frozen=True)
class Report:
    """The contents of the report.

    Attributes:
        bundle: The model.
        data: The contents of data.json.
        history: The training curves.
        footprint: Its footprint.
        metrics: Split -> metrics.
        metrics_by_day: Split -> day -> metrics.
        buckets: The frequency buckets, None if there is no categorical feature.
        test_metrics_by_bucket: Frequency bucket -> metrics of its test rows.
        test_sums: The sums of all test rows.
        importance: The importance of the columns.
        operators: The operators that took the most time in training: operator, calls, cpu_time_us,
            cpu_share and, with a GPU, cuda_time_us. None if training was not profiled.
        plan: The placement of the embedding tables, empty if they were on one rank.
        traffic: What the parameter servers have sent; None if the model was trained without them.
    """

    bundle: Bundle
    data: dict[str, Any]
    history: pl.DataFrame
    footprint: Footprint
    metrics: dict[str, Metrics]
    metrics_by_day: dict[str, dict[int, Metrics]]
    buckets: FrequencyBuckets | None
    test_metrics_by_bucket: dict[str, Metrics]
    test_sums: MetricSums
    importance: Importance
    operators: pl.DataFrame | None
    plan: Sequence[TablePlacement] = ()
    traffic: TrafficFile | None = None


def write_report(path: Path, report: Report) -> None:
    """Render the page.

    It contains no time, no path of this machine and no reference to anything outside the file, so
    the same data gives the same bytes.
    """
    environment = page_environment(TEMPLATES)
    environment.filters.update(day_ranges=day_ranges, ranks_of=ranks_of, mib=_mib)
    manifest, vocabulary = report.bundle.manifest, report.data["vocabulary"]
    columns = report.data["columns"]
    last_days = report.data["days"][-MAX_DAYS:]
    html = environment.get_template("report.html.j2").render(
        version=report.bundle.version,
        metrics=report.metrics,
        data=report.data,
        skill_warnings=skill_warnings(report.metrics),
        max_warnings=MAX_WARNINGS,
        last_days=last_days,
        heat_maps=heat_maps(report.data | {"days": last_days}),
        not_seen=values_not_seen(vocabulary, NOT_SEEN_IN_LAST) if vocabulary else {},
        split_rows=split_rows(report),
        footprint=report.footprint,
        dense=[column for column in columns if column["kind"] == "dense"],
        categorical=[column for column in columns if column["kind"] == "categorical"],
        params={
            section: {name: param_text(value) for name, value in values.items()}
            for section, values in manifest.params.items()
        },
        manifest=manifest,
        num_members=manifest.num_members,
        ece_bins=ECE_BINS,
        frequency_bucket_column=report.buckets.column if report.buckets else None,
        bucket_rows=bucket_rows(report),
        importance=report.importance,
        max_columns=MAX_COLUMNS,
        operators=operator_rows(report.operators),
        plan=sorted(report.plan, key=lambda line: -line.num_rows * line.dim),
        rank_totals=[_mib(num_bytes) for num_bytes in rank_totals(report.plan)],
        imbalance=imbalance(report.plan) if report.plan else None,
        traffic=report.traffic,
        megabyte=MB,
        lifts=lifts(report) if report.metrics["test"]["auc"] is not None else [],
        # Our own SVG; matplotlib has escaped the texts in it.
        figures={name: Markup(svg) for name, svg in figures(report).items()},  # noqa: S704
    )
    path.write_text(html, encoding="utf-8")


def _mib(num_bytes: int) -> float:
    return num_bytes / MIB


def figures(report: Report) -> dict[str, str]:
    """Draw the figures of the page.

    Returns:
        Name -> SVG. ROC and gain are left out if the test rows have one class only, the AUC curve
        if the validation rows have.
    """
    groups = report.test_sums.groups(FINE_BINS)
    svgs = {
        "loss": report_plots.training_curve(report.history, "loss", "logloss"),
        "accuracy": report_plots.training_curve(report.history, "accuracy", "accuracy at 0.5"),
        "calibration": report_plots.calibration(report.test_sums.groups(ECE_BINS)),
        "distribution": report_plots.score_distribution(groups),
        "days": report_plots.days(report.data["days"][-MAX_DAYS:]),
    }
    if report.importance.columns:
        svgs["importance"] = report_plots.importance(report.importance.columns[:MAX_COLUMNS])
    if report.history["auc"].count():
        svgs["auc"] = report_plots.training_curve(report.history, "auc", "AUC")
    if report.test_metrics_by_bucket:
        svgs["frequency_buckets"] = report_plots.frequency_buckets(
            report.test_metrics_by_bucket, report.metrics["test"]
        )
    auc = report.metrics["test"]["auc"]
    if auc is not None:
        svgs["roc"] = report_plots.roc(groups, auc)
        svgs["gain"] = report_plots.gain(groups, LIFT_AT)
    return svgs


def lifts(report: Report) -> list[tuple[float, float]]:
    """Compute the gain at the shares of rows LIFT_AT.

    Returns:
        For each a share of the rows, highest scores first, and the share of all clicks that these
        rows have.
    """
    rows, clicks = gain_curve(report.test_sums.groups(FINE_BINS))
    return [(share, float(np.interp(share, rows, clicks))) for share in LIFT_AT]


def split_rows(report: Report) -> list[dict[str, Any]]:
    """Make the rows of the table of splits: each split and, if it has several days, its days."""
    rows = []
    for split in ("train", "valid", "test"):
        total = report.data["splits"][split]
        by_day = report.metrics_by_day.get(split, {})
        rows.append(
            {
                "name": split,
                **total,
                **report.metrics.get(split, {}),
                "days": day_ranges(total["days"]),
            }
        )
        if len(by_day) > 1:
            rows += [{"name": "", "days": str(day), **values} for day, values in by_day.items()]
    return rows


def bucket_rows(report: Report) -> list[dict[str, Any]]:
    """Make the rows of the table of frequency buckets, rarer ids first, then all test rows."""
    if report.buckets is None:
        return []
    num_ids = dict(zip(report.buckets.names, report.buckets.num_ids, strict=True))
    rows = [
        {"name": name, "num_ids": num_ids[name], **values}
        for name, values in report.test_metrics_by_bucket.items()
    ]
    return [*rows, {"name": "all", "num_ids": sum(num_ids.values()), **report.metrics["test"]}]


def operator_rows(operators: pl.DataFrame | None) -> list[dict[str, Any]]:
    """Select the operators that took the most time, GPU time if there was a GPU."""
    if operators is None:
        return []
    by = "cuda_time_us" if "cuda_time_us" in operators.columns else "cpu_time_us"
    return operators.sort(by, "operator", descending=[True, False]).head(MAX_OPERATORS).to_dicts()


def day_ranges(days: list[int]) -> str:
    """Format day numbers as ranges: [0, 1, 2, 5] -> "0–2, 5"."""
    present = {*days}
    starts = [day for day in days if day - 1 not in present]
    ends = [day for day in days if day + 1 not in present]
    return ", ".join(
        str(start) if start == end else f"{start}–{end}"
        for start, end in zip(starts, ends, strict=True)
    )


def param_text(value: Any) -> str:
    """Format a value of params.yaml on one line."""
    if isinstance(value, dict):  # an optimizer, for example: its name, then the rest
        rest = [f"{name} {param_text(inner)}" for name, inner in value.items() if name != "name"]
        return ", ".join([str(value["name"]), *rest] if "name" in value else rest)
    if isinstance(value, list):
        return ", ".join(param_text(inner) for inner in value)
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
