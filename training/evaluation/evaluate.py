"""The kept model on the validation and the test rows: metrics.json, every score, curves for `dvc plots`, and the report."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features.build import FEATURES
from features.files import DataError, read_json, replaced, sha256_file, write_json
from features.params import Params
from features.parquet import Writer
from features.progress import Progress
from training.bundle import HISTORY, MODEL, STATE, Bundle, load_bundle
from training.evaluation import metrics
from training.evaluation.report import Report, write_report
from training.score import score

EVALUATION = Path("artifacts/evaluation")
SPLITS = ("valid", "test")
SCORES = pl.Schema({"split": pl.String, "row": pl.UInt64, "label": pl.UInt8, "score": pl.Float32})
CURVE_POINTS = 400
BOOTSTRAP_SEED = 1  # not a parameter: an interval must not be shopped for


class Scored(NamedTuple):
    """Rows of a split in time order, and the day of each."""

    labels: NDArray[np.uint8]
    scores: NDArray[np.float32]
    days: NDArray[np.int64]


def evaluate(params: Params, root: Path) -> None:
    """artifacts/model and artifacts/features to artifacts/evaluation, replaced whole.

    Reading is streamed; a label, a score and a day per row (13 bytes) are held. Raises DataError for a bad bundle, or one that was
    trained on other features.
    """
    bundle = load_bundle(root / MODEL)
    _check_same_state(bundle, root)
    data = read_json(root / FEATURES / "data.json")
    num_rows = sum(data["splits"][split]["num_rows"] for split in SPLITS)
    with replaced(root / EVALUATION) as scratch, Progress("evaluate", num_rows, root) as progress:
        (scratch / "plots").mkdir(parents=True)
        with Writer(scratch / "scores.parquet", SCORES) as writer:
            scored = {split: _score_split(split, bundle, root / FEATURES / split, writer, progress) for split in SPLITS}
        found = {split: metrics.summary(rows.labels, rows.scores) for split, rows in scored.items()}
        test = scored["test"]
        found["test"] |= metrics.interval(test.labels, test.scores, params.evaluate.bootstrap_rounds, BOOTSTRAP_SEED)
        write_json(scratch / "metrics.json", found)
        history = pl.read_csv(root / MODEL / HISTORY)
        write_plots(scratch / "plots", history, test)
        days = {split: _per_day(rows) for split, rows in scored.items()}
        write_report(scratch / "report.html", Report(bundle, data, history, found, days, test.labels, test.scores))
    _print_summary(found)


def _check_same_state(bundle: Bundle, root: Path) -> None:
    path = root / FEATURES / STATE / "state.json"
    expected = bundle.manifest.files[f"{STATE}/state.json"]
    if not path.exists() or sha256_file(path) != expected:
        raise DataError(f"{path} is not the feature state that model {bundle.version} was trained with; run the train stage again")


def _score_split(split: str, bundle: Bundle, directory: Path, writer: Writer, progress: Progress) -> Scored:
    """Score day_NN.parquet after day_NN.parquet, a row group at a time."""
    labels, scores, days = [np.empty(0, np.uint8)], [np.empty(0, np.float32)], [np.empty(0, np.int64)]
    num_rows = 0
    for day, frame in _row_groups(directory):
        labels.append(frame[bundle.state.schema.label].to_numpy())
        scores.append(score(bundle, frame))
        days.append(np.full(frame.height, day))
        rows = np.arange(num_rows, num_rows + frame.height, dtype=np.uint64)
        writer.write(pl.DataFrame({"split": [split] * frame.height, "row": rows, "label": labels[-1], "score": scores[-1]}, schema=SCORES))
        num_rows += frame.height
        progress.update(frame.height)
    if not num_rows:
        raise DataError(f"{directory}: no {split} rows; run the features stage with a longer log or a larger features.split.{split}_days")
    result = Scored(np.concatenate(labels), np.concatenate(scores), np.concatenate(days))
    if len(np.unique(result.labels)) == 1:
        print(f"evaluate  every {split} row has label {result.labels[0]}: no AUC and no normalised entropy", flush=True)
    return result


def _row_groups(directory: Path) -> Iterator[tuple[int, pl.DataFrame]]:
    for path in sorted(directory.glob("day_*.parquet")):
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                yield int(path.stem.removeprefix("day_")), pl.DataFrame(file.read_row_group(group))


def _per_day(rows: Scored) -> dict[int, metrics.Metrics]:
    """The figures of each day, and its label rate and mean score."""
    days = {}
    for day in np.unique(rows.days).tolist():
        labels, scores = rows.labels[rows.days == day], rows.scores[rows.days == day]
        shape: metrics.Metrics = {"label_rate": float(labels.mean()), "mean_score": float(scores.mean(dtype=np.float64))}
        days[day] = metrics.summary(labels, scores) | shape
    return days


def write_plots(directory: Path, history: pl.DataFrame, test: Scored) -> None:
    """train.csv and valid.csv (the curves), calibration.csv, and roc.csv (just its header where the test rows have one class)."""
    for split in ("train", "valid"):
        history.filter(pl.col("split") == split).drop("split").write_csv(directory / f"{split}.csv")
    groups = metrics.pool(test.labels, test.scores, CURVE_POINTS)
    fpr, tpr = metrics.roc(groups) if 0 < groups.clicks.sum() < groups.rows.sum() else (np.empty(0), np.empty(0))
    pl.DataFrame({"fpr": fpr, "tpr": tpr}).write_csv(directory / "roc.csv")
    bins = metrics.pool(test.labels, test.scores, metrics.ECE_BINS)
    calibration = {"mean_score": bins.score, "click_rate": bins.clicks / bins.rows, "num_rows": bins.rows.astype(np.int64)}
    pl.DataFrame(calibration).write_csv(directory / "calibration.csv")


def _print_summary(found: dict[str, Any]) -> None:
    for split in SPLITS:
        auc = "none" if found[split]["auc"] is None else f"{found[split]['auc']:.4f}"
        print(f"evaluate  {split:<5}  AUC {auc}  logloss {found[split]['logloss']:.4f}  {found[split]['num_rows']:,} rows", flush=True)
