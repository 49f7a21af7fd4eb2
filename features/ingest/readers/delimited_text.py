"""Lines of separated fields, with quotes and a header or without."""

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
from features.ingest.readers.column_types import Column, raw_columns
from features.ingest.readers.fields import Fields, find_fields
from features.ingest.readers.row_validation import (
    Parsed,
    joined,
    line_numbers,
    parse,
    without_tokens,
)
from features.schema.schema import UNIX, Schema, TextFormat

SNIFFED_LINES = 1000
THREADS = 2  # that is what one thread that writes Parquet keeps up with
NUMBER = re.compile(r"[+-]?[0-9a-fA-F]+")
DIGITS = {"label": digits.label, "integer": digits.integers, "hex32": digits.hex32}
csv.field_size_limit(MAX_LINE_BYTES)


class Layout(NamedTuple):
    """names: of the fields of a line, in the file's order; columns: those that are kept; short_rows: "fill" or "quarantine"."""

    form: TextFormat
    names: list[str]
    columns: list[Column]
    short_rows: str

    @classmethod
    def of(cls, schema: Schema, names: list[str], *, labelled: bool, short_rows: str) -> "Layout":
        assert isinstance(schema.format, TextFormat)
        return cls(schema.format, names, raw_columns(schema, labelled=labelled), short_rows)


def read(path: Path, schema: Schema, *, labelled: bool, short_rows: str) -> Iterator[Parsed]:
    """The log's rows, block by block. Raises DataError for a header of other columns than the schema's."""
    assert isinstance(schema.format, TextFormat)
    blocks = read_blocks(path)
    names = schema.columns_of(labelled)
    if schema.format.header:
        header, block = _split_header(next(blocks))
        names = _header_names(header, names, schema.format, path)
        blocks = chain([block], blocks) if block.num_lines else blocks
    layout = Layout.of(schema, names, labelled=labelled, short_rows=short_rows)
    return map_ahead(partial(parse_block, layout=layout), blocks, THREADS)


def has_label(path: Path, schema: Schema) -> bool:
    """By the header; without one, the first lines have all of the schema's columns, or all but one, and the more frequent counts.

    Raises DataError when they have neither number.
    """
    form = schema.format
    assert isinstance(form, TextFormat)
    lines = next(read_blocks(path)).lines()[:SNIFFED_LINES]
    if form.header:
        return schema.label in _split(lines[0], form)[0]
    widths = [len(_split(line, form)[0]) for line in lines]
    num_columns = len(schema.names)
    with_label, without = widths.count(num_columns), widths.count(num_columns - 1)
    if not with_label and not without:
        found = ", ".join(
            str(width) for width in sorted({*widths}, key=widths.count, reverse=True)[:3]
        )
        raise DataError(
            f"{path}: {num_columns} columns with the label or {num_columns - 1} without it expected, found {found}; is it this model's log?"
        )
    return with_label >= without


def parse_block(block: Block, layout: Layout) -> Parsed:
    """All lines at once, if each has its fields; else those that do, and the others one by one. The answer is the same."""
    lines = line_numbers(block.first_line, block.num_lines)
    found = split_clean(block.text, block.num_lines, layout)
    if found is not None:
        return parse(found, layout.columns, lines, block.lines_at, block.read_bytes)
    is_plain = np.array([_is_plain(line, layout) for line in block.lines()])
    pieces = []
    for split, places in (
        (_split_plain, np.flatnonzero(is_plain)),
        (split_carefully, np.flatnonzero(~is_plain)),
    ):
        if len(places):
            some = block.lines_at(places.tolist())
            found, reasons = split(some, layout)
            raw = partial(_at, some)
            pieces.append(
                parse(found, layout.columns, lines[places], raw, block.read_bytes, reasons)
            )
    return joined(pieces)


def split_clean(text: bytes, num_lines: int, layout: Layout) -> pl.DataFrame | None:
    """The columns, numbers where all are short digits, or text; None unless each line has exactly its fields and is UTF-8."""
    fields = find_fields(
        text, num_lines, len(layout.names), layout.form.separator, layout.form.quote
    )
    if fields is None:
        return None
    by_name = {column.name: column for column in layout.columns}
    tokens = layout.form.null_tokens
    made: dict[str, pa.Array] = {}
    for kind, run in groupby(
        range(len(layout.names)), lambda i: _kind(by_name.get(layout.names[i]), tokens)
    ):
        if kind:
            places = list(run)
            columns = _columns(fields, kind, slice(places[0], places[-1] + 1), "" in tokens)
            made |= zip((layout.names[i] for i in places), columns, strict=True)
    return without_tokens(pl.DataFrame(pl.from_arrow(pa.table(made))), tokens)


