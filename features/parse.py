"""Lines of text to typed columns. Every line comes out once: as a row, or as a bad row with its line number and reason."""

from dataclasses import dataclass

import polars as pl
from polars.exceptions import PolarsError

from features.lines import Block
from features.schema import Schema

BAD_ROWS = {"line": pl.UInt64, "reason": pl.String, "raw": pl.Binary}


@dataclass(frozen=True)
class Parsed:
    """rows: label u8, dense i64, categorical u32, in the schema's order, null where the log says nothing; lines: their line numbers (u64).

    bad: the other lines, as columns line (u64), reason, raw (the line's bytes).
    """

    rows: pl.DataFrame
    lines: pl.Series
    bad: pl.DataFrame


def typed_columns(schema: Schema) -> dict[str, type[pl.DataType]]:
    """The columns of a parsed row, labelled, in the schema's order."""
    return {schema.label: pl.UInt8, **dict.fromkeys(schema.dense, pl.Int64), **dict.fromkeys(schema.categorical, pl.UInt32)}


def parse_block(block: Block, schema: Schema, *, labelled: bool, fill_short_rows: bool) -> Parsed:
    """Parse a block; rows without the label column when not labelled.

    fill_short_rows reads rows whose trailing empty fields were stripped, as if the missing fields were null.
    """
    names = schema.columns_of(labelled)
    lines = pl.int_range(block.first_line, block.first_line + block.num_lines, dtype=pl.UInt64, eager=True).alias("line")
    text = _split_clean(block, names, schema)
    bad = [pl.DataFrame(schema=BAD_ROWS)]
    if text is None:
        text, ragged = _split_ragged(block, names, schema, fill_short_rows)
        reason = ragged["reason"]
        bad.append(_bad_rows(block, lines, reason))
        text, lines = text.filter(reason.is_null()), lines.filter(reason.is_null())
    rows = text.select(_typed(schema, names))
    # a value that was there and is not any more could not be read; clean blocks pay only for this comparison
    if rows.null_count().row(0) != _expected_nulls(text, schema):
        reason = text.select(_reasons(schema, names, rows).alias("reason"))["reason"]
        bad.append(_bad_rows(block, lines, reason))
        rows, lines = rows.filter(reason.is_null()), lines.filter(reason.is_null())
    return Parsed(rows, lines, pl.concat(bad).sort("line"))


def _split_clean(block: Block, names: list[str], schema: Schema) -> pl.DataFrame | None:
    """Every field as text, or None unless each line has exactly its fields and is UTF-8.

    Polars refuses a line with too many fields and fills one with too few, so the count of separators decides. It also drops a CR that
    ends a field, which would let a broken value pass.
    """
    separator = schema.format.separator
    if block.text.count(separator.encode()) != (len(names) - 1) * block.num_lines or b"\r" in block.text:
        return None
    try:
        text = pl.read_csv(
            block.text,
            has_header=False,
            separator=separator,
            quote_char=None,
            schema=dict.fromkeys(names, pl.String),
            null_values=schema.format.null_tokens,
        )
    except PolarsError:
        return None
    return text if text.height == block.num_lines else None


def _split_ragged(block: Block, names: list[str], schema: Schema, fill_short_rows: bool) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Fields as text, null beyond a short line's end, and a column `reason`, null for lines that have their fields."""
    lines = pl.Series("lines", [_decoded(line) for line in block.text[:-1].split(b"\n")], dtype=pl.String)
    fields = lines.str.split(schema.format.separator)
    width = pl.Series("width", fields.list.len())
    text = pl.DataFrame([fields.list.get(i, null_on_oob=True).alias(name) for i, name in enumerate(names)])
    text = text.with_columns(pl.all().replace(schema.format.null_tokens, [None] * len(schema.format.null_tokens)))
    wrong = (width > len(names)) | ((width < len(names)) & (not fill_short_rows))
    reason = pl.select(
        pl.when(fields.is_null())
        .then(pl.lit("not UTF-8"))
        .when(wrong)
        .then(pl.format("{} columns, {} expected", width, pl.lit(len(names))))
        .alias("reason")
    )
    return text, reason


def _decoded(line: bytes) -> str | None:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return None


def _typed(schema: Schema, names: list[str]) -> list[pl.Expr]:
    """Text to typed values; null where the text cannot be read."""
    label = pl.col(schema.label).replace_strict({"0": 0, "1": 1}, default=None, return_dtype=pl.UInt8)
    typed = [
        pl.col(schema.dense).cast(pl.Int64, strict=False),
        pl.col(schema.categorical).str.to_integer(base=16, dtype=pl.UInt32, strict=False),
    ]
    return [label, *typed] if schema.label in names else typed


def _expected_nulls(text: pl.DataFrame, schema: Schema) -> tuple[int, ...]:
    """Nulls per column if all that is there can be read; a label has to be there."""
    return tuple(0 if name == schema.label else text[name].null_count() for name in text.columns)


def _reasons(schema: Schema, names: list[str], rows: pl.DataFrame) -> pl.Expr:
    """The first fault of each line, null for a good one."""
    wanted = {
        schema.label: "0 or 1",
        **dict.fromkeys(schema.dense, "an integer"),
        **dict.fromkeys(schema.categorical, "up to 8 hex digits"),
    }
    faults = []
    for name in names:
        unreadable = pl.lit(rows[name].is_null())
        if name != schema.label:
            unreadable = unreadable & pl.col(name).is_not_null()
        value = pl.col(name).fill_null("").str.slice(0, 50)
        faults.append(pl.when(unreadable).then(pl.format(f"{name}: '{{}}' is not {wanted[name]}", value)))
    return pl.coalesce(faults)


def _bad_rows(block: Block, lines: pl.Series, reason: pl.Series) -> pl.DataFrame:
    """The lines that have a reason, with their bytes."""
    places = pl.DataFrame([lines, reason.alias("reason")]).filter(reason.is_not_null())
    text = block.text[:-1].split(b"\n")
    raw = [text[line - block.first_line] for line in places["line"]]
    return places.with_columns(pl.Series("raw", raw, dtype=pl.Binary)).cast(BAD_ROWS)  # type: ignore[arg-type]
