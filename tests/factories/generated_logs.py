"""A generator of small logs of any schema, in any format.

The clicks depend on the first categorical column, with some noise.
"""

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pyarrow import orc

from features.schema.schema import Schema

MISSING_SHARE = 0.1
SUFFIXES = {
    "text": ".csv",
    "json_lines": ".jsonl",
    "parquet": ".parquet",
    "orc": ".orc",
    "arrow": ".arrow",
}


def write_log(directory: Path, schema: Schema, num_rows: int, seed: int = 0) -> Path:
    """Write directory/log.SUFFIX with this number of rows, and return its path."""
    random = np.random.default_rng(seed)
    columns: dict[str, list[Any]] = {}
    for group in schema.columns:
        for name in group.names:
            values = _values(group, num_rows, random)
            columns[name] = (
                values if group.kind in ("label", "time") else _with_missing_values(values, random)
            )
    first = columns[schema.categorical[0]]
    columns[schema.label] = [
        int(hash_of(value) % 3 == 0) ^ int(draw < 0.1)
        for value, draw in zip(first, random.random(num_rows), strict=True)
    ]
    path = directory / f"log{SUFFIXES[schema.format.kind]}"
    _write(path, schema, columns)
    return path


def hash_of(value: Any) -> int:
    """Return a small hash that is the same in every process."""
    return sum(str(value).encode())


def _values(group: Any, num_rows: int, random: np.random.Generator) -> list[Any]:
    if group.kind == "time":
        start = datetime(2014, 10, 21)
        moments = [start + timedelta(hours=24 * 7 * row / num_rows) for row in range(num_rows)]
        if group.parse == "unix":
            return [int((moment - datetime(1970, 1, 1)).total_seconds()) for moment in moments]
        return [moment.strftime(group.parse) for moment in moments]
    numbers = random.zipf(1.5, num_rows) % 40
    parse = getattr(group, "parse", "string")
    if parse == "float":
        return (numbers / 8 - 3).tolist()
    if parse == "integer":
        return (numbers - 2).tolist()
    if parse == "hex32":
        return [f"{number * 2654435761 % 2**32:08x}" for number in numbers.tolist()]
    return [f"value {number}" for number in numbers]


def _with_missing_values(values: list[Any], random: np.random.Generator) -> list[Any]:
    return [
        None if draw < MISSING_SHARE else value
        for value, draw in zip(values, random.random(len(values)), strict=True)
    ]


def _write(path: Path, schema: Schema, columns: dict[str, list[Any]]) -> None:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if schema.format.kind == "parquet":
        pl.DataFrame(rows).write_parquet(path)
    elif schema.format.kind == "orc":
        orc.write_table(pl.DataFrame(rows).to_arrow(), path)
    elif schema.format.kind == "arrow":
        pl.DataFrame(rows).write_ipc(path)
    elif schema.format.kind == "json_lines":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        separator, null = schema.format.separator, schema.format.null_tokens[0]
        lines = [
            separator.join(null if row[name] is None else str(row[name]) for name in schema.names)
            for row in rows
        ]
        header = [separator.join(schema.names)] if schema.format.header else []
        path.write_text("".join(f"{line}\n" for line in [*header, *lines]))
