"""Quality of the shipped defaults beside simpler and other models, on a time split of any log.

    python benchmarks/quality.py [LOG] [--only NAME ...] [--seeds 5] [--schema criteo]

LOG is a log file, or `sample`, the generated log of --rows rows. Without it, it is
criteo/kaggle_span_80k.tsv of the folder REAL_LOGS, if that is set; else `sample`. The log goes
through collect, ingest and features with the shipped params.yaml. The models are trained on the
first six of seven days; the last is half validation, half test. Everything is chosen on validation;
test is reported once. The lines have mean and standard deviation, over the seeds, of AUC, logloss
and ECE, and the CPU time of a seed.

    constant      the click rate of the training rows
    logistic      one-hot logistic regression (scikit-learn) on the same ids and numbers
    LightGBM      raw numbers, target and count encodings; left out unless lightgbm is installed
    reference     this project's DLRM, trained as facebookresearch/dlrm does: SGD 0.1, batch 128,
                  one epoch, an id for every value
    ours          the shipped defaults
    quality       the same with `preset: quality`
"""

import argparse
import importlib.util
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from peers import with_sklearn

from common.artifact import Artifact
from common.bundle_layout import MODEL
from common.config.params import Params, load_params, read_params_preset
from common.layout import FEATURES, PARQUET, RAW
from features.collect.stage import BUILT_IN, SAMPLE_LOG, collect
from features.dataset.stage import build_features
from features.encode.feature_state import FeatureState
from features.ingest.stage import ingest, used_shards
from features.schema.schema import load_schema
from training.evaluation import metrics
from training.inference.bundle import load_bundle
from training.inference.score import score
from training.loop.batches import Batches, Rows
from training.stage import train

SPLITS = ("train", "valid", "test")
NAMES = ("constant", "logistic", "LightGBM", "reference", "ours", "quality")
SEEDLESS = {"constant", "logistic"}
SGD = {"name": "sgd", "lr": 0.1}
REFERENCE: dict[str, dict[str, Any]] = {
    "features": {"min_count": 1},
    "model": {"standardise": False},
    "train": {
        "batch_size": 128,
        "epochs": 1,
        "ensemble_size": 1,
        "weight_averaging": False,
        "dense_optimizer": SGD,
        "embedding_optimizer": SGD,
    },
}
FIGURES = ("auc", "logloss", "ece")
SEED_STEP = 100  # more than the members of an ensemble, whose seeds follow each other

Scores = tuple[NDArray[Any], NDArray[Any]]  # of the validation and of the test rows


def with_values(params: Params, **sections: dict[str, Any]) -> Params:
    """Return the parameters with other values in some sections."""
    values = params.model_dump(by_alias=True)
    for section, changes in sections.items():
        values[section] |= changes
    return Params.model_validate(values)


def make_features(params: Params, root: Path) -> None:
    """Run collect, ingest and features."""
    with redirect_stdout(StringIO()):
        for stage in (collect, ingest, build_features):
            stage(params, root)


def train_and_score(params: Params, root: Path, seed: int) -> Scores:
    """Train with a seed and return the scores of the validation and test rows."""
    with redirect_stdout(StringIO()):
        train(with_values(params, train={"seed": seed}), root)
    bundle = load_bundle(root / MODEL)
    valid, test = (
        score(bundle, pl.read_parquet(root / FEATURES / split / "*.parquet"))
        for split in SPLITS[1:]
    )
    return valid, test


def encoded(root: Path) -> tuple[list[Rows], list[int]]:
    """Return the rows of each split, and the cardinalities of their ids."""
    state = FeatureState.load(root / FEATURES / "state")
    features = Artifact.open(root / FEATURES)

    def rows(split: str) -> Rows:
        return next(
            Batches(features.paths_in(split), state.schema, batch_size=1 << 30).steps(0, 1)
        ).rows

    return [rows(split) for split in SPLITS], state.cardinalities


def raw_rows(root: Path, sizes: list[int]) -> list[pl.DataFrame]:
    """Return the typed columns of each split; the splits follow each other in time."""
    parquet = Artifact.open(root / PARQUET)
    rows = pl.concat(
        [pl.read_parquet(parquet.path(shard.parquet)) for shard in used_shards(parquet)]
    )
    return [rows.slice(sum(sizes[:k]), size) for k, size in enumerate(sizes)]


def scorer(
    name: str, params: Params, root: Path, splits: list[Rows], cardinalities: list[int]
) -> Callable[[int], Scores] | None:
    """Return the function from a seed to the scores of a contender.

    None for a peer that is not installed, with a message.
    """
    if name == "constant":
        rate = float(splits[0].labels.double().mean())
        constant = tuple(np.full(len(rows.labels), rate) for rows in splits[1:])
        return lambda _: constant
    if name == "logistic":
        return lambda _: with_sklearn.scores(*splits, cardinalities)
    if name == "LightGBM":
        return with_lightgbm_scorer(params, root, splits)
    if name == "reference":
        reference = with_values(params, **REFERENCE)
        make_features(reference, root / "reference")
        return lambda seed: train_and_score(reference, root / "reference", seed)
    preset = read_params_preset("quality") if name == "quality" else {}
    chosen = with_values(params, **preset)
    return lambda seed: train_and_score(chosen, root, seed)


