"""The reader of JSON lines: an object on each line; keys that the schema does not name are ignored.

It splits lines into columns and reports values of a wrong JSON type; `row_validation` decides which
rows are malformed. A text value is read as the same text in a delimited log would be.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.json as pj

from common.lookahead import map_ahead
from common.numbers import MAX_EXACT, ceil_div
from features.ingest.readers.blocks import LF, Block, cut_block, is_utf8, read_blocks
from features.ingest.readers.column_types import Column, columns_to_read
from features.ingest.readers.row_validation import (
    ValidatedRows,
    merge_by_line_number,
    number_lines,
    replace_null_tokens,
    validate_rows,
)
from features.list_values import values_of
from features.schema.listed_values import find_number
from features.schema.schema import Schema
from features.schema.time_parses import ISO8601
from features.schema.transforms.transform import MAX_FLOAT32

NUM_SNIFFED_LINES = 1000
NUM_THREADS = 2
# A block that Arrow cannot parse is cut into at most MAX_PARTS parts of MIN_PART_LINES or more.
MAX_PARTS, MIN_PART_LINES = 16, 128
# A longer line is a bad row. Python's objects need up to 70 times the memory of their text.
MAX_OBJECT_BYTES = 1 << 20
MAX_QUOTED_CHARS = 50  # of a value, in a reason
SURROGATE = re.compile("[\ud800-\udfff]")
# `Inf` and `-NaN` as values: numbers to Arrow and errors to Python, so Arrow must not parse such
# lines. `Infinity` is a number to both.
INF = re.compile(rb"Inf(?<=[\s:,\[-]Inf)(?!inity)")
NEGATIVE_NAN = b"-NaN"
# The JSON types that each kind of column accepts. A number in a hex32 column is refused: how it was
# written (`1`, `01`) would be a guess.
ACCEPTED_TYPES = {
    "label": ("number", "string", "boolean"),
    "integer": ("number", "string", "boolean"),
    "float": ("number", "string"),
    "hex32": ("string",),
    "string": ("string", "number", "boolean"),
    "time": ("string", "number"),
    "copied": ("string", "number", "boolean"),
    "weights": ("number", "string"),
    "sample_weight": ("number", "string"),
}
FLOAT_KINDS = ("float", "weights", "sample_weight")
INTEGER = re.compile("-?[0-9]+")
MAX_INT64, MAX_UINT64 = 2**63 - 1, 2**64 - 1


class NumberText(str):
    """A JSON number, as the text that is in the log."""

    __slots__ = ()


class _DuplicateKey:
    """The value of a key that an object contains twice."""


class Layout(NamedTuple):
    """The columns of a JSON lines log.

    Attributes:
        columns: The columns that are read.
        types: The Arrow types that the log's first lines suggest for them.
        null_tokens: The texts that mean a missing value.
    """

    columns: list[Column]
    types: pa.Schema
    null_tokens: list[str]

    @classmethod
    def of_log(cls, schema: Schema, first: Block, *, labelled: bool) -> "Layout":
        """Make the layout of a log that begins with this block."""
        columns = columns_to_read(schema, labelled=labelled)
        values: dict[str, list[Any]] = {column.name: [] for column in columns}
        for one in _first_objects(first):
            for column in columns:
                found = one.get(column.name)
                of_row = found if column.is_list and isinstance(found, list) else [found]
                values[column.name] += [value for value in of_row if value is not None]
        types = pa.schema(
            [(column.name, _likely_type(values[column.name], column)) for column in columns]
        )
        return cls(columns, types, schema.format.null_tokens)


def read(path: Path, schema: Schema, *, labelled: bool, short_rows: str) -> Iterator[ValidatedRows]:
    """Yield a log's rows, block by block. See `read_log.read_log` for the arguments.

    A missing key is a missing value, so `short_rows` has no effect.

    Raises:
        DataError: `read_blocks` raises it.
    """
    blocks = read_blocks(path, len(schema.names))
    block = next(blocks)
    layout = Layout.of_log(schema, block, labelled=labelled)
    return map_ahead(partial(parse_block, layout=layout), chain([block], blocks), NUM_THREADS)


def has_label(path: Path, schema: Schema) -> bool:
    """Return whether at least half of the first lines have the label's key."""
    are_labelled = [schema.label in one for one in _first_objects(next(read_blocks(path)))]
    return 2 * sum(are_labelled) >= max(len(are_labelled), 1)


