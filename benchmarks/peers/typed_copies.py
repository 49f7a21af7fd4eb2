"""Typed copies of a log as Parquet, made by Polars and by DuckDB, as the ingest stage makes them.

Both read the log with declared types, convert each column to the dtype of a shard, and write all
rows in file order as Parquet with lz4. A value that does not fit is an error, and ends the copy.
"""

from pathlib import Path

import duckdb
import polars as pl

from features.ingest.readers.row_validation import typed_columns
from features.schema.schema import Schema

ROW_GROUP_ROWS = 131_072
SQL_TYPES = {
    pl.UInt8: "UTINYINT",
    pl.UInt32: "UINTEGER",
    pl.Int64: "BIGINT",
    pl.Float32: "FLOAT",
    pl.Float64: "DOUBLE",
    pl.String: "VARCHAR",
}


def with_polars(log: Path, target: Path, schema: Schema) -> None:
    """Write the typed rows of a log with Polars' streaming engine."""
    dtypes = typed_columns(schema)
    if schema.format.kind == "json_lines":
        rows = pl.scan_ndjson(log, schema={n: _json_dtype(one) for n, one in dtypes.items()})
    else:
        rows = pl.scan_parquet(log)
    stored = rows.collect_schema()
    typed = [
        pl.col(name).str.to_integer(base=16, dtype=pl.UInt32)
        if dtype == pl.UInt32 and stored[name] == pl.String
        else pl.col(name).cast(dtype)
        for name, dtype in dtypes.items()
    ]
    rows.select(typed).sink_parquet(target, compression="lz4", row_group_size=ROW_GROUP_ROWS)


def with_duckdb(log: Path, target: Path, schema: Schema) -> None:
    """Write the typed rows of a log with DuckDB."""
    dtypes = typed_columns(schema)
    types = {name: _sql_type(dtype) for name, dtype in dtypes.items()}
    if schema.format.kind == "json_lines":
        declared = ", ".join(f"{name}: '{type_}'" for name, type_ in types.items())
        source = f"read_json('{log}', format='newline_delimited', columns={{{declared}}})"
    else:
        source = f"read_parquet('{log}')"
    typed = [
        f"('0x' || {name})::UINTEGER AS {name}"
        if type_ == "UINTEGER"
        else f"{name}::{type_} AS {name}"
        for name, type_ in types.items()
    ]
    options = f"FORMAT parquet, COMPRESSION lz4_raw, ROW_GROUP_SIZE {ROW_GROUP_ROWS}"
    rows = f"SELECT {', '.join(typed)} FROM {source}"  # noqa: S608
    duckdb.connect().execute(f"COPY ({rows}) TO '{target}' ({options})")


def _json_dtype(dtype: pl.DataType) -> pl.DataType:
    """Return the dtype to read from JSON; Polars reads no numbers of 8 and 32 bits there."""
    if isinstance(dtype, pl.List):
        return pl.List(_json_dtype(dtype.inner))
    return {pl.UInt8(): pl.Int64(), pl.Float32(): pl.Float64()}.get(dtype, dtype)


def _sql_type(dtype: pl.DataType) -> str:
    if isinstance(dtype, pl.List):
        return f"{SQL_TYPES[type(dtype.inner)]}[]"
    return SQL_TYPES[type(dtype)]
