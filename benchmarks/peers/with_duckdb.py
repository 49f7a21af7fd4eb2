"""The features of the benchmark ingest.py, made by DuckDB."""

from pathlib import Path

import duckdb

from features.schema.schema import Schema


def preprocess(log: Path, target: Path, schema: Schema, num_train: int, min_count: int) -> None:
    """Write ids and log1p of every row, in file order, to a Parquet file.

    Vocabularies are fitted on the first num_train rows and sorted by (-count, value).
    """
    types = {schema.label: "UTINYINT", **dict.fromkeys(schema.dense, "BIGINT")}
    columns = ", ".join(f"'{name}': '{types.get(name, 'VARCHAR')}'" for name in schema.names)
    dialect = f"delim='{schema.format.separator}', quote='', header=false"
    base = duckdb.connect()
    base.execute(f"CREATE TABLE log AS FROM read_csv('{log}', {dialect}, columns={{{columns}}})")
    for name in schema.categorical:
        base.execute(
            f"CREATE TABLE ids_{name} AS SELECT {name} AS value, "  # noqa: S608
            f"1 + row_number() OVER (ORDER BY count(*) DESC, {name}) AS id "
            f"FROM log WHERE rowid < {num_train} AND {name} IS NOT NULL "
            f"GROUP BY {name} HAVING count(*) >= {min_count}"
        )
    dense = [
        f"ln(1 + greatest(coalesce(log.{name}, 0), 0))::FLOAT AS {name}" for name in schema.dense
    ]
    ids = [
        f"CASE WHEN log.{name} IS NULL THEN 1 ELSE coalesce(ids_{name}.id, 0) END::INTEGER "
        f"AS {name}"
        for name in schema.categorical
    ]
    joins = " ".join(
        f"LEFT JOIN ids_{name} ON log.{name} = ids_{name}.value" for name in schema.categorical
    )
    rows = (
        f"SELECT log.{schema.label}, {', '.join(dense + ids)} FROM log {joins} ORDER BY log.rowid"  # noqa: S608
    )
    base.execute(f"COPY ({rows}) TO '{target}' (FORMAT parquet, COMPRESSION zstd)")
