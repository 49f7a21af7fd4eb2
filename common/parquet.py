"""Parquet files: a writer that takes frame after frame, and the readers of a file by its name.

Equal rows give equal bytes.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

# The fastest settings to write and read these files: integers (counts and ids) in as few bits as
# they need, other columns by a dictionary as long as it is small.
DELTA_PACKED_DTYPES = (pl.Int32, pl.Int64)
DICTIONARY_BYTES = 1 << 14
# The texts and lists of a row group have at most this size, so one with long texts has fewer rows.
GROUP_BYTES = 256 << 20
VALUE_BYTES = 8  # of a number in a list
BUFFER_BYTES = 1 << 16


def scan_parquet(path: Path | list[Path]) -> pl.LazyFrame:
    """Read a Parquet file, or several ones with the same columns one after the other, lazily.

    Brackets and stars in a path are characters, no pattern.
    """
    return pl.scan_parquet(path, glob=False)


def read_parquet(path: Path, columns: list[str] | None = None) -> pl.DataFrame:
    """Read a Parquet file. Brackets and stars in its path are characters, no pattern.

    Args:
        path: The file.
        columns: The columns to read; None reads all.
    """
    return pl.read_parquet(path, columns=columns, glob=False)


@dataclass(frozen=True)
class _Layout:
    """The schema and the options of a writer, which follow from the columns of a file.

    Attributes:
        no_rows: A frame with these columns and no rows.
        arrow_schema: Its schema in Arrow.
        options: The options of pyarrow's writer.
    """

    no_rows: pl.DataFrame
    arrow_schema: pa.Schema
    options: dict[str, Any]


@cache
def _layout(columns: tuple[tuple[str, pl.DataType], ...], statistics: bool) -> _Layout:
    """Return the layout of a file with these columns.

    It is kept, because to make it takes longer than to write the rows of a small log.
    """
    no_rows = pl.DataFrame(schema=pl.Schema(columns))
    paths = {_path_of_values(name, dtype): dtype for name, dtype in columns}
    packed = [path for path, dtype in paths.items() if _value_dtype(dtype) in DELTA_PACKED_DTYPES]
    options = {
        "compression": "lz4",
        "use_dictionary": [path for path in paths if path not in packed],
        "dictionary_pagesize_limit": DICTIONARY_BYTES,
        "column_encoding": dict.fromkeys(packed, "DELTA_BINARY_PACKED"),
        "write_statistics": [name for name, dtype in columns if statistics or dtype == pl.String],
    }
    return _Layout(no_rows, no_rows.to_arrow().schema, options)


def _value_dtype(dtype: pl.DataType) -> pl.DataType:
    """Return the dtype of a column's values, also of those in lists."""
    return dtype.inner if isinstance(dtype, pl.List) else dtype  # type: ignore[return-value]


def _path_of_values(name: str, dtype: pl.DataType) -> str:
    """Return the name by which Parquet knows a column's values."""
    return f"{name}.list.element" if isinstance(dtype, pl.List) else name


def _bytes_of_rows(rows: pl.DataFrame) -> NDArray[np.int64]:
    """Return the number of bytes of the texts and lists of each row."""
    sizes = []
    for name, dtype in rows.schema.items():
        if dtype == pl.String:
            sizes.append(pl.col(name).str.len_bytes())
        elif isinstance(dtype, pl.List) and dtype.inner == pl.String:
            sizes.append(pl.col(name).list.eval(pl.element().str.len_bytes()).list.sum())
        elif isinstance(dtype, pl.List):
            sizes.append(VALUE_BYTES * pl.col(name).list.len())
    whole = [size.fill_null(0).cast(pl.Int64) for size in sizes]
    bytes_N = rows.select(pl.sum_horizontal(pl.lit(0, pl.Int64), *whole)).to_series()
    return np.broadcast_to(bytes_N.to_numpy(), rows.height)


class ParquetWriter:
    """A Parquet file that is being written; use it as a context manager.

    A row group is written in a thread while the caller makes the next one. An error in that thread
    is raised by the next call. The row groups do not depend on how the rows are cut into frames. So
    that memory is bounded, a group has at most GROUP_BYTES of texts and lists, or a single row.

    Args:
        path: The file, or one that is open for writing.
        schema: The names and dtypes of its columns.
        row_group_rows: The number of rows of a row group; None makes each frame a group.
        metadata: The file's key-value metadata.
        statistics: Whether each row group records the least and the greatest value of all columns,
            so that a reader can leave row groups out. Otherwise only those of texts are recorded.
    """

    def __init__(
        self,
        path: Path | IO[bytes],
        schema: pl.Schema,
        row_group_rows: int | None = None,
        metadata: dict[str, str] | None = None,
        *,
        statistics: bool = False,
    ) -> None:
        self.row_group_rows = row_group_rows
        self.metadata = metadata
        layout = _layout(tuple(schema.items()), statistics)
        # pyarrow writes each page of each column alone; a file of few rows is nothing but pages.
        self.buffered = None
        if isinstance(path, Path):
            path = self.buffered = pa.BufferedOutputStream(pa.OSFile(str(path), "wb"), BUFFER_BYTES)
        self.writer = pq.ParquetWriter(
            path, layout.arrow_schema.with_metadata(metadata), **layout.options
        )
        self.pending_rows = layout.no_rows
        self.thread = ThreadPoolExecutor(1)
        self.group_in_work: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def write(self, frame: pl.DataFrame) -> None:
        """Add the rows of a frame that has the schema's columns."""
        self.pending_rows = self.pending_rows.vstack(frame)
        while num_rows := self._rows_of_group():
            self._write_group(self.pending_rows[:num_rows])
            self.pending_rows = self.pending_rows[num_rows:]

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            if kind is None:
                self._wait_for_group()
                if self.pending_rows.height:  # no thread: nothing is made while this is written
                    self.writer.write_table(self._as_table(self.pending_rows))
        finally:
            self.thread.shutdown()
            try:
                self.writer.close()
            finally:
                if self.buffered:
                    self.buffered.close()

    def _rows_of_group(self) -> int:
        """Return the number of rows of the next group, 0 if it is not complete yet."""
        if self.row_group_rows is None:
            return self.pending_rows.height
        rows = self.pending_rows[: self.row_group_rows]
        if rows.estimated_size() > GROUP_BYTES:
            ends_N = np.cumsum(_bytes_of_rows(rows))
            num_rows = max(int(np.searchsorted(ends_N, GROUP_BYTES, "right")), 1)
            if num_rows < rows.height:
                return num_rows
        return rows.height if rows.height == self.row_group_rows else 0

    def _write_group(self, rows: pl.DataFrame) -> None:
        self._wait_for_group()  # with one group at a time, memory stays bounded
        self.group_in_work = self.thread.submit(self.writer.write_table, self._as_table(rows))

    def _as_table(self, rows: pl.DataFrame) -> pa.Table:
        return rows.rechunk().to_arrow().replace_schema_metadata(self.metadata)

    def _wait_for_group(self) -> None:
        if self.group_in_work:
            group, self.group_in_work = self.group_in_work, None
            group.result()
