"""A JSON object a line. A text is read as a text log's field would be; keys that the schema does not name say nothing."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa
import pyarrow.json as pj

from common.lookahead import map_ahead
from features.ingest.readers.blocks import Block, is_utf8, read_blocks
from features.ingest.readers.column_types import Column, raw_columns
from features.ingest.readers.row_validation import (
    Parsed,
    joined,
    line_numbers,
    parse,
    without_tokens,
)
from features.schema.schema import Schema

SNIFFED_LINES = 1000
THREADS = 2
NUM_PARTS, PART_LINES = 16, 128
SURROGATE = re.compile("[\ud800-\udfff]")
INF = re.compile(rb"Inf(?<=[\s:,\[-]Inf)(?!inity)")  # a number to Arrow alone
# JSON types that a kind of column takes; a number for hex32 or string would be a guess at how it was written
TAKES = {
    "label": ("number", "string", "boolean"),
    "integer": ("number", "string"),
    "float": ("number", "string"),
    "hex32": ("string",),
    "string": ("string",),
    "time": ("string", "number"),
}


class Number(str):
    """A number as it is written."""

    __slots__ = ()


class Layout(NamedTuple):
    """columns: those that are kept; types: what the log's values are in Arrow, as far as its first lines tell."""

    columns: list[Column]
    types: pa.Schema
    null_tokens: list[str]

    @classmethod
    def of(cls, schema: Schema, first: Block, *, labelled: bool) -> "Layout":
        """For a log that starts with this block."""
        columns = raw_columns(schema, labelled=labelled)
        objects = list(_first_objects(first))
        types = pa.schema([(column.name, _sniff(objects, column)) for column in columns])
        return cls(columns, types, schema.format.null_tokens)


def read(path: Path, schema: Schema, *, labelled: bool, short_rows: str) -> Iterator[Parsed]:
    """The log's rows, block by block. A missing key is a null, so short_rows means nothing here."""
    blocks = read_blocks(path)
    block = next(blocks)
    layout = Layout.of(schema, block, labelled=labelled)
    return map_ahead(partial(parse_block, layout=layout), chain([block], blocks), THREADS)


def has_label(path: Path, schema: Schema) -> bool:
    """Whether most of the first lines have the label's key."""
    objects = list(_first_objects(next(read_blocks(path))))
    return 2 * sum(schema.label in one for one in objects) >= max(len(objects), 1)


def parse_block(block: Block, layout: Layout) -> Parsed:
    """All lines at once by Arrow if they are as the first ones were, else part by part, at last line by line by Python."""
    found, reasons = read_at_once(block.text, block.num_lines, layout), None
    if found is None and block.num_lines > PART_LINES:
        return joined([parse_block(part, layout) for part in _parts(block)])
    if found is None:
        found, reasons = read_one_by_one(block.lines(), layout)
    lines = line_numbers(block.first_line, block.num_lines)
    return parse(found, layout.columns, lines, block.lines_at, block.read_bytes, reasons)


def _parts(block: Block) -> Iterator[Block]:
    """Up to 16 shorter blocks."""
    lines, size = block.lines(), max(-(-block.num_lines // NUM_PARTS), PART_LINES)
    for start in range(0, len(lines), size):
        part = lines[start : start + size]
        yield Block(b"\n".join([*part, b""]), block.first_line + start, len(part), block.read_bytes)


def read_at_once(text: bytes, num_lines: int, layout: Layout) -> pl.DataFrame | None:
    """The columns by Arrow; None unless each line is an object and the values are of the expected types.

    Arrow takes a stream of objects, wherever lines end. Lines that all start with a brace and end with one, and are as many as the
    objects, are an object each: between two braces } and { no object or text can go on.
    """
    starts = text.count(b"\n{") + text.startswith(b"{")
    if (
        starts != num_lines
        or text.count(b"}\n") != num_lines
        or INF.search(text)
        or not is_utf8(text)
    ):
        return None
    options = pj.ParseOptions(explicit_schema=layout.types, unexpected_field_behavior="ignore")
    try:
        table = pj.read_json(
            BytesIO(text), pj.ReadOptions(use_threads=False, block_size=len(text)), options
        )
    except pa.ArrowInvalid:
        return None
    return (
        without_tokens(pl.DataFrame(pl.from_arrow(table)), layout.null_tokens)
        if table.num_rows == num_lines
        else None
    )


def read_one_by_one(lines: list[bytes], layout: Layout) -> tuple[pl.DataFrame, pl.Series]:
    """The columns as text, and reasons, null for lines that can be read so far."""
    values: dict[str, list[str | None]] = {column.name: [] for column in layout.columns}
    reasons: list[str | None] = []
    for line in lines:
        row, reason = _object(line)
        for column in layout.columns:
            value, fault = _text(row.get(column.name), column, layout.null_tokens)
            values[column.name].append(value)
            reason = reason or fault
        reasons.append(reason)
    return pl.DataFrame(values, schema=dict.fromkeys(values, pl.String)), pl.Series(
        "reason", reasons, dtype=pl.String
    )


def _object(line: bytes) -> tuple[dict[str, Any], str | None]:
    """The object in a line, empty where there is none, and then why."""
    try:
        value = json.loads(
            line.decode(),
            parse_int=Number,
            parse_float=Number,
            parse_constant=Number,
            object_pairs_hook=_pairs,
        )
    except UnicodeDecodeError:
        return {}, "not UTF-8"
    except json.JSONDecodeError as error:
        return {}, f"no JSON: {error.msg} at character {error.pos + 1}"
    except RecursionError:
        return {}, "no JSON that can be read: too deeply nested"
    return (value, None) if isinstance(value, dict) else ({}, "no JSON object")


class _Twice:
    """The value of a key that an object has twice."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        found |= {key: _Twice() for key, count in counts.items() if count > 1}
    return found


def _type(value: Any) -> str:
    match value:
        case Number():
            return "number"
        case str():
            return "string"
        case bool():
            return "boolean"
        case _Twice():
            return "the key twice"
    return "list" if isinstance(value, list) else "object"


def _text(value: Any, column: Column, null_tokens: list[str]) -> tuple[str | None, str | None]:
    """A value as text, null where there is none, and what is wrong with it."""
    if value is None:
        return None, None
    kind, takes = _type(value), TAKES[column.kind]
    if kind not in takes:
        return None, f"{column.name}: {kind} found, {' or '.join(takes)} expected"
    if kind == "boolean":
        return str(int(value)), None
    if kind == "number":
        return (
            "0" if value == "-0" and column.kind != "float" else str(value)
        ), None  # as Arrow reads it
    if value in null_tokens:
        return None, None
    if not value.isascii() and SURROGATE.search(value):
        return None, f"{column.name}: half of a surrogate pair in {ascii(value)[:50]}"
    return value, None


def _first_objects(block: Block) -> Iterator[dict[str, Any]]:
    for line in block.lines()[:SNIFFED_LINES]:
        found, reason = _object(line)
        if reason is None:
            yield found


def _sniff(objects: list[dict[str, Any]], column: Column) -> pa.DataType:
    """What the column's values mostly are; what the others are is seen later."""
    kinds = Counter(_type(one[column.name]) for one in objects if one.get(column.name) is not None)
    known = {kind: kinds[kind] for kind in TAKES[column.kind]}
    kind = max(known, key=lambda kind: known[kind])
    if kind == "number":
        return pa.float64() if column.kind == "float" else pa.int64()
    return pa.bool_() if kind == "boolean" else pa.string()
