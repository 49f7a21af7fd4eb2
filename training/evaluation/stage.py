"""The kept model on the validation and the test rows: metrics.json, every score, curves for `dvc plots`, and the report."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from common.bundle_layout import HISTORY, MODEL, MODEL_VERSION_KEY, STATE
from common.config.params import Params
from common.files import DataError, read_json, replaced, sha256_file, write_json
from common.logs import get_logger
from common.parquet import Writer
from common.progress import Progress
from features.encode.stage import FEATURES
from training.distributed.sharding.placement_report import PLAN, read_plan
from training.evaluation import metrics
from training.evaluation.frequency_buckets import make_bands
from training.evaluation.metrics import Metrics, Sums
from training.evaluation.report import Report, write_report
from training.evaluation.score_split import SCORES, judge
from training.inference.bundle import Bundle, load_bundle
from training.loop.training_curves import TOP_OPERATORS, read_history

log = get_logger("evaluate")

EVALUATION = Path("artifacts/evaluation")
SPLITS = ("valid", "test")
CURVE_POINTS = 400
BOOTSTRAP_SEED = 1  # not a parameter: an interval must not be shopped for


def evaluate(params: Params, root: Path) -> None:
    """artifacts/model and artifacts/features to artifacts/evaluation, replaced whole.

    Memory does not grow with the rows: what has to be in order of score is sorted in a file (training/evaluation/external_sort.py). Raises
    DataError for a bad bundle, or one that was trained on other features, ConfigError for a frequency_bucket_column that is no categorical feature.
    """
    bundle = load_bundle(root / MODEL)
    _check_same_state(bundle, root)
    data = read_json(root / FEATURES / "data.json")
    bands = make_bands(
        params.evaluate.frequency_bucket_column, bundle.state, root / FEATURES / "train"
    )
    num_rows = sum(data["splits"][split]["num_rows"] for split in SPLITS)
    with replaced(root / EVALUATION) as scratch, Progress("evaluate", num_rows, root) as progress:
        (scratch / "plots").mkdir(parents=True)
        with Writer(
            scratch / "scores.parquet", SCORES, about={MODEL_VERSION_KEY: bundle.version}
        ) as writer:
            judged = {
                split: judge(
                    split, root / FEATURES / split, bundle, bands, writer, progress, scratch
                )
                for split in SPLITS
            }

        def figures(sums: Sums) -> Metrics:
            return metrics.figures(sums) | metrics.interval(
                sums, params.evaluate.bootstrap_rounds, BOOTSTRAP_SEED
            )

        found = {split: figures(rows.overall) for split, rows in judged.items()}
        write_json(scratch / "metrics.json", found)
        days = {
            split: {day: figures(sums) for day, sums in rows.days.items()}
            for split, rows in judged.items()
        }
        of_bands = {
            split: {band: figures(sums) for band, sums in rows.bands.items()}
            for split, rows in judged.items()
        }
        history = read_history(root / MODEL / HISTORY)
        write_plots(scratch / "plots", history, judged["test"].overall)
        write_table(scratch / "plots/days.csv", "day", days)
        write_table(scratch / "plots/bands.csv", "band", of_bands)
        operators = (
            pl.read_csv(root / TOP_OPERATORS)
            if params.train.profile and (root / TOP_OPERATORS).exists()
            else None
        )
        plan = read_plan(root / MODEL / PLAN)
        report = Report(
            bundle,
            data,
            history,
            found,
            days,
            bands,
            of_bands["test"],
            judged["test"].overall,
            operators,
            plan,
        )
        write_report(scratch / "report.html", report)
    _print_summary(found)


def _check_same_state(bundle: Bundle, root: Path) -> None:
    path = root / FEATURES / STATE / "state.json"
    expected = bundle.manifest.files[f"{STATE}/state.json"]
    if not path.exists() or sha256_file(path) != expected:
        raise DataError(
            f"{path} is not the feature state that model {bundle.version} was trained with; run the train stage again"
        )


def write_plots(directory: Path, history: pl.DataFrame, test: Sums) -> None:
    """train.csv and valid.csv (the curves), calibration.csv, and roc.csv (just its header where the test rows have one class)."""
    for split, without in (("train", ["split", "auc"]), ("valid", ["split"])):
        history.filter(pl.col("split") == split).drop(without).write_csv(directory / f"{split}.csv")
    fpr, tpr = (
        metrics.roc(test.pool(metrics.FINE_BINS))
        if metrics.auc(test) is not None
        else (np.empty(0), np.empty(0))
    )
    shown = np.linspace(0, len(fpr) - 1, min(len(fpr), CURVE_POINTS)).round().astype(np.int64)
    pl.DataFrame({"fpr": fpr[shown], "tpr": tpr[shown]}).write_csv(directory / "roc.csv")
    bins = test.pool(metrics.ECE_BINS)
    calibration = {
        "mean_score": bins.score,
        "click_rate": bins.clicks / bins.rows,
        "num_rows": bins.rows.astype(np.int64),
    }
    pl.DataFrame(calibration).write_csv(directory / "calibration.csv")


def write_table(path: Path, name: str, found: dict[str, dict[Any, Metrics]]) -> None:
    """split, day or band, and a column a figure."""
    lines = [
        {"split": split, name: key, **figures}
        for split, of_split in found.items()
        for key, figures in of_split.items()
    ]
    pl.DataFrame(lines, infer_schema_length=None).write_csv(path)


def _print_summary(found: dict[str, Metrics]) -> None:
    for split, figures in found.items():
        if figures["auc"] is None:
            log.info(
                f"every {split} row has label {figures['label_rate']:.0f}: no AUC and no normalised entropy"
            )
    for line in metrics.without_skill(found):
        log.info(f"{line}")
    for split, figures in found.items():
        auc = "none" if figures["auc"] is None else f"{figures['auc']:.4f}"
        log.info(
            f"{split:<5}  AUC {auc}  logloss {figures['logloss']:.4f}  {figures['num_rows']:,} rows"
        )