def parse_block(block: Block, layout: Layout) -> ValidatedRows:
    """Split a block into columns and validate its rows.

    Arrow parses the whole block if its lines are like the first ones of the log. If they are not,
    the block is cut into parts, and small parts that Arrow cannot parse are parsed by Python, line
    by line.
    """
    columns, reasons = parse_with_arrow(block.text, block.num_lines, layout), None
    if columns is None and block.num_lines > MIN_PART_LINES:
        return merge_by_line_number([parse_block(part, layout) for part in _parts(block)])
    if columns is None:
        columns, reasons = parse_line_by_line(block.lines(), layout)
    line_numbers = number_lines(block.first_line, block.num_lines)
    return validate_rows(
        columns, layout.columns, line_numbers, block.lines_at, block.bytes_read, reasons
    )


def _parts(block: Block) -> Iterator[Block]:
    return cut_block(block, max(ceil_div(block.num_lines, MAX_PARTS), MIN_PART_LINES))


def parse_with_arrow(text: bytes, num_lines: int, layout: Layout) -> pl.DataFrame | None:
    """Parse whole lines into the columns that are read, all lines at once.

    Arrow parses a stream of objects and does not look where the lines end. So it is checked that
    each line is one object: all lines begin with a brace and end with one, and there are as many
    objects as lines. No object or text can contain a line end between two braces `}` and `{`.

    Returns:
        The columns; None unless each line is an object, with values of the expected types.
    """
    num_begins = text.count(b"\n{") + text.startswith(b"{")
    num_ends = text.count(b"}\n")
    if num_begins != num_lines or num_ends != num_lines or INF.search(text) or not is_utf8(text):
        return None
    if NEGATIVE_NAN in text:
        return None
    if _longest_line(text) > MAX_OBJECT_BYTES:
        return None
    read_options = pj.ReadOptions(use_threads=False, block_size=len(text))
    parse_options = pj.ParseOptions(
        explicit_schema=layout.types, unexpected_field_behavior="ignore"
    )
    try:
        table = pj.read_json(BytesIO(text), read_options, parse_options)
    except pa.ArrowInvalid:
        return None
    if table.num_rows != num_lines:
        return None
    frame = replace_null_tokens(pl.DataFrame(pl.from_arrow(table)), layout.null_tokens)
    return _with_exact_numbers(frame, layout.columns)


def _with_exact_numbers(frame: pl.DataFrame, columns: list[Column]) -> pl.DataFrame | None:
    """Convert whole numbers that Arrow has read as floats to int64.

    Returns:
        The columns; None if the text of a number is needed: it has more digits than a float, it
        is out of the column's range, or it has a fraction where none is allowed.
    """
    integers = []
    for column in columns:
        numbers = frame[column.name]
        if column.is_list:
            numbers = values_of(numbers)
        if not numbers.dtype.is_float():
            continue
        is_float = column.kind in FLOAT_KINDS
        limit = MAX_FLOAT32 if is_float else MAX_EXACT - 1
        may_have_fraction = is_float or column.is_unix
        if not (numbers.abs() <= limit).all():
            return None
        if not may_have_fraction and not (numbers % 1 == 0).all():
            return None
        if not may_have_fraction:
            integers.append(
                frame[column.name].cast(pl.List(pl.Int64) if column.is_list else pl.Int64)
            )
    return frame.with_columns(integers)


def _longest_line(text: bytes) -> int:
    line_ends = np.flatnonzero(np.frombuffer(text, np.uint8) == LF[0])
    return int(np.diff(line_ends, prepend=-1).max()) - 1


def parse_line_by_line(lines: list[bytes], layout: Layout) -> tuple[pl.DataFrame, pl.Series]:
    """Parse lines into the columns that are read, one line after the other.

    Returns:
        The columns as text or lists of texts, null where a value is missing.
        The reason why a line cannot be parsed or has a value of a wrong type; null if it is fine.
    """
    columns: dict[str, list[Any]] = {column.name: [] for column in layout.columns}
    reasons: list[str | None] = []
    for line in lines:
        values, reason = parse_object(line)
        for column in layout.columns:
            as_text = _as_texts if column.is_list else _as_text
            text, value_reason = as_text(values.get(column.name), column, layout.null_tokens)
            columns[column.name].append(text)
            reason = reason or value_reason
        reasons.append(reason)
    dtypes = {
        column.name: pl.List(pl.String) if column.is_list else pl.String
        for column in layout.columns
    }
    return (
        pl.DataFrame(columns, schema=dtypes),
        pl.Series("reason", reasons, dtype=pl.String),
    )


