"""Logs with lists, weights, a shared table and sample weights, in every format."""

import json
from pathlib import Path
from typing import Any

import polars as pl

from features.ingest.readers.read_log import read_log
from features.ingest.readers.row_validation import ValidatedRows, merge_by_line_number
from features.schema.schema import Schema, check_schema

FORMATS: dict[str, dict[str, Any]] = {
    "text": {
        "kind": "text",
        "separator": "\t",
        "quote": None,
        "header": False,
        "null_tokens": ["", "NULL"],
    },
    "json_lines": {"kind": "json_lines", "null_tokens": ["", "NULL"]},
    "parquet": {"kind": "parquet", "null_tokens": ["", "NULL"]},
}
POLICY_OF_TAGS = {"name": "vocabulary_and_hash", "buckets": 7}
POLICY_OF_CODES = {"name": "hash", "buckets": 11}
MAX_LENGTHS = {"viewed": 3, "tags": 4, "codes": 2}

Row = dict[str, Any]


def schema_of(kind: str) -> Schema:
    """Return the schema of the rows in a format."""

    def lists(name: str, pooling: str, **options: Any) -> dict[str, Any]:
        separator = {"separator": "|"} if kind == "text" else {}
        return {"pooling": pooling, "max_length": MAX_LENGTHS[name], **separator, **options}

    columns = [
        {"kind": "label", "names": ["clicked"]},
        {"kind": "dense", "names": ["price"], "parse": "float", "transform": "log1p"},
        {
            "kind": "categorical",
            "names": ["viewed"],
            "parse": "integer",
            "policy": "vocabulary",
            "list": lists("viewed", "sum", weights="viewed_weights"),
            "table": "item",
        },
        {"kind": "weights", "names": ["viewed_weights"]},
        {"kind": "categorical", "names": ["item"], "parse": "integer", "policy": "vocabulary"},
        {
            "kind": "categorical",
            "names": ["tags"],
            "parse": "string",
            "policy": POLICY_OF_TAGS,
            "list": lists("tags", "mean"),
        },
        {
            "kind": "categorical",
            "names": ["codes"],
            "parse": "hex32",
            "policy": POLICY_OF_CODES,
            "list": lists("codes", "max"),
        },
        {"kind": "sample_weight", "names": ["weight"]},
    ]
    schema = Schema.model_validate({"format": FORMATS[kind], "columns": columns})
    return check_schema(schema, Path("lists.yaml"))


def write_log(path: Path, rows: list[Row], kind: str) -> Path:
    """Write rows as a log. Codes are hex digits; a value None is missing, also in a list."""
    if kind == "parquet":
        _as_frame(rows).write_parquet(path)
        return path
    lines = map(json.dumps, rows) if kind == "json_lines" else map(_as_text, rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def read_rows(path: Path, schema: Schema, *, labelled: bool = True) -> ValidatedRows:
    """Return all rows of a log, good and bad."""
    return merge_by_line_number(
        list(read_log(path, schema, labelled=labelled, short_rows="quarantine"))
    )


def typed_rows(rows: list[Row]) -> list[Row]:
    """Return the rows as they are to be read."""
    return [
        {**row, "codes": row["codes"] and [_code(value) for value in row["codes"]]} for row in rows
    ]


def _code(digits: str | None) -> int | None:
    return None if digits is None else int(digits, 16)


def _as_frame(rows: list[Row]) -> pl.DataFrame:
    dtypes: dict[str, Any] = {
        "clicked": pl.Int64,
        "price": pl.Float64,
        "viewed": pl.List(pl.Int64),
        "viewed_weights": pl.List(pl.Float64),
        "item": pl.Int64,
        "tags": pl.List(pl.String),
        "codes": pl.List(pl.String),
        "weight": pl.Float64,
    }
    return pl.DataFrame(rows, schema=dtypes)


def _as_text(row: Row) -> str:
    return "\t".join(
        "|".join(map(_as_field, value)) if isinstance(value, list) else _as_field(value)
        for value in row.values()
    )


def _as_field(value: Any) -> str:
    return "NULL" if value is None else str(value)