def split_carefully(lines: list[bytes], layout: Layout) -> tuple[pl.DataFrame, pl.Series]:
    """The columns as text, null beyond a short line's end, and reasons, null for lines that have their fields."""
    fields: list[list[str]] = []
    reasons: list[str | None] = []
    expected, may_be_short = len(layout.names), layout.short_rows == "fill"
    for line in lines:
        row, reason = _split(line, layout.form)
        if reason is None and (len(row) > expected or (len(row) < expected and not may_be_short)):
            reason = f"{len(row)} columns, {expected} expected"
        reasons.append(reason)
        fields.append(row[:expected])
    columns = pl.Series("fields", fields, dtype=pl.List(pl.String))
    text = {
        name: columns.list.get(place, null_on_oob=True) for place, name in enumerate(layout.names)
    }
    found = pl.DataFrame({column.name: text[column.name] for column in layout.columns})
    return without_tokens(found, layout.form.null_tokens), pl.Series(
        "reason", reasons, dtype=pl.String
    )


def _is_plain(line: bytes, layout: Layout) -> bool:
    """Whether a line can be split at its separators, and has its fields."""
    form = layout.form
    has_fields = line.count(form.separator.encode()) == len(layout.names) - 1
    return has_fields and not (form.quote and form.quote.encode() in line) and is_utf8(line)


def _split_plain(lines: list[bytes], layout: Layout) -> tuple[pl.DataFrame, None]:
    found = split_clean(b"\n".join([*lines, b""]), len(lines), layout)
    assert found is not None
    return found, None


def _at(lines: list[bytes], places: list[int]) -> list[bytes]:
    return [lines[place] for place in places]


def _split(line: bytes, form: TextFormat) -> tuple[list[str], str | None]:
    """The fields of a line; or why there are none."""
    try:
        text = line.decode()
        if form.quote is None or form.quote not in text:
            return text.split(form.separator), None
        return next(
            csv.reader([text], delimiter=form.separator, quotechar=form.quote, strict=True)
        ), None
    except UnicodeDecodeError:
        return [], "not UTF-8"
    except csv.Error as error:
        if str(error) == "unexpected end of data":
            return (
                [],
                "a quoted field is not closed in its line (line breaks inside quotes are not supported)",
            )
        return [], f"quotes that fit no field: {error}"


def _kind(column: Column | None, null_tokens: list[str]) -> str:
    """How the fields are read: as label, integer or hex32 from their digits, as string otherwise; empty for an ignored column."""
    if column is None:
        return ""
    if any(NUMBER.fullmatch(token) for token in null_tokens):
        return "string"
    if column.pattern == UNIX:
        return "integer"
    return column.kind if column.kind in DIGITS else "string"


def _columns(fields: Fields, kind: str, places: slice, may_be_empty: bool) -> list[pa.Array]:
    """Neighbours of a kind: as numbers if all their fields are short digits, else each by itself, as text if need be."""
    numbers = DIGITS[kind](fields, places) if kind in DIGITS else None
    if numbers is not None and (may_be_empty or numbers.filled.all()):
        return [_number_array(values, filled) for values, filled in zip(*numbers, strict=True)]
    if kind not in DIGITS or places.stop - places.start == 1:
        return [fields.strings(place) for place in range(places.start, places.stop)]
    alone = [slice(place, place + 1) for place in range(places.start, places.stop)]
    return [column for place in alone for column in _columns(fields, kind, place, may_be_empty)]


def _number_array(values: NDArray[Any], filled: NDArray[np.bool_]) -> pa.Array:
    """An array of the numbers, null where a field was empty."""
    validity = None if filled.all() else pa.py_buffer(np.packbits(filled, bitorder="little"))
    return pa.Array.from_buffers(
        pa.from_numpy_dtype(values.dtype), len(values), [validity, pa.py_buffer(values)]
    )


def _split_header(block: Block) -> tuple[bytes, Block]:
    header, _, text = block.text.partition(b"\n")
    return header, Block(text, block.first_line + 1, block.num_lines - 1, block.read_bytes)


def _header_names(header: bytes, expected: list[str], form: TextFormat, path: Path) -> list[str]:
    """The file's columns in their order. Raises DataError unless they are the expected ones."""
    names, reason = _split(header, form)
    if reason:
        raise DataError(f"{path}: line 1: the header cannot be read: {reason}")
    if sorted(names) != sorted(expected):
        missing = [name for name in expected if name not in names]
        other = [name for name in names if name not in expected or names.count(name) > 1]
        raise DataError(
            f"{path}: line 1: a header with the schema's {len(expected)} columns expected; missing: {', '.join(missing) or 'none'}; "
            f"unknown or twice: {', '.join(other)[:500] or 'none'}. Declare them in the schema (kind: ignored for what is not needed)"
        )
    return names
