"""The encoding of a request's rows without Polars, bit for bit as the batch path encodes them.

Columns of one kind are read together, features of one transform are made together, and all ids are
looked up together, because the time of a small request is that of its calls. What is unusual raises
an error here and is left to the batch path.

B is the number of rows, C the number of columns or features of one group, N and F the numbers of
dense and of categorical features, and K the number of columns that are looked up: those of the F
categorical features, then one for each feature of the transform `count`.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.encode.feature_state import FeatureState
from features.ingest.readers.blocks import CR_LF, LF, UTF8_BOM
from features.ingest.readers.column_types import columns_to_read
from features.ingest.readers.fields import Fields, find_fields
from features.ingest.readers.hex_texts import are_other_texts
from features.ingest.readers.json_lines import MAX_OBJECT_BYTES
from features.online.encoded_rows import EncodedRows
from features.online.feature_makers import Inputs, Values, as_slice, makers_of
from features.online.id_lookup import IdLookup
from features.online.value_readers import UnusualError, ValueReader, reader_of
from features.schema.listed_values import numbers_of
from features.schema.schema import Schema, TextFormat

# The errors after which the batch path encodes the request.
DECLINED = (UnusualError, ValueError, TypeError, OverflowError, KeyError, RecursionError)
# From this number of lines on, numbers are read from the bytes of all lines together.
MANY_LINES = 32
MAX_UTF8_BYTES = 4  # of a character
Pick = Callable[[Any], Sequence[Any]]


@dataclass(frozen=True)
class ColumnGroup:
    """The columns of one kind, which are read together.

    Attributes:
        names: The columns.
        reader: Their reader.
    """

    names: list[str]
    reader: ValueReader


@dataclass(frozen=True)
class SplitText:
    """Lines of text that have the same number of fields.

    Attributes:
        lines: The lines, without line ends.
        separator: The character between two fields.
        num_fields: The number of fields in each line.
    """

    lines: list[str]
    separator: str
    num_fields: int

    @cached_property
    def columns(self) -> list[tuple[str, ...]]:
        """The fields of each column."""
        rows = [line.split(self.separator) for line in self.lines]
        if set(map(len, rows)) != {self.num_fields}:
            raise UnusualError
        return list(zip(*rows, strict=True))

    @cached_property
    def fields(self) -> Fields:
        """The fields as positions in the bytes."""
        text = "\n".join([*self.lines, ""]).encode()
        fields = find_fields(text, len(self.lines), self.num_fields, self.separator, None)
        if fields is None:
            raise UnusualError
        return fields


class FastPath:
    """The encoder of plain requests. Threads may share it.

    Args:
        state: The feature state.

    Raises:
        UnusualError: The schema has a column or a feature that only the batch path can encode.
    """

    def __init__(self, state: FeatureState) -> None:
        self.schema = state.schema
        self.num_dense = len(self.schema.dense_features)
        self.groups = _groups(self.schema)
        self.makers = makers_of(state, [group.names for group in self.groups])
        self.ids = IdLookup(state)
        null_tokens = self.schema.format.null_tokens
        self.null_texts = frozenset(null_tokens)
        self.null_values = frozenset([None, *null_tokens])
        self.has_null_numbers = any(abs(number) < np.inf for number in numbers_of(null_tokens))
        self.may_read_bytes = are_other_texts(null_tokens)
        self.may_be_empty = "" in self.null_texts
        self.form = self.schema.format if isinstance(self.schema.format, TextFormat) else None
        self.field_names = self.schema.log_columns(labelled=False)
        self.fields_of_groups = self._fields_of_groups(self.field_names)
        self.picks_of_record = [_pick(group.names) for group in self.groups]

    def encode_lines(self, body: bytes) -> EncodedRows:
        """Encode the lines of a text or JSON lines log.

        Raises:
            DECLINED: The batch path has to encode them.
        """
        if b"\r" in body:
            body = body.replace(CR_LF, LF)
        if b"\r" in body or b"\0" in body or body.startswith(UTF8_BOM) or not body:
            raise UnusualError
        text = body.decode()
        lines = text.removesuffix("\n").split("\n")
        if self.form is None:
            if max(map(len, lines)) > MAX_OBJECT_BYTES // MAX_UTF8_BYTES:
                raise UnusualError
            return self.encode_records(list(map(_parse_object, lines)))
        if self.form.quote is not None and self.form.quote in text:
            raise UnusualError
        return self._encode_text(lines, self.form)

    def encode_records(self, records: Sequence[Any]) -> EncodedRows:
        """Encode records.

        Raises:
            DECLINED: The batch path has to encode them.
        """
        if self.has_null_numbers:
            raise UnusualError
        values = []
        for pick, group in zip(self.picks_of_record, self.groups, strict=True):
            columns = zip(*map(pick, records), strict=True)
            of_group, is_null = _without_nulls(columns, self.null_values, group.reader.filler)
            read = group.reader.of_json(of_group)
            values.append(Values.of_columns(read, is_null, len(group.names)))
        return self._encoded(values, len(records))

    def _encode_text(self, lines: list[str], form: TextFormat) -> EncodedRows:
        fields_of_groups = self.fields_of_groups
        if form.header:
            names = lines.pop(0).split(form.separator)
            if sorted(names) != sorted(self.field_names) or not lines:
                raise UnusualError
            if names != self.field_names:
                fields_of_groups = self._fields_of_groups(names)
        text = SplitText(lines, form.separator, len(self.field_names))
        values = [
            self._read_fields(text, fields, group.reader)
            for fields, group in zip(fields_of_groups, self.groups, strict=True)
        ]
        return self._encoded(values, len(lines))

    def _fields_of_groups(self, names: list[str]) -> list[list[int]]:
        """Return where the columns of each group are in a line whose fields have these names."""
        return [[names.index(name) for name in group.names] for group in self.groups]

    def _read_fields(self, text: SplitText, fields: list[int], reader: ValueReader) -> Values:
        if len(text.lines) >= MANY_LINES and self.may_read_bytes:
            columns = as_slice(fields)
            numbers = reader.of_fields(text.fields, columns) if isinstance(columns, slice) else None
            if numbers is not None:
                return self._values_of_numbers(numbers.values, numbers.is_present)
        texts, is_null = _without_nulls(
            (text.columns[field] for field in fields), self.null_texts, reader.filler_text
        )
        return Values.of_columns(reader.of_texts(texts), is_null, len(fields))

    def _values_of_numbers(
        self, values_CB: NDArray[Any], is_present_CB: NDArray[np.bool_]
    ) -> Values:
        if is_present_CB.all():
            return Values(values_CB.T, None)
        if not self.may_be_empty:
            raise UnusualError
        return Values(values_CB.T, ~is_present_CB.T)

    def _encoded(self, values: list[Values], num_rows: int) -> EncodedRows:
        inputs = Inputs(
            np.zeros((num_rows, self.num_dense), np.float32),
            np.zeros((num_rows, self.ids.num_columns), np.int64),
        )
        for maker in self.makers:
            maker.make(values, inputs)
        ids_BF = self.ids.look_up(inputs)
        return EncodedRows(inputs.dense_BN, ids_BF, np.arange(num_rows), [], num_rows)


def _groups(schema: Schema) -> list[ColumnGroup]:
    """Group the columns that are read by their readers.

    Raises:
        UnusualError: A column is left to the batch path.
    """
    groups: dict[tuple[str, str], ColumnGroup] = {}
    for column in columns_to_read(schema, labelled=False):
        reader = reader_of(column)
        if reader is None or column.is_list:
            raise UnusualError
        group = groups.setdefault((column.kind, column.pattern), ColumnGroup([], reader))
        group.names.append(column.name)
    return list(groups.values())


def _without_nulls(
    columns: Iterable[Iterable[Any]], nulls: frozenset[Any], filler: Any
) -> tuple[list[Any], list[bool] | None]:
    """Return the values of some columns, one column after the other, without missing values.

    Args:
        columns: The values of each column.
        nulls: The values that mean a missing one.
        filler: What is put in their place.

    Returns:
        The values, and whether each of them was missing; None if none was.
    """
    values = list(chain.from_iterable(columns))
    if nulls.isdisjoint(values):
        return values, None
    is_null = [value in nulls for value in values]
    return [filler if value in nulls else value for value in values], is_null


def _pick(keys: list[str]) -> Pick:
    """Return the function that picks the values of some keys of a record."""
    if len(keys) > 1:
        return itemgetter(*keys)
    (key,) = keys
    return lambda record: (record[key],)


def _parse_object(line: str) -> dict[str, Any]:
    value = json.loads(line, parse_int=_parse_int, object_pairs_hook=_distinct)
    if not isinstance(value, dict):
        raise UnusualError
    return value


def _parse_int(text: str) -> int:
    if text == "-0":  # a float that is not 0
        raise UnusualError
    return int(text)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise UnusualError
    return values
