"""Parquet, ORC and Arrow files as record batches of bounded size.

Only the columns that are asked for are read. What one step of pyarrow makes in memory is bounded
before it is made, because it cannot be stopped: a dictionary, for example, makes gigabytes of text
of a file of some kilobytes.
"""

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from common.files import DataError
from common.numbers import ceil_div
from common.printable import printable
from features.ingest.readers.contents import (
    ARROW_FILE_MAGIC,
    COLUMNAR_NAMES,
    check_kind,
    read_ends,
)

BATCH_ROWS = 131_072
# pyarrow makes the texts of some rows of ORC at once, whose lengths it does not say before.
ORC_BATCH_ROWS = 512
BATCH_BYTES = 128 << 20  # of texts that are made at once; each may be in the file only once
VALUE_BYTES = 8  # of a number
# Parquet's names of encodings of texts.
DICTIONARIES = {"RLE_DICTIONARY", "PLAIN_DICTIONARY"}
DELTAS = {"DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"}
MAX_UNIT_BYTES = 1 << 30  # of a column of a row group, or of a compressed record batch
READ_BUFFER_BYTES = 1 << 20  # of each column
CONTINUATION = b"\xff\xff\xff\xff"
STREAM_END, FILE_END = CONTINUATION + bytes(4), b"ARROW1"
# The exceptions of pyarrow for damaged bytes; the last one is for damaged names of columns.
DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError)
DICTIONARY_BATCH, RECORD_BATCH = 2, 3  # MessageHeader of Arrow's Message.fbs


def is_list(arrow_type: pa.DataType) -> bool:
    """Return whether a column has a list in each row."""
    return any(
        is_kind(arrow_type)
        for is_kind in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    )


def _value_type(arrow_type: pa.DataType) -> pa.DataType:
    """Return the type of a column's values, also of those in lists."""
    while is_list(arrow_type):
        arrow_type = arrow_type.value_type
    return arrow_type


def is_text(arrow_type: pa.DataType) -> bool:
    """Return whether a column has texts or binary values, with or without a dictionary."""
    if pa.types.is_dictionary(arrow_type):
        arrow_type = arrow_type.value_type
    is_view = pa.types.is_string_view(arrow_type) or pa.types.is_binary_view(arrow_type)
    return is_view or any(
        is_kind(arrow_type)
        for is_kind in (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_binary,
            pa.types.is_large_binary,
        )
    )


def text_lengths(texts: pa.Array) -> NDArray[np.int64]:
    """Return the number of bytes of each text, 0 for null."""
    if pa.types.is_string_view(texts.type) or pa.types.is_binary_view(texts.type):
        # pyarrow has no function for their lengths
        _, views, *_ = texts.buffers()
        views_N4 = np.frombuffer(views, np.int32)[: 4 * (texts.offset + len(texts))].reshape(-1, 4)
        is_present = np.asarray(texts.is_valid())
        return np.where(is_present, views_N4[texts.offset :, 0], 0).astype(np.int64)
    lengths = pc.call_function("binary_length", [texts])
    return np.asarray(lengths.fill_null(0), np.int64)


