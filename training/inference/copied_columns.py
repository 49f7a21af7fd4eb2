"""Columns of a log that the model does not use, and that are copied from it: ids of rows, keys."""

from collections.abc import Sequence

import polars as pl

from common.files import DataError
from features.ingest.readers.column_names import quoted
from features.schema.schema import Schema, TextFormat, name_fault


def check_copied(
    names: Sequence[str], schema: Schema, option: str, taken: Sequence[str] = ()
) -> None:
    """Check the names of the columns that are to be copied.

    Args:
        names: The names.
        schema: The schema of the log.
        option: The option that names them, for the messages.
        taken: The names that the output has for columns of its own.

    Raises:
        DataError: A name occurs twice, is taken or that of a column of lists, or cannot be found in
            a log without a header.
    """
    lists = [*(feature.name for feature in schema.list_features), *schema.weights]
    for k, name in enumerate(names):
        if name in lists:
            raise DataError(
                f"{option} {name}: it has lists; name a column with one value in each row"
            )
        if name in names[:k]:
            raise DataError(f"{option} {name}: named twice")
        if fault := name_fault(name):
            raise DataError(f"{option} {name!r}: {fault}")
        if name in taken:
            raise DataError(f"{option} {name}: the scores have a column of this name already")
        has_names = not isinstance(schema.format, TextFormat) or schema.format.header
        if name not in schema.names and not has_names:
            raise DataError(
                f"{option} {name}: the log has no header, so the column must be in the model's "
                f"schema: {quoted(schema.names)}"
            )


def check_copied_are_found(
    names: Sequence[str], schema: Schema, rows: pl.DataFrame, log_name: str, option: str
) -> None:
    """Refuse a JSON key that no row of the first piece of a log has: its name must be a mistake.

    Args:
        names: The columns that are copied.
        schema: The schema of the log.
        rows: The first rows of the log.
        log_name: The log, for the message.
        option: The option that names the columns, for the message.
    """
    for name in names:
        is_missing = rows.height and rows[name].null_count() == rows.height
        if schema.format.kind == "json_lines" and name not in schema.names and is_missing:
            raise DataError(
                f"{option} {name}: none of the first {rows.height:,} rows of {log_name} has this"
                " key"
            )


def as_written(column: pl.Series, schema: Schema) -> pl.Series:
    """Return a column that was copied as the log has it."""
    if column.name in schema.hex32:
        return column.map_elements(lambda word: f"{word:08x}", return_dtype=pl.String)
    if schema.format.kind == "json_lines" and column.name not in schema.used:
        return column.cast(pl.String)  # numbers and texts may alternate in the log
    return column
