"""The features of the benchmark ingest.py, made by pandas."""

from pathlib import Path

import numpy as np
import pandas as pd

from features.schema.schema import Schema


def preprocess(log: Path, target: Path, schema: Schema, num_train: int, min_count: int) -> None:
    """Write ids and log1p of every row, in file order, to a Parquet file.

    Vocabularies are fitted on the first num_train rows and sorted by (-count, value).
    """
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
    columns = {schema.label: rows[schema.label]}
    for name in schema.dense:
        columns[name] = np.log1p(rows[name].fillna(0).clip(lower=0)).astype("float32")
    for name in schema.categorical:
        counts = rows[name].iloc[:num_train].value_counts()
        frequent = (
            counts[counts >= min_count].sort_index().sort_values(ascending=False, kind="stable")
        )
        ids = pd.Series(np.arange(2, 2 + len(frequent)), index=frequent.index)
        columns[name] = rows[name].map(ids).fillna(0).mask(rows[name].isna(), 1).astype("int32")
    pd.DataFrame(columns).to_parquet(target, compression="zstd")