class ColumnarFile(Protocol):
    """An open columnar file."""

    @property
    def schema(self) -> pa.Schema:
        """The columns."""

    @property
    def num_rows(self) -> int:
        """The number of rows."""

    def batches(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        """Yield some columns of all rows, in file order."""

    def write(self, table: pa.Table, target: Path) -> None:
        """Write a table as a file of the same kind."""


@contextmanager
def open_columnar(path: Path, kind: str) -> Iterator[ColumnarFile]:
    """Open a file of a kind: `parquet`, `orc` or `arrow`.

    Raises:
        DataError: It is of another kind, or broken.
    """
    with path.open("rb") as source:
        check_kind(source, path, kind)
        try:
            file = OPENERS[kind](source, path)
            _ = file.schema.names  # decodes them
        except DAMAGE as error:
            raise DataError(
                f"{path} is not {COLUMNAR_NAMES[kind]} file ({printable(str(error))}); "
                "fetch it again or correct data.schema"
            ) from None
        yield file


class ParquetFile:
    """A Parquet file, whose pages are read one after the other."""

    def __init__(self, source: IO[bytes], path: Path) -> None:
        self.source, self.path = source, path
        # Without a buffer, or with pre_buffer, whole columns of a row group are read at once.
        self.file = self._open()
        self.schema = self.file.schema_arrow
        self.num_rows = int(self.file.metadata.num_rows)
        self.parquet_columns = self._parquet_columns()
        self.may_have_dictionaries = True  # of all texts; found out at the first row group

    def batches(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        """Yield some columns of all rows, in file order.

        Raises:
            DataError: A column of a row group has more than MAX_UNIT_BYTES.
        """
        for groups, num_rows in self._groups_to_read(names):
            if num_rows is None:
                yield from self._read_alone(groups[0], names)
            else:
                yield from self.file.iter_batches(num_rows, row_groups=groups, columns=names)

    def write(self, table: pa.Table, target: Path) -> None:
        """Write a table as a Parquet file."""
        pq.write_table(table, target)

    def _open(self, **options: object) -> pq.ParquetFile:
        return pq.ParquetFile(
            self.source, pre_buffer=False, buffer_size=READ_BUFFER_BYTES, **options
        )

    @cached_property
    def _file_with_dictionaries(self) -> pq.ParquetFile:
        names = [field.name for field in self.schema if is_text(field.type)]
        return self._open(read_dictionary=self._paths_of_texts(names))

    def _groups_to_read(self, names: list[str]) -> Iterator[tuple[list[int], int | None]]:
        """Yield row groups that are read together, and the rows of their batches.

        These are small neighbours; or one that is not small, with None.
        """
        small: list[int] = []
        num_rows = num_bytes = 0
        for number in range(self.file.num_row_groups):
            group = self.file.metadata.row_group(number)
            most_bytes = min(group.num_rows, BATCH_ROWS) * group.total_byte_size
            is_small = most_bytes <= BATCH_BYTES
            if small and not (is_small and num_rows < BATCH_ROWS and num_bytes < MAX_UNIT_BYTES):
                yield small, BATCH_ROWS
                small, num_rows, num_bytes = [], 0, 0
            if is_small:
                small.append(number)
                num_rows += group.num_rows
                num_bytes += most_bytes
            else:
                yield [number], None
        if small:
            yield small, BATCH_ROWS

    def _read_alone(self, number: int, names: list[str]) -> Iterator[pa.RecordBatch]:
        """Yield the batches of a row group that is not small."""
        batches = self._with_dictionaries(number, names)
        if batches is None:
            self.may_have_dictionaries = False
            num_rows = self._rows_of_batch(number, names)
            batches = self.file.iter_batches(num_rows, row_groups=[number], columns=names)
        yield from batches

    def _with_dictionaries(self, number: int, names: list[str]) -> Iterator[pa.RecordBatch] | None:
        """Return the batches of a row group with dictionaries as they are in the file.

        They are not written out, so no text takes more memory than in the file.

        Returns:
            The batches; None if a column with texts has no dictionary, if there are lists, or if
            the row group cannot be read in this way.
        """
        types = [self.schema.field(name).type for name in names]
        texts = [name for name, one in zip(names, types, strict=True) if is_text(one)]
        num_bytes = self.file.metadata.row_group(number).total_byte_size
        has_lists = any(map(is_list, types))
        if not self.may_have_dictionaries or not texts or has_lists or num_bytes > MAX_UNIT_BYTES:
            return None
        file = self._file_with_dictionaries
        num_rows = max(min(BATCH_BYTES // (VALUE_BYTES * len(names)), BATCH_ROWS), 1)
        batches = file.iter_batches(num_rows, row_groups=[number], columns=names)
        try:
            first = next(batches)
        except (*DAMAGE, StopIteration):
            return None  # it is also an encoding that pyarrow does not read as a dictionary
        # Only now, because `_chunks` ends the process if a chunk is damaged.
        encodings = [self._encodings(number, name) for name in texts]
        if not all(one & DICTIONARIES and not one & DELTAS for one in encodings):
            return None
        return chain([first], batches)

    def _rows_of_batch(self, number: int, names: list[str]) -> int:
        """Return how many rows of a row group can be read at once, whatever its dictionaries are.

        In other encodings the values of a column take as much memory as its pages.
        """
        group = self.file.metadata.row_group(number)
        lists = [name for name in names if is_list(self.schema.field(name).type)]
        texts = [name for name in names if is_text(self.schema.field(name).type)]
        is_large = group.total_byte_size > MAX_UNIT_BYTES
        # The first row is read before `_chunks`, which ends the process if a chunk is damaged.
        self._read_first_row(number, names if is_large else [*texts, *lists])
        if is_large:
            self._check_size(number, names)
        row_bytes = VALUE_BYTES * len(names)
        chunks = self._chunks(number, [*texts, *lists])
        if any("DELTA_BYTE_ARRAY" in chunk.encodings for chunk in chunks):
            # Each text may repeat the one before it.
            row_bytes += sum(chunk.total_uncompressed_size for chunk in chunks)
        of_texts = [name for name in lists if is_text(self.schema.field(name).type.value_type)]
        with_dictionary = [
            name for name in [*texts, *of_texts] if self._encodings(number, name) & DICTIONARIES
        ]
        longest = dict.fromkeys([*texts, *lists], 0)
        longest |= self._longest_texts(number, with_dictionary, 1)
        unseen = [name for name in with_dictionary if name in of_texts and not longest[name]]
        longest |= self._longest_texts(number, unseen, int(group.num_rows))
        row_bytes += sum(longest[name] for name in texts)
        for name in lists:
            num_values = sum(int(chunk.num_values) for chunk in self._chunks(number, [name]))
            row_bytes += num_values * max(longest[name], VALUE_BYTES) // int(group.num_rows)
        return max(min(BATCH_BYTES // max(row_bytes, 1), BATCH_ROWS), 1)

    def _read_first_row(self, number: int, names: list[str]) -> None:
        if names:
            batches = self.file.iter_batches(1, row_groups=[number], columns=names)
            next(batches, None)

    def _longest_texts(self, number: int, names: list[str], num_rows: int) -> dict[str, int]:
        """Return for each column the bytes of the longest text in its dictionary, 0 without one.

        The texts of a dictionary are read once each, also where rows repeat them. A dictionary of
        lists is not seen before the first of them that is not empty.

        Args:
            number: The number of the row group.
            names: The columns. Their first values are from a dictionary.
            num_rows: The number of rows to read at most.
        """
        longest = dict.fromkeys(names, 0)
        if not names:
            return longest
        file = self._open(read_dictionary=self._paths_of_texts(names))
        batch_rows = min(num_rows, BATCH_ROWS)
        batches = file.iter_batches(
            batch_rows, row_groups=[number], columns=names, use_threads=False
        )
        # Values after the dictionary may be in an encoding that pyarrow does not read in this way.
        with suppress(pa.ArrowNotImplementedError):
            for batch in islice(batches, ceil_div(num_rows, batch_rows)):
                for name, column in zip(batch.schema.names, batch.columns, strict=True):
                    values = column.values if is_list(column.type) else column
                    if pa.types.is_dictionary(values.type) and is_text(values.type):
                        lengths_D = text_lengths(values.dictionary)
                        longest[name] = max(longest[name], int(lengths_D.max(initial=0)))
                if all(longest.values()):
                    break
        return longest

    def _paths_of_texts(self, names: list[str]) -> list[str]:
        """Return Parquet's paths of the columns with texts, and of those with lists of texts."""
        with_texts = [name for name in names if is_text(_value_type(self.schema.field(name).type))]
        return [path for name in with_texts for _, path in self.parquet_columns[name]]

    def _check_size(self, number: int, names: list[str]) -> None:
        for chunk in self._chunks(number, names):
            if chunk.total_uncompressed_size > MAX_UNIT_BYTES:
                raise DataError(
                    f"{self.path}: row group {number + 1:,} has {chunk.total_uncompressed_size:,} "
                    f"bytes of column {printable(chunk.path_in_schema)}, at most "
                    f"{MAX_UNIT_BYTES:,} are read; write the file with smaller row groups, for "
                    "example of 100,000 rows"
                )

    def _encodings(self, number: int, name: str) -> set[str]:
        """Return the encodings of a column's values in a row group."""
        return {one for chunk in self._chunks(number, [name]) for one in chunk.encodings}

    def _chunks(self, number: int, names: list[str]) -> list[pq.ColumnChunkMetaData]:
        """Return what the footer says about some columns of a row group, also about lists."""
        group = self.file.metadata.row_group(number)
        return [group.column(k) for name in names for k, _ in self.parquet_columns[name]]

    def _parquet_columns(self) -> dict[str, list[tuple[int, str]]]:
        """Return the number and the path of each Parquet column that a column consists of.

        That of a list is NAME.list.element, or has other words for the last two.
        """
        found: dict[str, list[tuple[int, str]]] = {name: [] for name in self.schema.names}
        for number in range(len(self.file.schema)):
            path = name = self.file.schema.column(number).path
            while name and name not in found:
                name = name.rpartition(".")[0]
            found.setdefault(name, []).append((number, path))
        return found


class OrcFile:
    """An ORC file."""

    def __init__(self, source: IO[bytes], path: Path) -> None:
        from pyarrow import dataset, orc  # few logs are ORC, and the import takes time

        file = orc.ORCFile(source)
        self.schema = file.schema
        self.num_rows = int(file.nrows)
        # Threads of pyarrow that read a file of Python end the process at its exit, if the rows are
        # not read to the end.
        self.fragment = dataset.OrcFileFormat().make_fragment(pa.OSFile(str(path)))

    def batches(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        """Yield some columns of all rows, in file order."""
        # ORCFile itself reads whole stripes.
        small_batches = self.fragment.to_batches(
            columns=names,
            batch_size=ORC_BATCH_ROWS,
            batch_readahead=0,
            fragment_readahead=0,
            use_threads=False,
        )
        together: list[pa.RecordBatch] = []
        for batch in small_batches:
            together.append(batch)
            num_rows = sum(one.num_rows for one in together)
            if num_rows >= BATCH_ROWS or batch.nbytes * len(together) >= BATCH_BYTES:
                yield _concatenated(together)
                together = []
        if together:
            yield _concatenated(together)

    def write(self, table: pa.Table, target: Path) -> None:
        """Write a table as an ORC file."""
        from pyarrow import orc

        orc.write_table(table, target)


def _concatenated(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return pa.concat_batches(batches) if len(batches) > 1 else batches[0]


class ArrowFile:
    """An Arrow file or stream. It is mapped to memory, so only what is used is read."""

    def __init__(self, source: IO[bytes], path: Path) -> None:
        self.path = path
        head, tail = read_ends(source)
        self.is_file = head.startswith(ARROW_FILE_MAGIC)
        if not tail.endswith(FILE_END if self.is_file else STREAM_END):
            raise pa.ArrowInvalid("its end is missing")
        self.mapped = pa.memory_map(str(path)).read_buffer()
        self.schema = self._reader([]).schema

    @property
    def num_rows(self) -> int:
        """The number of rows; only the sizes of the record batches are read for it."""
        return sum(size.num_rows for size in self._sizes())

    def batches(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        """Yield some columns of all rows, in file order.

        Raises:
            DataError: A record batch has more than MAX_UNIT_BYTES after decompression.
        """
        fields = [self.schema.get_field_index(name) for name in names]
        # A reader of some fields copies these of a file. A reader of all fields decompresses all.
        some_fields, all_fields = self._reader(fields), self._reader([])
        number = 0
        for size in self._sizes():
            if size.decompressed_bytes > MAX_UNIT_BYTES:
                raise DataError(
                    f"{self.path}: record batch {number + 1:,} has {size.decompressed_bytes:,} "
                    f"bytes, at most {MAX_UNIT_BYTES:,} are read; write the file with smaller "
                    "record batches, for example of 100,000 rows"
                )
            if size.is_record_batch:
                if self.is_file:
                    reader = some_fields if size.decompressed_bytes else all_fields
                    yield reader.get_batch(number)
                else:
                    yield some_fields.read_next_batch()
                number += 1
        if self.is_file and number != all_fields.num_record_batches:
            raise pa.ArrowInvalid(
                f"{number} record batches found, {all_fields.num_record_batches} expected"
            )

    def write(self, table: pa.Table, target: Path) -> None:
        """Write a table as an Arrow file."""
        with pa.OSFile(str(target), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)

    def _reader(self, fields: list[int]) -> Any:
        """Return pyarrow's reader of some fields, or of all if `fields` is empty."""
        options = pa.ipc.IpcReadOptions(included_fields=fields)
        source = pa.BufferReader(self.mapped)
        if self.is_file:
            return pa.ipc.open_file(source, options=options)
        return pa.ipc.open_stream(source, options=options)

    def _sizes(self) -> Iterator["_Size"]:
        """Yield the sizes of all messages; those of dictionaries before batches that need them."""
        if not self.is_file:
            for message in pa.ipc.MessageReader.open_stream(pa.BufferReader(self.mapped)):
                yield _size_of(memoryview(message.metadata), memoryview(message.body))
            return
        mapped = memoryview(self.mapped).cast("B")
        for offset, metadata_bytes, body_bytes in _blocks(mapped):
            body = offset + metadata_bytes
            start = offset + (8 if mapped[offset : offset + 4] == CONTINUATION else 4)
            yield _size_of(mapped[start:body], mapped[body : body + body_bytes])


def _blocks(file: memoryview) -> Iterator[tuple[int, int, int]]:
    """Yield the place of each message that the footer of an Arrow file lists.

    Returns:
        The offset, the bytes of the metadata and the bytes of the body; dictionaries first.
    """
    try:
        footer_end = len(file) - len(FILE_END) - 4
        footer = file[footer_end - _at("<i", file, footer_end) : footer_end]
        table = _at("<I", footer, 0)
        for field in (2, 3):  # dictionaries, recordBatches
            if place := _field(footer, table, field):
                blocks = _follow(footer, place)
                for number in range(_at("<I", footer, blocks)):
                    yield struct.unpack_from("<qi4xq", footer, blocks + 4 + 24 * number)
    except struct.error as error:
        raise pa.ArrowInvalid(f"a broken footer: {error}") from None


class _Size(NamedTuple):
    """The size of a message of an Arrow stream, as its metadata says.

    Attributes:
        is_record_batch: Whether it is a record batch; else it is a schema or a dictionary.
        num_rows: The number of rows of a record batch, else 0.
        decompressed_bytes: The size of all buffers after decompression; 0 if they are not
            compressed, and can be used where they are.
    """

    is_record_batch: bool
    num_rows: int
    decompressed_bytes: int


def _size_of(metadata: memoryview, body: memoryview) -> _Size:
    """Return the size of a message. pyarrow does not say it before it decompresses the buffers.

    The layout is that of Arrow's Message.fbs, in the format of FlatBuffers.

    Args:
        metadata: The message's metadata.
        body: Its buffers.

    Raises:
        ArrowInvalid: The message is broken.
    """
    try:
        table = _at("<I", metadata, 0)
        kind = _at("<B", metadata, _field(metadata, table, 1))
        if kind not in (DICTIONARY_BATCH, RECORD_BATCH):
            return _Size(False, 0, 0)
        batch = _follow(metadata, _field(metadata, table, 2))
        num_rows = 0
        if kind == DICTIONARY_BATCH:
            batch = _follow(metadata, _field(metadata, batch, 1))
        elif length := _field(metadata, batch, 0):
            num_rows = _at("<q", metadata, length)
        num_bytes = 0
        if _field(metadata, batch, 3):  # its buffers are compressed; each begins with its size
            buffers = _follow(metadata, _field(metadata, batch, 2))
            places = range(buffers + 4, buffers + 4 + 16 * _at("<I", metadata, buffers), 16)
            extents = [(_at("<q", metadata, at), _at("<q", metadata, at + 8)) for at in places]
            num_bytes = sum(max(_at("<q", body, start), 0) for start, length in extents if length)
        return _Size(kind == RECORD_BATCH, num_rows, num_bytes)
    except struct.error as error:
        raise pa.ArrowInvalid(f"a broken message: {error}") from None


def _at(layout: str, buffer: memoryview, position: int) -> int:
    return int(struct.unpack_from(layout, buffer, position)[0])


def _field(buffer: memoryview, table: int, number: int) -> int:
    """Return the position of a field of a FlatBuffers table; 0 if the field is absent."""
    vtable = table - _at("<i", buffer, table)
    slot = 4 + 2 * number
    offset = _at("<H", buffer, vtable + slot) if slot < _at("<H", buffer, vtable) else 0
    return table + offset if offset else 0


def _follow(buffer: memoryview, position: int) -> int:
    """Return the position that an offset of FlatBuffers points to."""
    return position + _at("<I", buffer, position)


OPENERS: dict[str, Callable[[IO[bytes], Path], ColumnarFile]] = {
    "parquet": ParquetFile,
    "orc": OrcFile,
    "arrow": ArrowFile,
}