def with_lightgbm_scorer(
    params: Params, root: Path, splits: list[Rows]
) -> Callable[[int], Scores] | None:
    """Return the function from a seed to the scores of LightGBM; None if it is not installed."""
    if not importlib.util.find_spec("lightgbm"):
        print("LightGBM is left out: pip install lightgbm", file=sys.stderr)
        return None
    from peers import with_lightgbm

    raw = raw_rows(root, [len(rows.labels) for rows in splits])
    schema, threads = load_schema(params.data.schema_name), num_threads()
    setting = with_lightgbm.choose(raw, schema, threads)
    return lambda seed: with_lightgbm.scores(raw, schema, setting, seed, threads)


def num_threads() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def gap(root: Path, splits: list[Rows], rate: float) -> list[tuple[float, float]]:
    """Return the logloss of the constant and of the true probabilities, for valid and test."""
    truth = pl.read_parquet(root / RAW / f"{SAMPLE_LOG}.truth.parquet")["probability"].to_numpy()
    ends = np.cumsum([len(rows.labels) for rows in splits])

    def logloss(rows: Rows, scores: NDArray[Any]) -> float:
        return float(metrics.metrics_of_rows(rows.labels.numpy(), scores)["logloss"] or 0)

    return [
        (logloss(rows, np.full(len(rows.labels), rate)), logloss(rows, truth[start:end]))
        for rows, start, end in zip(splits[1:], ends[:-1], ends[1:], strict=True)
    ]


def run(params: Params, root: Path, names: list[str], num_seeds: int) -> None:
    """Train and evaluate the contenders, and print a line for each and split."""
    make_features(params, root)
    splits, cardinalities = encoded(root)
    print(
        "rows: "
        + ", ".join(
            f"{split} {len(rows.labels):,}" for split, rows in zip(SPLITS, splits, strict=True)
        )
    )
    generated = params.data.source == BUILT_IN
    gaps = gap(root, splits, float(splits[0].labels.double().mean())) if generated else []
    found: dict[str, list[list[metrics.Metrics]]] = {}
    for name in names:
        scores_of = scorer(name, params, root, splits, cardinalities)
        if scores_of is None:
            continue
        seeds = [1] if name in SEEDLESS else [1 + SEED_STEP * k for k in range(num_seeds)]
        started = time.process_time()
        runs = [scores_of(seed) for seed in seeds]
        cpu_s = (time.process_time() - started) / len(seeds)
        found[name] = [
            [metrics.metrics_of_rows(rows.labels.numpy(), s[k]) for s in runs]
            for k, rows in enumerate(splits[1:])
        ]
        ends = gaps[0] if generated else None
        print(f"{line(f'valid {name}', found[name][0], ends)}  CPU {cpu_s:.1f} s", flush=True)
    for name, of_splits in found.items():
        print(line(f"test  {name}", of_splits[1], gaps[1] if generated else None))


def log_of(given: str | None) -> str:
    """Return the log to train on, for data.source."""
    if given is not None:
        return given if given == BUILT_IN else str(Path(given).resolve())
    if folder := os.environ.get("REAL_LOGS"):
        return str(Path(folder, "criteo/kaggle_span_80k.tsv").resolve())
    return BUILT_IN


def line(name: str, runs: list[metrics.Metrics], ends: tuple[float, float] | None) -> str:
    """Format the metrics of some runs; ends: the logloss of the constant and of the optimum."""
    cells = [name.ljust(16)]
    for figure in FIGURES:
        values = np.array([run[figure] for run in runs], np.float64)
        cells.append(f"{figure} {values.mean():.4f} ±{values.std():.4f}")
    if ends:
        constant, optimum = ends
        mean_logloss = np.mean([run["logloss"] for run in runs])
        cells.append(f"gap closed {(constant - mean_logloss) / (constant - optimum):6.1%}")
    return "  ".join(cells)


def main() -> None:
    """Run the benchmark in a temporary folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("log", nargs="?", help="a log file, or sample")
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, default=NAMES, help="the models to train"
    )
    parser.add_argument("--schema", default="criteo", help="the schema of the log")
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each model")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the generated log")
    options = parser.parse_args()
    data = {"schema": options.schema, "source": log_of(options.log)}
    params = with_values(load_params(), data=data, sample={"num_rows": options.rows})
    scratch = Path(tempfile.mkdtemp())
    try:
        run(params, scratch, options.only, options.seeds)
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
