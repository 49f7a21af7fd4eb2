"""The sample of a log that a schema is guessed from: the first rows of some of its files.

The format is found by the bytes of the files, never by their names.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
import pyarrow as pa

from common.files import DataError
from common.printable import printable
from features.infer.sampled_column import VALUE, SampledColumn
from features.infer.text_layout import TextLayout, find_layout
from features.ingest.readers.arrow_columns import stored_columns
from features.ingest.readers.blocks import NoRowsError, read_blocks
from features.ingest.readers.columnar_files import DAMAGE, open_columnar
from features.ingest.readers.columnar_log import is_known
from features.ingest.readers.contents import codec_of, columnar_kind, read_ends
from features.ingest.readers.json_lines import SURROGATE, parse_object, type_name

NUM_ROWS = 10_000  # of all sampled files together
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


Values = tuple[pl.Series, frozenset[str] | None]
"""The values of a column in a file, and their types in JSON lines."""


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
        values, types = [], []
        for part in parts:
            if name in part.columns:
                series, json_types = part.columns[name]
                values.append(series)
                types.append(json_types)
            else:
                values.append(pl.Series(VALUE, [None] * part.num_rows, dtype=pl.Null))
        columns.append(SampledColumn(name, _concat(values), _union(types)))
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
    if not all(lines):
        raise DataError(f"{files[lines.index([])]}: its first lines are not UTF-8; convert it")
    layout = find_layout(
        [line for of_file in lines for line in of_file[: num_rows // 10 + 1]], files[0]
    )
    layout = layout._replace(header=find_layout(lines[0], files[0]).header)
    width = _width(lines[0], layout)
    names = _names(lines[0][0], layout, width, files[0])
    parts = [
        _fields(of_file[layout.header :][:num_rows], layout, names, is_whole)
        for of_file, (_, is_whole) in zip(lines, heads, strict=True)
    ]
    log_format = {
        "kind": "text",
        "separator": layout.separator,
        "quote": layout.quote,
        "header": layout.header,
    }
    tail = [] if heads[-1][1] else _decoded(_tail(files[-1], num_rows))
    last = _fields(tail, layout, names, False)
    last_rows = [SampledColumn(name, series) for name, (series, _) in last.columns.items()]
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
            name: (pl.Series(VALUE, values, dtype=pl.String), None)
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
        values = [row.get(name) for row in rows]
        types = frozenset(type_name(value) for value in values if value is not None)
        texts = [_text(value) for value in values]
        columns[name] = (pl.Series(VALUE, texts, dtype=pl.String), types)
    return _Rows(columns, len(rows), is_whole)


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
        columns: dict[str, Values] = {
            name: (_series(rows.select([name])) if name in known else not_read, None)
            for name in names
        }
    return _Rows(columns, rows.num_rows, rows.num_rows == num_rows_of_file)


def _series(batch: pa.RecordBatch) -> pl.Series:
    """Convert a column; one that Polars does not know is of the dtype Object, with no value."""
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
