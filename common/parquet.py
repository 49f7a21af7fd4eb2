"""Parquet written frame by frame: streaming, and the same rows give the same bytes."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

import polars as pl
import pyarrow.parquet as pq

# What costs the least time (docs/decisions.md): counts and ids in as few bits as they need, all else by a dictionary while it is small.
SMALL_NUMBERS = (pl.Int32, pl.Int64)
DICTIONARY_BYTES = 1 << 14


class Writer:
    """A Parquet file in the making, with the schema's columns.

    The rows are cut into groups of row_group_rows whatever frames they come in; with None each frame is a group. A group is written
    in a thread of its own while the caller makes the next one; what goes wrong there is raised by the next call. about: the file's
    key-value metadata.
    """

    def __init__(
        self,
        path: Path,
        schema: pl.Schema,
        row_group_rows: int | None = None,
        about: dict[str, str] | None = None,
    ) -> None:
        self.row_group_rows = row_group_rows
        small = [name for name, dtype in schema.items() if dtype in SMALL_NUMBERS]
        self.writer = pq.ParquetWriter(
            path,
            pl.DataFrame(schema=schema).to_arrow().schema.with_metadata(about),
            compression="lz4",
            use_dictionary=[name for name in schema if name not in small],
            dictionary_pagesize_limit=DICTIONARY_BYTES,
            column_encoding=dict.fromkeys(small, "DELTA_BINARY_PACKED"),
            write_statistics=[name for name, dtype in schema.items() if dtype == pl.String],
        )
        self.about = about
        self.waiting = pl.DataFrame(schema=schema)
        self.thread = ThreadPoolExecutor(1)
        self.writing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def write(self, frame: pl.DataFrame) -> None:
        self.waiting = self.waiting.vstack(frame)
        size = self.row_group_rows or max(self.waiting.height, 1)
        while self.waiting.height >= size:
            self._write_group(self.waiting[:size])
            self.waiting = self.waiting[size:]

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            if kind is None:
                self._write_group(self.waiting)
                self._wait()
        finally:
            self.thread.shutdown()
            self.writer.close()

    def _write_group(self, rows: pl.DataFrame) -> None:
        self._wait()  # one group at a time: memory stays bounded
        if rows.height:
            self.writing = self.thread.submit(
                self.writer.write_table,
                rows.rechunk().to_arrow().replace_schema_metadata(self.about),
            )

    def _wait(self) -> None:
        if self.writing:
            writing, self.writing = self.writing, None
            writing.result()