def parse_object(line: bytes) -> tuple[dict[str, Any], str | None]:
    """Parse the object in a line; where that fails, return an empty object and the reason."""
    if len(line) > MAX_OBJECT_BYTES:
        return {}, f"longer than {MAX_OBJECT_BYTES >> 20} MiB"
    try:
        value = json.loads(
            line.decode(),
            parse_int=NumberText,
            parse_float=NumberText,
            parse_constant=NumberText,
            object_pairs_hook=_mark_duplicate_keys,
        )
    except UnicodeDecodeError:
        return {}, "not UTF-8"
    except json.JSONDecodeError as error:
        return {}, f"no JSON: {error.msg} at character {error.pos + 1}"
    except RecursionError:
        return {}, "no JSON that can be read: too deeply nested"
    if not isinstance(value, dict):
        return {}, "no JSON object"
    return value, None


def _mark_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        values |= {key: _DuplicateKey() for key, count in counts.items() if count > 1}
    return values


def type_name(value: Any) -> str:
    """Return the name of the JSON type of a value of `parse_object`."""
    match value:
        case NumberText():
            return "number"
        case str():
            return "string"
        case bool():
            return "boolean"
        case list():
            return "list"
        case _DuplicateKey():
            return "the key twice"
    return "object"


def _as_text(value: Any, column: Column, null_tokens: list[str]) -> tuple[str | None, str | None]:
    """Return a value as text, null if it is missing, and the reason if it cannot be used."""
    if value is None:
        return None, None
    found, accepted = type_name(value), _accepted_types(column)
    if found == "boolean":
        if str(value).lower() in null_tokens:
            return None, None
    elif found == "number" and find_number(value, null_tokens) is not None:
        return None, None
    if found not in accepted:
        return None, f"{column.name}: {found} found, {' or '.join(accepted)} expected"
    if found == "boolean":
        return str(value).lower(), None
    if found == "number":
        return _number_as_text(value, column)
    if value in null_tokens:
        return None, None
    if not value.isascii() and SURROGATE.search(value):
        quoted = ascii(value)[:MAX_QUOTED_CHARS]
        return None, f"{column.name}: half of a surrogate pair in {quoted}"
    return value, None


def _number_as_text(number: str, column: Column) -> tuple[str | None, str | None]:
    """Return the text of a JSON number, and the reason if it cannot be used.

    Arrow has numbers, not texts, so it must not matter how a number is written.
    """
    if column.kind in FLOAT_KINDS:
        return str(number), None
    if column.kind == "label" and (listed := find_number(number, column.labels or ["0", "1"])):
        return listed, None
    if INTEGER.fullmatch(number):
        return "0" if number == "-0" else str(number), None
    if column.kind == "string":
        return None, f"{column.name}: number with a fraction found, text or integer expected"
    value = float(number)
    is_exact = value % 1 == 0 and abs(value) < MAX_EXACT
    return str(int(value)) if is_exact else str(number), None


def _as_texts(
    value: Any, column: Column, null_tokens: list[str]
) -> tuple[list[str | None] | None, str | None]:
    """Return a list's values as texts, None if it is missing, and why it cannot be used."""
    if value is None or (type_name(value) == "string" and value in null_tokens):
        return None, None
    if not isinstance(value, list):
        return None, f"{column.name}: {type_name(value)} found, list expected"
    texts: list[str | None] = []
    for one in value:
        text, reason = _as_text(one, column, null_tokens)
        if reason:
            return None, reason
        texts.append(text)
    return texts, None


def _accepted_types(column: Column) -> tuple[str, ...]:
    return ("string",) if column.pattern == ISO8601 else ACCEPTED_TYPES[column.kind]


def _first_objects(block: Block) -> Iterator[dict[str, Any]]:
    for line in block.lines()[:NUM_SNIFFED_LINES]:
        values, reason = parse_object(line)
        if reason is None:
            yield values


def _likely_type(values: list[Any], column: Column) -> pa.DataType:
    """Return the Arrow type of most of a column's values; the others are found later.

    Args:
        values: The log's first values.
        column: The column.
    """
    value_type = _likely_type_of_values(values, column)
    return pa.list_(value_type) if column.is_list else value_type


def _likely_type_of_values(values: list[Any], column: Column) -> pa.DataType:
    counts = Counter(map(type_name, values))
    most_frequent = max(_accepted_types(column), key=lambda name: counts[name])
    if most_frequent == "boolean":
        return pa.bool_()
    if most_frequent == "string":
        return pa.string()
    if column.kind in FLOAT_KINDS:
        return pa.float64()
    numbers = [value for value in values if isinstance(value, NumberText)]
    if all(map(INTEGER.fullmatch, numbers)):
        is_large = any(MAX_INT64 < int(number) <= MAX_UINT64 for number in numbers)
        return pa.uint64() if column.kind == "string" and is_large else pa.int64()
    can_be_float = column.kind in ("label", "integer") or column.is_unix
    return pa.float64() if can_be_float else pa.int64()
