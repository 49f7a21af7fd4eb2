"""Parquet written frame by frame: streaming, and the same frames give the same bytes."""

from pathlib import Path
from typing import Self

import polars as pl
import pyarrow.parquet as pq


class Writer:
    """A Parquet file in the making, with the schema's columns. Each frame becomes row groups of at most row_group_rows."""

    def __init__(self, path: Path, schema: pl.Schema, row_group_rows: int | None = None) -> None:
        self.row_group_rows = row_group_rows
        self.writer = pq.ParquetWriter(path, pl.DataFrame(schema=schema).to_arrow().schema, compression="zstd", compression_level=1)

    def __enter__(self) -> Self:
        return self

    def write(self, frame: pl.DataFrame) -> None:
        if frame.height:
            self.writer.write_table(frame.to_arrow(), row_group_size=self.row_group_rows)

    def __exit__(self, *error: object) -> None:
        self.writer.close()
