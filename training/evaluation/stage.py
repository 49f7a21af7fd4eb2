"""The evaluate stage: score the validation and test rows with the trained model.

artifacts/evaluation/ then contains:

    metrics.json      split -> metrics (training/evaluation/metrics.py), and the footprint of the
                      model (training/models/footprint.py)
    scores.parquet    the score of every row
    plots/            small CSV tables for `dvc plots`; importance.csv has the importance of columns
    report.html       one page for people
    manifest.json     the size and the hash of each file (common/artifact.py)
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from common.artifact import Artifact, write_manifest
from common.bundle_layout import HISTORY, MODEL, MODEL_VERSION_KEY
from common.config.params import Params
from common.files import replaced, write_json
from common.layout import EVALUATION, FEATURES
from common.logs import get_logger
from common.parquet import ParquetWriter
from common.progress import Progress
from training.distributed.sharding.placement_report import PLACEMENT_FILE, read_placement
from training.evaluation import metrics
from training.evaluation.frequency_buckets import FrequencyBuckets, make_frequency_buckets
from training.evaluation.importance import Importance, measure_importance
from training.evaluation.metrics import Metrics, MetricSums
from training.evaluation.report import Report, write_report
from training.evaluation.score_split import SCORES, SplitSums, score_split
from training.inference.bundle import Bundle, check_same_state, load_bundle
from training.loop.training_curves import TOP_OPERATORS, read_history
from training.models.footprint import footprint_of
from training.servers.traffic import read_traffic

log = get_logger("evaluate")

SPLITS = ("valid", "test")
FOOTPRINT = "footprint"  # the key in metrics.json
CURVE_POINTS = 400


def evaluate(params: Params, root: Path) -> None:
    """Evaluate the bundle in artifacts/model, and replace artifacts/evaluation.

    Memory does not grow with the rows: they are sorted by score in a file
    (training/evaluation/external_sort.py).

    Args:
        params: The parameters of params.yaml.
        root: The project folder.

    Raises:
        DataError: The bundle is damaged, or was trained with other features.
        ConfigError: evaluate.frequency_bucket_column is not a categorical feature.
    """
    bundle = load_bundle(root / MODEL)
    features = Artifact.open(root / FEATURES)
    check_same_state(bundle, features)
    data = features.read_json("data.json")
    buckets = make_frequency_buckets(
        params.evaluate.frequency_bucket_column, bundle.state, features
    )
    with replaced(root / EVALUATION) as scratch, features.unchanged():
        plots = scratch / "plots"
        plots.mkdir(parents=True)
        sums = _score_splits(bundle, features, data, buckets, root, scratch)

        def compute(sums_of_rows: MetricSums) -> Metrics:
            return metrics.compute_metrics(sums_of_rows) | metrics.bootstrap_intervals(
                sums_of_rows, params.evaluate.bootstrap_rounds, metrics.BOOTSTRAP_SEED
            )

        overall = {split: compute(sums[split].overall) for split in SPLITS}
        by_day = {
            split: {day: compute(day_sums) for day, day_sums in sums[split].days.items()}
            for split in SPLITS
        }
        by_bucket = {
            split: {
                name: compute(bucket_sums)
                for name, bucket_sums in sums[split].frequency_buckets.items()
            }
            for split in SPLITS
        }
        history = read_history(root / MODEL / HISTORY)
        footprint = footprint_of(bundle.model)
        write_json(scratch / "metrics.json", {**overall, FOOTPRINT: asdict(footprint)})
        write_plots(plots, history, sums["test"].overall)
        write_table(plots / "days.csv", "day", by_day)
        write_table(plots / "frequency_buckets.csv", "frequency_bucket", by_bucket)
        importance = measure_importance(bundle, features)
        write_importance(plots / "importance.csv", importance)
        report = Report(
            bundle=bundle,
            data=data,
            history=history,
            footprint=footprint,
            metrics=overall,
            metrics_by_day=by_day,
            buckets=buckets,
            test_metrics_by_bucket=by_bucket["test"],
            test_sums=sums["test"].overall,
            importance=importance,
            operators=_profiled_operators(params, root),
            plan=read_placement(root / MODEL / PLACEMENT_FILE),
            traffic=read_traffic(root, bundle.version),
        )
        write_report(scratch / "report.html", report)
        write_manifest(scratch, {"model": bundle.version})
    _log_summary(overall)


def _score_splits(
    bundle: Bundle,
    features: Artifact,
    data: dict[str, Any],
    buckets: FrequencyBuckets | None,
    root: Path,
    scratch: Path,
) -> dict[str, SplitSums]:
    num_rows = sum(data["splits"][split]["num_rows"] for split in SPLITS)
    about = {MODEL_VERSION_KEY: bundle.version}
    with (
        Progress("evaluate", num_rows, root) as progress,
        ParquetWriter(scratch / "scores.parquet", SCORES, metadata=about) as writer,
    ):
        return {
            split: score_split(split, features, bundle, buckets, writer, progress, scratch)
            for split in SPLITS
        }


def _profiled_operators(params: Params, root: Path) -> pl.DataFrame | None:
    path = root / TOP_OPERATORS
    return pl.read_csv(path, glob=False) if params.train.profile and path.exists() else None


def write_plots(directory: Path, history: pl.DataFrame, test: MetricSums) -> None:
    """Write the tables for `dvc plots`.

    They are train.csv and valid.csv (the training curves; of an ensemble, the mean of the members
    that reached a step), calibration.csv and roc.csv. If the test rows have one class only, roc.csv
    has a header and no rows.

    Args:
        directory: Where the tables are written.
        history: The training curves, as `read_history` returns them.
        test: The sums of the test rows.
    """
    for split, columns in (("train", ["loss", "accuracy"]), ("valid", ["loss", "accuracy", "auc"])):
        points = history.filter(pl.col("split") == split)
        curve = points.group_by("step", maintain_order=True).agg(pl.col(columns).mean())
        curve.write_csv(directory / f"{split}.csv")
    fpr, tpr = np.empty(0), np.empty(0)
    if metrics.auc(test) is not None:
        fpr, tpr = metrics.roc_curve(test.groups(metrics.FINE_BINS))
    shown = np.linspace(0, len(fpr) - 1, min(len(fpr), CURVE_POINTS)).round().astype(np.int64)
    pl.DataFrame({"fpr": fpr[shown], "tpr": tpr[shown]}).write_csv(directory / "roc.csv")
    bins = test.groups(metrics.ECE_BINS)
    calibration = {
        "mean_score": bins.score,
        "click_rate": bins.clicks / bins.rows,
        "num_rows": bins.unweighted_rows.astype(np.int64),
    }
    pl.DataFrame(calibration).write_csv(directory / "calibration.csv")


def write_table(path: Path, name: str, metrics_of: dict[str, dict[Any, Metrics]]) -> None:
    """Write metrics as CSV, one row for each split and day or frequency bucket.

    Args:
        path: The file.
        name: Name of the second column; the first is `split`, then follows one for each metric.
        metrics_of: Split -> day or bucket -> metrics.
    """
    rows = [
        {"split": split, name: key, **values}
        for split, metrics_of_split in metrics_of.items()
        for key, values in metrics_of_split.items()
    ]
    pl.DataFrame(rows, infer_schema_length=None).write_csv(path)


def write_importance(path: Path, importance: Importance) -> None:
    """Write the importance of each column as CSV, the most important first.

    Args:
        path: The file.
        importance: The importance. The columns of the file are column, kind, logloss_rise and
            standard_error, in nats.
    """
    names = ("column", "kind", "logloss_rise", "standard_error")
    rows = [(one.column, one.kind, *one.rise) for one in importance.columns]
    types = (pl.String, pl.String, pl.Float64, pl.Float64)
    pl.DataFrame(rows, dict(zip(names, types, strict=True)), orient="row").write_csv(path)


def _log_summary(metrics_of: dict[str, Metrics]) -> None:
    for split, values in metrics_of.items():
        if values["auc"] is None:
            log.warning(
                f"every {split} row has label {values['label_rate']:.0f}: "
                "there is no AUC and no normalised entropy"
            )
    for line in metrics.skill_warnings(metrics_of):
        log.warning(line)
    for split, values in metrics_of.items():
        auc = "none" if values["auc"] is None else f"{values['auc']:.4f}"
        log.info(
            f"{split:<5}  AUC {auc}  logloss {values['logloss']:.4f}  {values['num_rows']:,} rows"
        )
