"""Writes small random artifacts/features, as the features stage does.

Clicks depend on the first dense column and on one categorical column.
"""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from common.artifact import write_manifest
from common.config.loading import check, read_yaml
from common.config.params import Params
from common.files import write_json
from features.encode.feature_state import NUM_RESERVED, FeatureState
from features.schema.schema import Schema, load_schema
from tests.factories.support import ROOT, plain_model

CARDINALITY = 12
ROW_GROUP_ROWS = 50


def write_features(root: Path, days: dict[str, list[int]], seed: int = 0) -> Schema:
    """Write artifacts/features and return their schema.

    The last dense column has the number of the row, counted over all files, divided by 1000.

    Args:
        root: The project's root.
        days: For each split the number of rows of each of its files.
        seed: Seed of the random values.
    """
    schema = load_schema("criteo")
    directory = root / "artifacts" / "features"
    values = pl.Series("value", range(CARDINALITY - NUM_RESERVED), dtype=pl.UInt32)
    FeatureState(schema, "frequency", dict.fromkeys(schema.categorical, values), {}).save(
        directory / "state"
    )
    rng = np.random.default_rng(seed)
    first, splits = 0, {}
    for split, sizes in days.items():
        (directory / split).mkdir()
        clicks = 0
        for day, num_rows in enumerate(sizes):
            frame = make_frame(schema, num_rows, first, rng)
            frame.write_parquet(
                directory / split / f"day_{day:02d}.parquet", row_group_size=ROW_GROUP_ROWS
            )
            first += num_rows
            clicks += int(frame[schema.label].sum())
        splits[split] = {
            "num_rows": sum(sizes),
            "label_rate": clicks / max(1, sum(sizes)),
            "days": list(range(len(sizes))),
        }
    num_days = max(map(len, days.values()))
    of_days = [
        {
            "name": f"day {day}",
            "split_rows": {split: sizes[day] for split, sizes in days.items() if day < len(sizes)},
        }
        for day in range(num_days)
    ]
    write_json(directory / "data.json", {"splits": splits, "days": of_days})
    write_manifest(directory, {})
    return schema


def make_frame(schema: Schema, num_rows: int, first: int, rng: np.random.Generator) -> pl.DataFrame:
    """Return random rows with the numbers first, first + 1, ..."""
    dense = rng.normal(size=(num_rows, len(schema.dense))).astype(np.float32)
    ids = rng.integers(0, CARDINALITY, (num_rows, len(schema.categorical)), dtype=np.int32)
    logits = 2 * dense[:, 0] + np.where(ids[:, 0] % 2, 2.0, -2.0)
    dense[:, -1] = np.arange(first, first + num_rows) / 1000
    label = (rng.random(num_rows) < 1 / (1 + np.exp(-logits))).astype(np.uint8)
    columns = [
        *zip(schema.dense, dense.T, strict=True),
        *zip(schema.categorical, ids.T, strict=True),
    ]
    return pl.DataFrame(
        {schema.label: label, **{name: np.ascontiguousarray(values) for name, values in columns}}
    ).select(schema.names)


def training_params(model: dict[str, Any] | None = None, **train: Any) -> Params:
    """Return the repository's params.yaml with one small model that trains for an epoch on the CPU.

    Args:
        model: Values of the section `model`.
        train: Values of the section `train`.
    """
    values = read_yaml(ROOT / "params.yaml")
    values["model"] = plain_model(
        **{"embedding_dim": 4, "bottom_mlp": [8], "top_mlp": [8], **(model or {})}
    )
    plain = {"epochs": 1, "reset_embeddings_each_epoch": False, "weight_averaging": False}
    plain["ensemble_size"] = 1
    values["train"] |= {"batch_size": 64, "accelerator": "cpu", "validations": 3, **plain, **train}
    return check(Params, values, ROOT / "params.yaml")
