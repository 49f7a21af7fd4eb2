"""A small pipeline on rows drawn here, up to a bundle whose model has random weights: real parts, seconds."""

from pathlib import Path

import numpy as np
import polars as pl
import torch

from common.bundle_layout import HISTORY, MODEL, STATE
from common.config.model import Model
from common.config.params import Params
from features.encode.feature_state import FeatureState
from features.encode.stage import FEATURES
from tests.factories import support
from tests.factories.support import CRITEO, make_params, plain_model
from training.inference.bundle import save_bundle
from training.models.dlrm import DLRM
from training.models.factory import build_model

NUM_ROWS, NUM_TEST = 4200, 300  # seven days, the last half day is test
HISTORY_CSV = "step,split,loss,accuracy,auc\n1,train,0.7,0.5,\n1,valid,0.69,0.55,0.6\n2,train,0.6,0.6,\n2,valid,0.61,0.62,0.65\n"


def log_lines(num_rows: int, seed: int, label: str | None = None) -> list[str]:
    """Rows in Criteo's format: some values missing, some dense ones negative, popular and rare categories; label fixed or drawn."""
    rng = np.random.default_rng(seed)
    columns = [np.full(num_rows, label) if label else rng.integers(0, 2, num_rows).astype(str)]
    columns += [
        np.where(rng.random(num_rows) < 0.2, "", rng.integers(-2, 1000, num_rows).astype(str))
        for _ in CRITEO.dense
    ]
    for i, _ in enumerate(CRITEO.categorical):
        values = np.array(
            [
                f"{value * 2654435761 % 2**32:08x}"
                for value in rng.zipf(1.3, num_rows) % (10 * (i + 1))
            ]
        )
        columns.append(np.where(rng.random(num_rows) < 0.1, "", values))
    return ["\t".join(row) for row in zip(*columns, strict=True)]


def small_params(log: Path, **model: object) -> Params:
    """The shipped parameters on this log, with odd small widths unless told otherwise."""
    widths = {"embedding_dim": 13, "bottom_mlp": [17], "top_mlp": [21, 12]}
    return make_params(
        data__source=str(log), features__min_count=3, model=plain_model(**widths | model)
    )


def make_features(root: Path, lines: list[str], name: str = "log.tsv") -> Params:
    """root/name with these lines, through collect, ingest and features."""
    (root / name).write_text("\n".join(lines) + "\n")
    params = small_params(root / name)
    support.make_features(root, params)
    return params


def model_for(state: FeatureState, params: Model) -> DLRM:
    return build_model(
        params,
        state.cardinalities,
        len(state.schema.dense_features),
        torch.Generator().manual_seed(1),
    )


def make_bundle(root: Path, params: Params) -> str:
    """artifacts/model with random weights; returns its version."""
    directory = root / MODEL
    directory.mkdir()
    (directory / HISTORY).write_text(HISTORY_CSV)
    model = model_for(FeatureState.load(root / FEATURES / STATE), params.model)
    return save_bundle(directory, model, root / FEATURES / STATE, params, root)


def read_split(root: Path, split: str) -> pl.DataFrame:
    return pl.concat(
        [pl.read_parquet(path) for path in sorted((root / FEATURES / split).glob("*.parquet"))]
    )
