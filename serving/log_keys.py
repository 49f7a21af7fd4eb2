"""The keys of a request's rows, by which the request log is joined with labels later.

The key of a row is the value of one column, which the schema need not have: a client may send it
with each record beside the columns of the model.
"""

from collections.abc import Callable, Sequence
from typing import Any

from common.files import DataError
from features.ingest.readers import delimited_text, json_lines
from features.ingest.readers.blocks import block_of_text
from features.schema.schema import Schema, TextFormat
from serving.request_log import key_text

Keys = list[str | None]
KeysOf = Callable[[Schema, str], Keys | None]
"""Returns the keys of a request's rows, from the schema of the model and the column of the keys.

It returns None if the rows have no such column. The key is then the id of the request.
"""


def keys_of_records(records: Sequence[Any], schema: Schema, column: str) -> Keys | None:
    """Return the key of each record; None if no record has the column."""
    values = [one.get(column) if isinstance(one, dict) else None for one in records]
    if all(value is None for value in values):
        return None
    return [key_text(value) for value in values]


def keys_of_lines(body: bytes, schema: Schema, column: str) -> Keys | None:
    """Return the key of each line of a request in the format of a log without labels.

    Args:
        body: The lines, in a format that the encoder takes.
        schema: The schema of the log.
        column: The column of the keys.

    Returns:
        The keys, None where a line has none; None if lines have no such column.
    """
    try:
        lines = block_of_text(body).lines()
    except DataError:
        return None
    form = schema.format
    if not isinstance(form, TextFormat):
        records = [json_lines.parse_object(line)[0] for line in lines]
        return keys_of_records(records, schema, column)
    names = schema.log_columns(labelled=False)
    if form.header:
        names, _ = delimited_text.split_line(lines.pop(0), form)
    if column not in names:
        return None
    place = names.index(column)
    fields = (delimited_text.split_line(line, form)[0] for line in lines)
    return [key_text(row[place]) if place < len(row) else None for row in fields]
