"""The sample of a log that a schema is guessed from: the first rows of some of its files.

The format is found by the bytes of the files, never by their names.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import polars as pl
import pyarrow as pa

from common.files import DataError
from common.printable import printable
from features.infer.sampled_column import VALUE, SampledColumn
from features.infer.text_layout import TextLayout, find_layout
from features.ingest.readers.arrow_columns import is_known, stored_columns
from features.ingest.readers.blocks import NoRowsError, read_blocks
from features.ingest.readers.columnar_files import DAMAGE, open_columnar
from features.ingest.readers.contents import codec_of, columnar_kind, read_ends
from features.ingest.readers.json_lines import SURROGATE, parse_object, type_name

NUM_ROWS = 10_000  # of all sampled files together
MAX_SAMPLED_FILES = 3
TAIL_BYTES = 1 << 20


File = TypeVar("File")


@dataclass(frozen=True)
class LogSample:
    """Some rows of a log.

    Attributes:
        log_format: The section `format` of the schema, without `null_tokens`.
        columns: The columns, in the order of the log; null tokens are not replaced yet.
        num_files: The number of files that rows are from.
        num_rows: The number of rows.
        is_whole: Whether the log has no other rows.
        has_names: Whether the names of the columns are those of the log.
        last_rows: The last rows of the last file, where it has more rows than those of the sample
            and its end can be read: columns like `columns`.
    """

    log_format: dict[str, Any]
    columns: list[SampledColumn]
    num_files: int
    num_rows: int
    is_whole: bool
    has_names: bool
    last_rows: list[SampledColumn]


class Values(NamedTuple):
    """The values of a column in a file, and their types in JSON lines, as of SampledColumn."""

    series: pl.Series
    json_types: frozenset[str] | None = None
    item_types: frozenset[str] | None = None


@dataclass(frozen=True)
class _Rows:
    """The first rows of one file, by column; and whether they are all."""

    columns: dict[str, Values]
    num_rows: int
    is_whole: bool


def choose_files(files: Sequence[File]) -> list[File]:
    """Return the first, the middle and the last of some files, each once."""
    return [files[i] for i in sorted({0, len(files) // 2, len(files) - 1})]


def read_sample(files: Sequence[Path], num_files: int) -> LogSample:
    """Read the first rows of some files.

    Args:
        files: The files.
        num_files: The number of files of the log.

    Raises:
        NoRowsError: None of the files has rows.
        DataError: They have different formats, or cannot be read.
    """
    files = [file for file in files if file.stat().st_size]
    if not files:
        raise NoRowsError("the sampled files have no rows; fetch the log again or name another")
    kinds = {kind_of(file): file for file in files}
    if len(kinds) > 1:
        (one, first), (other, second), *_ = kinds.items()
        raise DataError(
            f"{first} is {one} and {second} is {other}; a log has one format: name the files of "
            "one of them by a pattern"
        )
    (kind,) = kinds
    num_rows = -(-NUM_ROWS // len(files))
    if kind == "text":
        return _text_sample(files, num_rows, num_files)
    if kind == "json_lines":
        parts = [_json_rows(file, num_rows) for file in files]
    else:
        parts = [_columnar_rows(file, num_rows, kind) for file in files]
    return _join({"kind": kind}, parts, files, num_files)


def kind_of(path: Path) -> str:
    """Return `format.kind` of a file, by its first bytes."""
    with path.open("rb") as file:
        if kind := columnar_kind(*read_ends(file)):
            return kind
    first = next(read_blocks(path)).text[:1024].lstrip()
    if first.startswith(b"[") and first[1:].lstrip().startswith(b"{"):
        raise DataError(
            f"{path} is a JSON array; write each of its objects on a line of its own: jq -c '.[]'"
        )
    return "json_lines" if first.startswith(b"{") else "text"


def _join(
    log_format: dict[str, Any],
    parts: Sequence[_Rows],
    files: list[Path],
    num_files: int,
    *,
    has_names: bool = True,
    last_rows: Sequence[SampledColumn] = (),
) -> LogSample:
    """Put the rows of several files below one another; a column that a file lacks is missing."""
    names = list(dict.fromkeys(name for part in parts for name in part.columns))
    columns = []
    for name in names:
        found = [
            part.columns.get(name) or Values(pl.Series(VALUE, [None] * part.num_rows, pl.Null))
            for part in parts
        ]
        columns.append(
            SampledColumn(
                name,
                _concat([values.series for values in found]),
                _union([values.json_types for values in found]),
                item_types=_union([values.item_types for values in found]),
            )
        )
    is_whole = len(files) == num_files and all(part.is_whole for part in parts)
    num_rows = sum(part.num_rows for part in parts)
    if not num_rows:
        raise NoRowsError(
            f"{files[0]}: no row can be read as {log_format['kind']}; is it a log, with one row in "
            "each line?"
        )
    return LogSample(log_format, columns, len(files), num_rows, is_whole, has_names, [*last_rows])


def _concat(values: list[pl.Series]) -> pl.Series:
    dtypes = {series.dtype for series in values if series.dtype != pl.Null}
    if len(dtypes) > 1:  # files that differ: numbers with and without a fraction, for example
        try:
            return pl.concat([series.to_frame() for series in values], how="vertical_relaxed")[
                VALUE
            ]
        except pl.exceptions.PolarsError:
            return pl.Series(VALUE, [None] * sum(map(len, values)), dtype=pl.Object)
    dtype = next(iter(dtypes), pl.Null())
    return pl.concat([s.cast(dtype) if s.dtype == pl.Null else s for s in values])


def _union(types: list[frozenset[str] | None]) -> frozenset[str] | None:
    known = [one for one in types if one is not None]
    return frozenset().union(*known) if known else None


# --- text ------------------------------------------------------------------------------------


def _text_sample(files: list[Path], num_rows: int, num_files: int) -> LogSample:
    heads = [_head(file, num_rows + 1) for file in files]
    lines = [_decoded(head) for head, _ in heads]
    for file, texts, (head, _) in zip(files, lines, heads, strict=True):
        if 2 * len(texts) <= len(head):
            raise DataError(
                f"{file}: its first lines are not UTF-8; convert it, for example: iconv -f"
                " WINDOWS-1252 -t UTF-8"
            )
    layouts = [find_layout(of_file, file) for of_file, file in zip(lines, files, strict=True)]
    layout = layouts[0]._replace(quote=next((one.quote for one in layouts if one.quote), None))
    # Each file has its own header, and so the columns in its own order.
    names_of_files = [
        _names(of_file[0], layout, _width(of_file, layout), file)
        for of_file, file in zip(lines, files, strict=True)
    ]
    for file, names in zip(files, names_of_files, strict=True):
        if {*names}.isdisjoint(names_of_files[0]):
            raise DataError(
                f"{file}: line 1 has none of the columns in the header of {files[0]}; write the"
                " same header into each file"
            )
    parts = [
        _fields(of_file[layout.header :][:num_rows], layout, of_names, is_whole)
        for of_file, of_names, (_, is_whole) in zip(lines, names_of_files, heads, strict=True)
    ]
    log_format = {
        "kind": "text",
        "separator": layout.separator,
        "quote": layout.quote,
        "header": layout.header,
    }
    tail = [] if heads[-1][1] else _decoded(_tail(files[-1], num_rows))
    last = _fields(tail, layout, names, False)
    last_rows = [SampledColumn(name, values.series) for name, values in last.columns.items()]
    return _join(log_format, parts, files, num_files, has_names=layout.header, last_rows=last_rows)


def _head(path: Path, num_lines: int) -> tuple[list[bytes], bool]:
    """Return the first lines of a file, and whether there are no others."""
    blocks = read_blocks(path)
    block = next(blocks)
    lines = block.lines()
    return lines[:num_lines], len(lines) <= num_lines and next(blocks, None) is None


def _tail(path: Path, num_lines: int) -> list[bytes]:
    """Return the last whole lines of a file of plain text; none of a compressed file."""
    with path.open("rb") as file:
        start = file.read(1024)
        size = file.seek(0, 2)
        if size <= TAIL_BYTES or b"\n" not in start or codec_of(start):
            return []
        file.seek(size - TAIL_BYTES)
        lines = file.read().replace(b"\r\n", b"\n").split(b"\n")
    return [line for line in lines[1:] if line][-num_lines:]


def _decoded(lines: list[bytes]) -> list[str]:
    """Return the lines that are UTF-8; the others are bad rows, which the check names."""
    texts = []
    for line in lines:
        try:
            texts.append(line.decode())
        except UnicodeDecodeError:
            continue
    return texts


def _width(lines: list[str], layout: TextLayout) -> int:
    widths = [len(fields) for line in lines[:1000] if (fields := layout.split(line))]
    return max(set(widths), key=widths.count)


def _names(line: str, layout: TextLayout, width: int, path: Path) -> list[str]:
    if not layout.header:
        return [f"column_{i + 1}" for i in range(width)]
    names = layout.split(line) or []
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"{path}: line 1: two columns are called {twice[0]!r}; give each a name of its own"
        )
    return names


def _fields(lines: list[str], layout: TextLayout, names: list[str], is_whole: bool) -> _Rows:
    rows = [row for line in lines if (row := layout.split(line)) and len(row) == len(names)]
    columns = zip(*rows, strict=True) if rows else ((),) * len(names)
    return _Rows(
        {
            name: Values(pl.Series(VALUE, values, dtype=pl.String))
            for name, values in zip(names, columns, strict=True)
        },
        len(rows),
        is_whole,
    )


# --- JSON lines ------------------------------------------------------------------------------


def _json_rows(path: Path, num_rows: int) -> _Rows:
    lines, is_whole = _head(path, num_rows)
    parsed = map(parse_object, lines)
    rows = [row for row, reason in parsed if reason is None]  # others are bad rows
    names = dict.fromkeys(name for row in rows for name in row if not SURROGATE.search(name))
    columns: dict[str, Values] = {}
    for name in names:
        columns[name] = _json_values([row.get(name) for row in rows])
    return _Rows(columns, len(rows), is_whole)


def _json_values(values: list[Any]) -> Values:
    types = _types_of(values)
    if types == {"list"}:
        lists = [value and list(map(_text, value)) for value in values]
        item_types = _types_of([one for value in values if value for one in value])
        return Values(pl.Series(VALUE, lists, dtype=pl.List(pl.String)), types, item_types)
    return Values(pl.Series(VALUE, list(map(_text, values)), dtype=pl.String), types)


def _types_of(values: list[Any]) -> frozenset[str]:
    return frozenset(type_name(value) for value in values if value is not None)


def _text(value: Any) -> str | None:
    match value:
        case bool():
            return str(value).lower()
        case str() if not SURROGATE.search(value):
            return str(value)
        case None:
            return None
    return ""


# --- columnar files --------------------------------------------------------------------------


def _columnar_rows(path: Path, num_rows: int, kind: str) -> _Rows:
    with open_columnar(path, kind) as file:
        names = file.schema.names
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DataError(f"{path}: several columns {twice[0]!r}; give each a name of its own")
        try:
            num_rows_of_file = file.num_rows
            # Some damage to nested columns ends the process. They are ignored anyway.
            known = [name for name in names if is_known(file.schema.field(name).type)]
            batch = next(file.batches(known or names), None)
            if batch is not None:
                batch.validate(full=True)  # Polars ends with what is no Exception for some damage
        except DAMAGE as error:
            raise DataError(
                f"{path}: broken {kind} ({printable(str(error))}); fetch the file again"
            ) from None
        if batch is None:
            return _Rows({}, 0, True)
        rows = batch.slice(0, num_rows)
        not_read = pl.Series(VALUE, [()] * rows.num_rows, dtype=pl.Object)
        columns = {
            name: Values(_series(rows.select([name])) if name in known else not_read)
            for name in names
        }
    return _Rows(columns, rows.num_rows, rows.num_rows == num_rows_of_file)


def _series(batch: pa.RecordBatch) -> pl.Series:
    """Convert a column; one that Polars does not know is of the dtype Object, with no value."""
    if not is_known(batch.schema.field(0).type):
        return pl.Series(VALUE, [None] * batch.num_rows, dtype=pl.Object)
    try:
        (series,) = stored_columns(batch)
    except (pa.ArrowException, pl.exceptions.PolarsError, NotImplementedError):
        return pl.Series(VALUE, [None] * batch.num_rows, dtype=pl.Object)
    if series.dtype == pl.Binary:
        with suppress(pl.exceptions.PolarsError):  # bytes that are no text stay binary
            series = series.cast(pl.String)
    return series.alias(VALUE)


def columns_of_paths(rows: Sequence[Mapping[str, str | None]]) -> list[SampledColumn]:
    """Return the columns that the paths of the files give, with a value for each file."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [
        SampledColumn(
            name, pl.Series(VALUE, [row.get(name) for row in rows], dtype=pl.String), in_path=True
        )
        for name in names
    ]
