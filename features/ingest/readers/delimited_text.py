"""The reader of text logs: lines of fields between separators, with or without quotes and a header.

It splits lines into columns and reports lines that it cannot split; `row_validation` decides which
rows are malformed.
"""

import csv
import re
from collections.abc import Iterator
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from common.files import DataError
from common.lookahead import map_ahead
from features.ingest.readers import digits
from features.ingest.readers.blocks import MAX_LINE_BYTES, Block, is_utf8, read_blocks
from features.ingest.readers.column_names import quoted, remedy_for
from features.ingest.readers.column_types import Column, columns_to_read
from features.ingest.readers.fields import Fields, find_fields
from features.ingest.readers.row_validation import (
    ValidatedRows,
    merge_by_line_number,
    number_lines,
    replace_null_tokens,
    validate_rows,
)
from features.schema.listed_values import numbers_of
from features.schema.schema import Schema, TextFormat

NUM_SNIFFED_LINES = 1000
NUM_THREADS = 2  # as many as the one thread that writes Parquet keeps up with
HEX_NUMBER = re.compile(r"[+-]?[0-9a-fA-F]+")
NUMBER_PARSERS = {
    "label": digits.parse_labels,
    "integer": digits.parse_integers,
    "hex32": digits.parse_hex32,
}
csv.field_size_limit(MAX_LINE_BYTES)


class Layout(NamedTuple):
    """The columns of a text log and how its lines are to be split.

    Attributes:
        format: The separator, quote and null tokens.
        field_names: The names of a line's fields, in the order of the file.
        columns: The columns that are read.
        short_rows: What becomes of lines with too few fields: `fill` or `quarantine`.
    """

    format: TextFormat
    field_names: list[str]
    columns: list[Column]
    short_rows: str

    @classmethod
    def of_log(
        cls, schema: Schema, field_names: list[str], *, labelled: bool, short_rows: str
    ) -> "Layout":
        """Make the layout of a log of a schema whose lines have these fields."""
        assert isinstance(schema.format, TextFormat)
        columns = columns_to_read(schema, labelled=labelled)
        return cls(schema.format, field_names, columns, short_rows)


def read(path: Path, schema: Schema, *, labelled: bool, short_rows: str) -> Iterator[ValidatedRows]:
    """Yield a log's rows, block by block. See `read_log.read_log` for the arguments.

    Raises:
        DataError: The log's header has other columns than the schema, or `read_blocks` raises it.
    """
    assert isinstance(schema.format, TextFormat)
    field_names = schema.log_columns(labelled=labelled)
    blocks = read_blocks(path, len(field_names))
    if schema.format.header:
        header, block = split_off_header(next(blocks))
        needed = {column.name for column in columns_to_read(schema, labelled=labelled)}
        field_names = _check_header(header, field_names, needed, schema.format, path)
        if block.num_lines:
            blocks = chain([block], blocks)
    layout = Layout.of_log(schema, field_names, labelled=labelled, short_rows=short_rows)
    return map_ahead(partial(parse_block, layout=layout), blocks, NUM_THREADS)


def has_label(path: Path, schema: Schema) -> bool:
    """Return whether a log has the label: by its header, or by the number of fields.

    In a log without a header, the first lines have all columns of the schema, or all but the label
    and the sample weight. The more frequent of the two numbers decides.

    Raises:
        DataError: None of the first lines has one of these two numbers of fields.
    """
    form = schema.format
    assert isinstance(form, TextFormat)
    lines = next(read_blocks(path)).lines()[:NUM_SNIFFED_LINES]
    if form.header:
        names, _ = split_line(lines[0], form)
        return schema.label in names
    widths = [len(split_line(line, form)[0]) for line in lines]
    num_columns = len(schema.names)
    num_without_label = len(schema.log_columns(labelled=False))
    num_labelled, num_unlabelled = widths.count(num_columns), widths.count(num_without_label)
    if not num_labelled and not num_unlabelled:
        most_frequent = sorted({*widths}, key=widths.count, reverse=True)[:3]
        raise DataError(
            f"{path}: {num_columns} columns with the label or {num_without_label} without it "
            f"expected, found {', '.join(map(str, most_frequent))}; is it this model's log?"
        )
    return num_labelled >= num_unlabelled


