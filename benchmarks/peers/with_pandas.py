"""The same features by pandas."""

from pathlib import Path

import numpy as np
import pandas as pd

from features.schema.schema import Schema


def preprocess(log: Path, target: Path, schema: Schema, num_train: int, min_count: int) -> None:
    """Vocabularies of the first num_train rows by (-count, value), ids and log1p of every row, in file order, to a Parquet file."""
    types = {
        schema.label: "uint8",
        **dict.fromkeys(schema.dense, "float64"),
        **dict.fromkeys(schema.categorical, "str"),
    }
    rows = pd.read_csv(
        log,
        sep=schema.format.separator,
        header=None,
        names=schema.names,
        dtype=types,
        engine="pyarrow",
    )
    made = {schema.label: rows[schema.label]}
    for name in schema.dense:
        made[name] = np.log1p(rows[name].fillna(0).clip(lower=0)).astype("float32")
    for name in schema.categorical:
        counts = rows[name].iloc[:num_train].value_counts()
        frequent = (
            counts[counts >= min_count].sort_index().sort_values(ascending=False, kind="stable")
        )
        ids = pd.Series(np.arange(2, 2 + len(frequent)), index=frequent.index)
        made[name] = rows[name].map(ids).fillna(0).mask(rows[name].isna(), 1).astype("int32")
    pd.DataFrame(made).to_parquet(target, compression="zstd")
