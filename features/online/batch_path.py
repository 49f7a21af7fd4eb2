"""The encoding of a request's rows by the path of whole logs: readers, then `FeatureState.encode`.

It defines the result of every request, and words every error. One row takes as long as hundreds.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np

from common.files import DataError
from common.printable import printable
from features.encode.feature_state import FeatureState
from features.encode.matrices import dense_matrix, id_matrix
from features.ingest.readers import delimited_text, json_lines
from features.ingest.readers.blocks import LF, Block, NoRowsError, block_of_text
from features.ingest.readers.column_names import quoted
from features.ingest.readers.column_types import columns_to_read
from features.ingest.readers.row_validation import ValidatedRows
from features.online.encoded_rows import BadRow, EncodedRows, RequestError
from features.schema.schema import TextFormat

NO_ROWS = "the request has no rows; send one at least"
MAX_COMPARED = 100  # names that are compared with a missing one, and characters of each


class BatchPath:
    """The readers and the feature state of a model, for requests. Threads may share it.

    Args:
        state: The feature state.
        short_rows: What becomes of lines with too few fields: `fill` or `quarantine`.
    """

    def __init__(self, state: FeatureState, short_rows: str) -> None:
        self.state, self.short_rows = state, short_rows
        self.schema = state.schema
        self.columns = [column.name for column in columns_to_read(self.schema, labelled=False)]

    def encode_lines(self, body: bytes) -> EncodedRows:
        """Encode the lines of a text or JSON lines log. See `RequestEncoder.encode_lines`."""
        try:
            block = block_of_text(body)
        except NoRowsError:
            raise RequestError(NO_ROWS) from None
        except DataError as error:
            raise RequestError(str(error)) from None
        if isinstance(self.schema.format, TextFormat):
            return self._encode_text(block, self.schema.format)
        for row, line in enumerate(block.lines()):
            record, reason = json_lines.parse_object(line)
            if reason is None:
                self._check_keys(row, record)
        return self._encode_json_lines(block)

    def encode_records(self, records: Sequence[object]) -> EncodedRows:
        """Encode records as the lines of a JSON lines log of the same schema.

        See `RequestEncoder.encode_records`.
        """
        if not records:
            raise RequestError(NO_ROWS)
        lines = [self._json_line(row, record) for row, record in enumerate(records)]
        text = LF.join([*lines, b""])
        return self._encode_json_lines(Block(text, 1, len(lines), len(text)))

    def _json_line(self, row: int, record: object) -> bytes:
        if isinstance(record, Mapping):  # another value is a bad row, in the words of the reader
            self._check_keys(row, record)
            record = {name: record[name] for name in self.columns}
        try:
            return json.dumps(record).encode()
        except (TypeError, ValueError, RecursionError) as error:
            reason = printable(str(error))
            raise RequestError(f"row {row}: it cannot be written as JSON: {reason}") from None

    def _check_keys(self, row: int, record: Mapping[str, Any]) -> None:
        """Check that a record has the keys that it must have. All other keys are ignored."""
        missing = [name for name in self.columns if name not in record]
        if missing:
            reason = self._reason_for_names(missing, record)
            raise RequestError(
                f"row {row}: {reason}. Each row needs the keys {quoted(self.columns)}; the value "
                "of a key may be null"
            )

    def _reason_for_names(self, missing: Sequence[str], found: Iterable[str]) -> str:
        """Name the missing names, and the unknown name that may be meant to be the first of them.

        Args:
            missing: The names that the request must have and has not.
            found: All names of the request, or of one of its rows.
        """
        unknown = [str(name) for name in found if name not in self.schema.names][:MAX_COMPARED]
        comparable = [name for name in unknown if len(name) <= MAX_COMPARED]
        similar = get_close_matches(missing[0], comparable, n=1)
        hint = f" (is {similar[0]!r} a misspelling of {missing[0]!r}?)" if similar else ""
        return f"missing: {quoted(missing)}{hint}"

    def _encode_text(self, block: Block, form: TextFormat) -> EncodedRows:
        field_names = self.schema.log_columns(labelled=False)
        if form.header:
            header, block = delimited_text.split_off_header(block)
            field_names = self._names_in_header(header, form)
            if not block.num_lines:
                raise RequestError(f"{NO_ROWS}, after the header")
        layout = delimited_text.Layout.of_log(
            self.schema, field_names, labelled=False, short_rows=self.short_rows
        )
        return self._encoded(delimited_text.parse_block(block, layout), block.first_line)

    def _names_in_header(self, header: bytes, form: TextFormat) -> list[str]:
        """Return the names of the first line, in its order; the label may be one of them."""
        names, reason = delimited_text.split_line(header, form)
        if reason:
            raise RequestError(f"line 1: the header cannot be read: {reason}")
        missing = [name for name in self.columns if name not in names]
        unknown = [name for name in names if name not in self.schema.names]
        twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        faults = []
        if missing:
            faults.append(self._reason_for_names(missing, names))
        if unknown:
            faults.append(f"unknown: {quoted(unknown)}")
        if twice:
            faults.append(f"twice: {quoted(twice)}")
        if faults:
            raise RequestError(
                "line 1: a header with the names of the columns expected; "
                f"{'; '.join(faults)}. The columns are {quoted(self.columns)}"
            )
        return names

    def _encode_json_lines(self, block: Block) -> EncodedRows:
        layout = json_lines.Layout.of_log(self.schema, block, labelled=False)
        return self._encoded(json_lines.parse_block(block, layout), block.first_line)

    def _encoded(self, read: ValidatedRows, first_line: int) -> EncodedRows:
        encoded = self.state.encode(read.rows)
        bad_rows = read.bad_rows.select("line", "reason").iter_rows()
        return EncodedRows(
            dense_matrix(encoded, self.schema),
            id_matrix(encoded, self.schema),
            read.line_numbers.to_numpy().astype(np.int64) - first_line,
            [BadRow(line - first_line, reason) for line, reason in bad_rows],
            read.num_lines,
        )