def parse_block(block: Block, layout: Layout) -> ValidatedRows:
    """Split a block into columns and validate its rows.

    Blocks of simple lines only are split at once. In other blocks the simple lines are split
    together, and the others one by one. The rows are the same either way.
    """
    line_numbers = number_lines(block.first_line, block.num_lines)
    columns = split_block(block.text, block.num_lines, layout)
    if columns is not None:
        return validate_rows(
            columns, layout.columns, line_numbers, block.lines_at, block.bytes_read
        )
    lines = block.lines()
    is_simple = np.array([_is_simple(line, layout) for line in lines])
    pieces = []
    for is_chosen, split in ((is_simple, _split_simple_lines), (~is_simple, split_line_by_line)):
        positions = np.flatnonzero(is_chosen)
        if len(positions):
            chosen = _at(lines, positions.tolist())
            columns, reasons = split(chosen, layout)
            pieces.append(
                validate_rows(
                    columns,
                    layout.columns,
                    line_numbers[positions],
                    partial(_at, chosen),
                    block.bytes_read,
                    reasons,
                )
            )
    return merge_by_line_number(pieces)


def split_block(text: bytes, num_lines: int, layout: Layout) -> pl.DataFrame | None:
    """Split whole lines into the columns that are read, all lines at once.

    Columns whose fields are all short numbers are returned as numbers, the others as text.

    Returns:
        The columns; None unless the text is UTF-8 and each line has exactly its fields, with quotes
        only around whole fields.
    """
    names = layout.field_names
    fields = find_fields(text, num_lines, len(names), layout.format.separator, layout.format.quote)
    if fields is None:
        return None
    null_tokens = layout.format.null_tokens
    columns_by_name = {column.name: column for column in layout.columns}
    may_be_numbers = _may_be_numbers(null_tokens)
    kinds = [_kind_to_parse(columns_by_name.get(name), may_be_numbers) for name in names]
    arrays: dict[str, pa.Array] = {}
    for kind, run in groupby(range(len(names)), lambda i: kinds[i]):
        if kind is not None:
            positions = list(run)
            columns = slice(positions[0], positions[-1] + 1)
            read_arrays = _read_columns(fields, kind, columns, may_be_empty="" in null_tokens)
            arrays |= zip(names[columns], read_arrays, strict=True)
    return _with_lists(pl.DataFrame(pl.from_arrow(pa.table(arrays))), layout)


def split_line_by_line(lines: list[bytes], layout: Layout) -> tuple[pl.DataFrame, pl.Series]:
    """Split lines into the columns that are read, one line after the other.

    Returns:
        The columns as text, null where a line has no such field.
        The reason why a line cannot be split or has the wrong number of fields; null if it is fine.
    """
    rows: list[list[str]] = []
    reasons: list[str | None] = []
    num_expected = len(layout.field_names)
    for line in lines:
        row, reason = split_line(line, layout.format)
        is_too_short = len(row) < num_expected and layout.short_rows != "fill"
        if reason is None and (is_too_short or len(row) > num_expected):
            reason = f"{len(row)} columns, {num_expected} expected"
        reasons.append(reason)
        rows.append([] if reason else row)  # a bad row may have millions of fields
    # By way of Arrow: Polars makes a series of each of the lists, which takes ten times as long.
    fields = pl.Series("fields", pa.array(rows, pa.list_(pa.string_view())))
    position_of = {name: position for position, name in enumerate(layout.field_names)}
    columns = pl.DataFrame(
        {
            column.name: fields.list.get(position_of[column.name], null_on_oob=True)
            for column in layout.columns
        }
    )
    return _with_lists(columns, layout), pl.Series("reason", reasons, dtype=pl.String)


def _with_lists(columns: pl.DataFrame, layout: Layout) -> pl.DataFrame:
    """Replace null tokens, split the fields of lists, and replace null tokens in the lists.

    A field that is a null token as a whole is a missing list.
    """
    null_tokens = layout.format.null_tokens
    columns = replace_null_tokens(columns, null_tokens)
    lists = [
        pl.col(column.name).str.split(column.separator)
        for column in layout.columns
        if column.separator is not None
    ]
    if not lists:
        return columns
    return columns.with_columns(replace_null_tokens(columns.select(lists), null_tokens))


def _is_simple(line: bytes, layout: Layout) -> bool:
    """Return whether a line has its fields and can be split at each separator."""
    form = layout.format
    num_fields = line.count(form.separator.encode()) + 1
    has_quote = form.quote is not None and form.quote.encode() in line
    return num_fields == len(layout.field_names) and not has_quote and is_utf8(line)


def _split_simple_lines(lines: list[bytes], layout: Layout) -> tuple[pl.DataFrame, None]:
    columns = split_block(b"\n".join([*lines, b""]), len(lines), layout)
    assert columns is not None
    return columns, None


