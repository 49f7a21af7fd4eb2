"""The encoder of requests: what a server makes model inputs with."""

from collections.abc import Mapping, Sequence
from contextlib import suppress

from common.files import DataError
from features.encode.feature_state import FeatureState
from features.ingest.readers.blocks import LF
from features.ingest.readers.column_names import quoted
from features.online.batch_path import BatchPath
from features.online.encoded_rows import EncodedRows
from features.online.fast_path import DECLINED, FastPath
from features.online.value_readers import UnusualError

MAX_FAST_ROWS = 2048  # of a request; for many more, the batch path takes less time for a row


class RequestEncoder:
    """The encoder of a model's requests: each row becomes what `clickmill predict` makes of it.

    Threads may share it.

    Args:
        state: The feature state.
        short_rows: What becomes of lines of text with too few fields, as the model's parameter
            `ingest.short_rows`: `fill` makes the missing fields null, `quarantine` makes the line a
            bad row.

    Attributes:
        columns: The keys that a record must have: the columns that are not ignored, without the
            label and the sample weight.

    Raises:
        DataError: The schema has lists.
    """

    def __init__(self, state: FeatureState, short_rows: str) -> None:
        lists = [feature.name for feature in state.schema.list_features]
        if lists:
            raise DataError(
                f"the columns {quoted(lists)} have lists of values, which cannot be encoded online "
                "yet; score files with clickmill predict"
            )
        self._batch_path = BatchPath(state, short_rows)
        self._fast_path: FastPath | None = None
        with suppress(UnusualError):
            self._fast_path = FastPath(state)
        self.columns = self._batch_path.columns
        # The batch path makes its tables here, and not when the first unusual request waits.
        self._batch_path.encode_records([dict.fromkeys(self.columns)])

    def encode_lines(self, body: bytes) -> EncodedRows:
        """Encode the lines of a log without labels, in the schema's format.

        Where the schema's text has a header, it is the first line, and it may name the label. Lines
        of JSON must have the keys `columns`, as records must. Where the schema is that of columnar
        files, the lines are JSON.

        Args:
            body: The lines. The last one may have no line end.

        Raises:
            RequestError: There are no lines, a key or a name in the header is missing or unknown,
                or the text is UTF-16 or has other line ends than LF and CRLF.
        """
        if self._fast_path and body.count(LF) <= MAX_FAST_ROWS:
            with suppress(*DECLINED):
                return self._fast_path.encode_lines(body)
        return self._batch_path.encode_lines(body)

    def encode_records(self, records: Sequence[Mapping[str, object]]) -> EncodedRows:
        """Encode records, each of them a row with the names of the columns as keys.

        A value may be what JSON contains, and is read as in a JSON lines log. The value null is a
        missing value. Keys that are not in `columns` are ignored.

        Args:
            records: The records. One that is no mapping is a bad row.

        Raises:
            RequestError: There are no records, a key is missing, or a value cannot be written as
                JSON.
        """
        if self._fast_path and 0 < len(records) <= MAX_FAST_ROWS:
            with suppress(*DECLINED):
                return self._fast_path.encode_records(records)
        return self._batch_path.encode_records(records)
