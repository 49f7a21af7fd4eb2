"""Parquet files. Its rows are numbered as lines are, from 1."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from common.files import DataError
from features.ingest.readers.column_types import Column, raw_columns
from features.ingest.readers.row_validation import Parsed, line_numbers, parse, without_tokens
from features.schema.schema import Schema

BATCH_ROWS = 32_768


def read(path: Path, schema: Schema, *, labelled: bool, short_rows: str) -> Iterator[Parsed]:
    """The log's rows, batch by batch. short_rows means nothing here.

    Raises DataError for a file that is no Parquet, for a missing column, and for one of a type that holds no such values.
    """
    columns = raw_columns(schema, labelled=labelled)
    num_bytes, first_line = path.stat().st_size, 1
    with path.open("rb") as source:
        file = _open(source, path)
        missing = [column.name for column in columns if column.name not in file.schema_arrow.names]
        if missing:
            raise DataError(
                f"{path}: no column {', '.join(missing)}; it has {', '.join(file.schema_arrow.names)[:500]}"
            )
        for column in columns:
            _check_type(column, file.schema_arrow.field(column.name).type, path)
        try:
            for batch in file.iter_batches(BATCH_ROWS, columns=[column.name for column in columns]):
                batch.validate(full=True)  # text that is not UTF-8 would be taken as it is
                found = without_tokens(
                    _plain(pl.DataFrame(pl.from_arrow(batch))), schema.format.null_tokens
                )
                read_bytes = (
                    num_bytes * (first_line - 1 + found.height) // max(file.metadata.num_rows, 1)
                )
                yield parse(
                    found,
                    columns,
                    line_numbers(first_line, found.height),
                    partial(_json, found),
                    read_bytes,
                )
                first_line += found.height
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{path}: broken Parquet after row {first_line - 1:,} ({error}); fetch the file again"
            ) from None


def has_label(path: Path, schema: Schema) -> bool:
    with path.open("rb") as source:
        return schema.label in _open(source, path).schema_arrow.names


def write_head(path: Path, num_rows: int, target: Path) -> None:
    """The log's first rows, all columns, as a log of its own; fewer where its first row group has fewer."""
    with path.open("rb") as source:
        first = next(_open(source, path).iter_batches(num_rows))
    pq.write_table(pa.Table.from_batches([first]), target)


def _open(source: object, path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(source)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is no Parquet file ({error}); fetch it again or mend data.schema"
        ) from None


def _check_type(column: Column, found: pa.DataType, path: Path) -> None:
    example = _plain(pl.DataFrame(pl.from_arrow(pa.table({column.name: pa.nulls(0, found)}))))
    if column.read(example.schema[column.name]) is None:
        raise DataError(
            f"{path}: column {column.name} is {found}, which cannot be {column.wanted}; convert it or mend the schema"
        )


def _plain(found: pl.DataFrame) -> pl.DataFrame:
    """With text as text, however it is encoded."""
    return found.with_columns(pl.col(pl.Categorical, pl.Enum).cast(pl.String))


def _json(found: pl.DataFrame, places: list[int]) -> list[bytes]:
    return [
        json.dumps(row, default=str, ensure_ascii=False).encode()
        for row in found[places].iter_rows(named=True)
    ]