def _at(lines: list[bytes], positions: list[int]) -> list[bytes]:
    return [lines[position] for position in positions]


def split_line(line: bytes, form: TextFormat) -> tuple[list[str], str | None]:
    """Split a line into fields; where that fails, return no fields and the reason."""
    try:
        text = line.decode()
        if form.quote is None or form.quote not in text:
            return text.split(form.separator), None
        reader = csv.reader([text], delimiter=form.separator, quotechar=form.quote, strict=True)
        return next(reader), None
    except UnicodeDecodeError:
        return [], "not UTF-8"
    except csv.Error as error:
        if str(error) == "unexpected end of data":
            return [], (
                "a quoted field is not closed in its line "
                "(line breaks inside quotes are not supported)"
            )
        return [], f"quotes that fit no field: {error}"


def _may_be_numbers(null_tokens: list[str]) -> bool:
    """Return whether a null token is a whole number or hex digits."""
    is_listed_number = any(number % 1 == 0 for number in numbers_of(null_tokens))
    return is_listed_number or any(HEX_NUMBER.fullmatch(token) for token in null_tokens)


def _kind_to_parse(column: Column | None, tokens_may_be_numbers: bool) -> str | None:
    """Return the kind by which a column's fields are first read; None for an ignored column."""
    if column is None:
        return None
    if tokens_may_be_numbers:
        return "string"  # to compare the fields with the tokens, their text is needed
    if column.positive:
        return "string"
    if column.is_unix:
        return "integer"
    return column.kind if column.kind in NUMBER_PARSERS and not column.is_list else "string"


def _read_columns(
    fields: Fields, kind: str, columns: slice, *, may_be_empty: bool
) -> list[pa.Array]:
    """Read neighbouring columns of a kind: as numbers where all fields allow it, else as text."""
    positions = range(columns.start, columns.stop)
    if kind not in NUMBER_PARSERS:
        return [fields.strings(position) for position in positions]
    numbers = _read_numbers(fields, kind, columns, may_be_empty=may_be_empty)
    if numbers is not None:
        return numbers
    if len(positions) == 1:
        return [fields.strings(columns.start)]
    arrays = []
    for position in positions:
        alone = slice(position, position + 1)
        arrays += _read_columns(fields, kind, alone, may_be_empty=may_be_empty)
    return arrays


def _read_numbers(
    fields: Fields, kind: str, columns: slice, *, may_be_empty: bool
) -> list[pa.Array] | None:
    """Read columns as numbers; None if one of their fields does not allow it."""
    numbers = NUMBER_PARSERS[kind](fields, columns)
    if numbers is None or not (may_be_empty or numbers.is_present.all()):
        return None
    return [_number_array(values, present) for values, present in zip(*numbers, strict=True)]


def _number_array(values: NDArray[Any], is_present: NDArray[np.bool_]) -> pa.Array:
    """Make an Arrow array of numbers, null where a field is empty, without copying the numbers."""
    validity = None
    if not is_present.all():
        validity = pa.py_buffer(np.packbits(is_present, bitorder="little"))
    return pa.Array.from_buffers(
        pa.from_numpy_dtype(values.dtype), len(values), [validity, pa.py_buffer(values)]
    )


def split_off_header(block: Block) -> tuple[bytes, Block]:
    """Return the first line of a log's first block, and the block of the other lines, if any."""
    header, _, text = block.text.partition(b"\n")
    return header, Block(text, block.first_line + 1, block.num_lines - 1, block.bytes_read)


def _check_header(
    header: bytes, expected: list[str], needed: set[str], form: TextFormat, path: Path
) -> list[str]:
    """Return the names in a header, in the order of the file.

    Args:
        header: The first line.
        expected: The names of the schema.
        needed: Those that the file must have. The others are ignored.
        form: The format of the log.
        path: The file, for the message.

    Raises:
        DataError: A needed name is missing, or a name is unknown or occurs twice.
    """
    names, reason = split_line(header, form)
    if reason:
        raise DataError(f"{path}: line 1: the header cannot be read: {reason}")
    missing = [name for name in expected if name in needed and name not in names]
    unknown = [name for name in names if name not in expected]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if missing or unknown or twice:
        found = f"missing: {quoted(missing)}; unknown: {quoted(unknown)}"
        if twice:
            remedy = "Give each column of the log a name of its own"
            found += f"; twice: {quoted(twice)}"
        else:
            remedy = remedy_for(missing, unknown)
        raise DataError(
            f"{path}: line 1: a header with the schema's {len(expected)} columns expected; "
            f"{found}. {remedy}"
        )
    return names
