"""A small project in seconds: random rows, their features, and a bundle with random weights.

All stages but the training are the real ones.
"""

from pathlib import Path

import numpy as np
import polars as pl
import torch

from common.artifact import Artifact
from common.bundle_layout import HISTORY, MODEL, STATE
from common.config.model import Model
from common.config.params import Params
from common.layout import FEATURES
from features.encode.feature_state import FeatureState
from tests.factories.support import CRITEO, make_features, make_params, plain_model
from training.inference.bundle import save_bundle
from training.models.dlrm import DLRM
from training.models.factory import build_model, inputs_of

NUM_ROWS = 4200  # seven days
NUM_TEST = 300  # the last half day
HISTORY_CSV = """\
step,split,loss,accuracy,auc
1,train,0.7,0.5,
1,valid,0.69,0.55,0.6
2,train,0.6,0.6,
2,valid,0.61,0.62,0.65
"""


def log_lines(num_rows: int, seed: int, label: str | None = None) -> list[str]:
    """Return random rows in Criteo's format.

    Some values are missing, some dense values are negative, and categories are popular or rare.

    Args:
        num_rows: Number of rows.
        seed: Seed of the random values.
        label: The label of all rows; random by default.
    """
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
    """Return the shipped parameters for a log, with odd small widths unless `model` has others."""
    widths = {"embedding_dim": 13, "bottom_mlp": [17], "top_mlp": [21, 12]}
    return make_params(
        data__source=str(log), features__min_count=3, model=plain_model(**widths | model)
    )


def make_project(root: Path, lines: list[str], name: str = "log.tsv") -> Params:
    """Write a log to root/name and run collect, ingest and features on it."""
    (root / name).write_text("\n".join(lines) + "\n")
    params = small_params(root / name)
    make_features(root, params)
    return params


def model_for(state: FeatureState, params: Model) -> DLRM:
    """Return a model for these features with random weights."""
    return build_model(
        params,
        state.cardinalities,
        len(state.schema.dense_features),
        torch.Generator().manual_seed(1),
        inputs=inputs_of(state.schema),
    )


def make_bundle(root: Path, params: Params) -> str:
    """Write a bundle with random weights to artifacts/model and return its version."""
    directory = root / MODEL
    directory.mkdir()
    (directory / HISTORY).write_text(HISTORY_CSV)
    model = model_for(FeatureState.load(root / FEATURES / STATE), params.model)
    return save_bundle(
        directory, model.state_dict(), Artifact.open(root / FEATURES), params, root, {}
    )


def read_split(root: Path, split: str) -> pl.DataFrame:
    """Return all rows of a split of artifacts/features."""
    return pl.concat(
        [pl.read_parquet(path) for path in sorted((root / FEATURES / split).glob("*.parquet"))]
    )
