"""Logs of the benchmark ingest.py that are no delimited text: Parquet, and lists of ids.

parquet      the rows of the built-in sample log, as Spark would write them: integers, and hex
             digits as text
lists        per row 5 numbers, 8 lists of integers and 2 lists of texts (5 values on average,
             up to 50), and a list of weights, as Parquet
json-lists   the same rows as JSON lines
"""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from common.config.yaml_text import flow
from features.ingest.readers.row_validation import typed_columns
from features.list_values import lists_of
from features.schema.schema import load_schema

SOURCES = ("parquet", "lists", "json-lists")
ROW_GROUP_ROWS = 131_072
MEAN_LENGTH, MAX_LENGTH = 5, 50
NUM_VALUES = 100_000  # ids of a list
NUM_TAGS = 1000
DENSE = [f"n{k}" for k in range(1, 6)]
IDS = [f"ids{k}" for k in range(1, 9)]
TAGS = ["tags1", "tags2"]
WEIGHTS = "ids1_weights"


def ending_of(source: str) -> str:
    """Return the ending of the name of a log."""
    return ".jsonl" if source == "json-lists" else ".parquet"


def write_schema(source: str, folder: Path) -> None:
    """Write folder/SOURCE.yaml, the schema of a log."""
    kind = "json_lines" if source == "json-lists" else "parquet"
    lists = {"pooling": "sum", "max_length": MAX_LENGTH}
    columns: list[dict[str, Any]]
    if source == "parquet":
        criteo = load_schema("criteo")
        columns = [group.model_dump(exclude_none=True) for group in criteo.columns]
    else:
        columns = [
            {"kind": "label", "names": ["clicked"]},
            {"kind": "dense", "names": DENSE, "parse": "integer", "transform": "log1p"},
            {
                **{"kind": "categorical", "names": IDS[:1], "parse": "integer"},
                **{"policy": "vocabulary", "list": lists | {"weights": WEIGHTS}},
            },
            {
                **{"kind": "categorical", "names": IDS[1:], "parse": "integer"},
                **{"policy": "vocabulary", "list": lists},
            },
            {
                **{"kind": "categorical", "names": TAGS, "parse": "string"},
                **{"policy": "vocabulary", "list": lists},
            },
            {"kind": "weights", "names": [WEIGHTS]},
        ]
    values = {"format": {"kind": kind, "null_tokens": []}, "columns": columns}
    (folder / f"{source}.yaml").write_text(f"{flow(values)}\n")


def write_log(source: str, text_log: Path, num_rows: int, target: Path) -> None:
    """Write a log.

    Args:
        source: One of SOURCES.
        text_log: The built-in sample log.
        num_rows: The number of rows.
        target: The file.
    """
    if source == "parquet":
        schema = load_schema(source)
        types = {
            name: pl.String if dtype == pl.UInt32 else dtype
            for name, dtype in typed_columns(schema).items()
        }
        rows = pl.scan_csv(
            text_log,
            has_header=False,
            separator="\t",
            schema={name: types[name] for name in schema.names},
            quote_char=None,
        )
        rows.sink_parquet(target, compression="snappy", row_group_size=ROW_GROUP_ROWS)
        return
    frame = _rows_with_lists(num_rows)
    if source == "lists":
        frame.write_parquet(target, compression="snappy", row_group_size=ROW_GROUP_ROWS)
    else:
        frame.write_ndjson(target)


def _rows_with_lists(num_rows: int) -> pl.DataFrame:
    random = np.random.default_rng(1)
    lengths = {
        name: np.minimum(random.geometric(1 / (MEAN_LENGTH + 1), num_rows) - 1, MAX_LENGTH)
        for name in [*IDS, *TAGS]
    }
    columns = [pl.Series("clicked", random.random(num_rows) < 0.25).cast(pl.UInt8)]
    for name in DENSE:
        counts = pl.Series(name, random.geometric(0.05, num_rows), dtype=pl.Int64)
        columns.append(pl.select(pl.when(random.random(num_rows) > 0.1).then(counts)).to_series())
    for name, lengths_B in lengths.items():
        num_values = NUM_VALUES if name in IDS else NUM_TAGS
        # Small numbers are frequent, as in a click log.
        values = pl.Series(name, random.random(lengths_B.sum()) ** 4 * num_values).cast(pl.Int64)
        columns.append(lists_of(_as_tags(values) if name in TAGS else values, lengths_B))
    weights = pl.Series(WEIGHTS, random.integers(1, 9, lengths[IDS[0]].sum()) / 4)
    columns.append(lists_of(weights, lengths[IDS[0]]))
    return pl.DataFrame(columns)


def _as_tags(values: pl.Series) -> pl.Series:
    return pl.select(pl.format("tag-{}", values).alias(values.name)).to_series()
