"""The request log: a sample of the rows that a server has scored, to be joined with labels later.

    DIR/2026-03-01/1f2e3d4c5b6a7988-000001.parquet

A folder has the rows of one day in UTC. Each process writes files of its own: a random name of the
process, and a number. A file is complete or absent. Its key-value metadata has the version of this
format and the sampling fraction, and its columns are, in this order:

    time          timestamp[us, UTC]   when the row was scored
    request_id    string               the id of the request
    row           int32                the number of the row in the request, from 0
    key           string               what joins the row with its label, null if nothing does
    model         string               the name under which the model is served
    version       string               the version of the served model (ServingManifest.version)
    role          string               `answer`, or `shadow` if the client did not get this score
    score         float32              the click probability
    feature.NAME  float32              each dense feature, as the model takes it
    feature.NAME  int32                the id of each categorical feature

The names of features have a prefix, because a column of a log may be called `time` or `key` too.
The values of a row are in the log only as ids and dense features, apart from the key. The key is
the value of the column that `clickmill serve --log-key` names. Without such a column it is the id
of the request, if the request has one row. Whoever has the vocabularies can look ids up, so the
request log is as confidential as the raw log.

Whether a request is logged follows from its id alone, so all processes agree about it, and the same
requests give the same rows again.
"""

import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from common.files import replaced
from common.logs import get_logger
from common.printable import first_line
from features.online.encoded_rows import EncodedRows
from features.schema.schema import Schema

FORMAT = "1"
FORMAT_KEY, FRACTION_KEY = "clickmill.request_log", "clickmill.fraction"  # of a file's metadata
TIME, REQUEST_ID, ROW, KEY = "time", "request_id", "row", "key"
MODEL, VERSION, ROLE, SCORE = "model", "version", "role", "score"
FEATURE_PREFIX = "feature."
Role = Literal["answer", "shadow"]
Outcome = Literal["written", "lost"]
ANSWER: Role = "answer"
SHADOW: Role = "shadow"

SAMPLING_SEED = b"request log"  # other choices by a hash of the request id must not depend on it
FILE_ROWS = 20_000  # of a file; so many are also the most that wait while a file is written
FILE_SECONDS = 300.0  # after which a file is written that has fewer rows
MAX_TEXT_CHARS = 200  # of a request id, which is cut, and of a key, which is left out

log = get_logger("serve")


@dataclass(frozen=True)
class LoggedModel:
    """The name, the version and the features of a served model, for the request log.

    Attributes:
        name: The name under which it is served.
        version: Its version.
        dense: The names of its N dense features.
        categorical: The names of its F categorical features.
    """

    name: str
    version: str
    dense: tuple[str, ...]
    categorical: tuple[str, ...]

    @classmethod
    def of(cls, name: str, version: str, schema: Schema) -> Self:
        """Describe the model of a version that has the features of a schema."""
        return cls(
            name, version, tuple(schema.dense_features), tuple(schema.single_valued_features)
        )


class _Rows(NamedTuple):
    """Rows of one request that wait to be written."""

    time_us: int
    request_id: str
    keys_G: Sequence[str | None]
    model: LoggedModel
    role: Role
    encoded: EncodedRows
    scores_G: NDArray[np.float32]


def key_text(value: object) -> str | None:
    """Return the value of the log key in a record as the text that is logged.

    It is the text that the same value in a log has: the digits of an integer, `true` or `false`.

    Args:
        value: What the JSON contains.

    Returns:
        The text; None if there is no value, or none that can be a key: a list, an object, or a text
        of more than MAX_TEXT_CHARS characters.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, (str, int, float)):
        return None
    text = str(value)
    return text if 0 < len(text) <= MAX_TEXT_CHARS else None


class RequestLog:
    """The writer of the request log of one process; its methods may be called by several threads.

    A thread writes the files, so that no answer waits for a disk. A full disk or a folder that
    cannot be written costs rows of the log and nothing else: they are counted, and logged once.

    Args:
        directory: The folder of the log, which is made if need be.
        fraction: The share of the requests to log, above 0 and at most 1.
        file_rows: The largest number of rows of a file.
        file_seconds: The time in seconds after which a smaller file is written.
        count: Receives the number of rows that were written or lost.

    Attributes:
        rows_written: The number of rows in complete files.
        rows_lost: The number of rows that could not be written.
    """

    def __init__(
        self,
        directory: Path,
        fraction: float,
        *,
        file_rows: int = FILE_ROWS,
        file_seconds: float = FILE_SECONDS,
        count: Callable[[Outcome, int], None] | None = None,
    ) -> None:
        if not 0 < fraction <= 1:
            raise ValueError(f"a fraction above 0 and up to 1 expected, found {fraction}")
        self.rows_written = self.rows_lost = 0
        self._count = count or (lambda outcome, num_rows: None)
        self._directory, self._fraction = directory, fraction
        self._file_rows, self._file_seconds = file_rows, file_seconds
        self._limit = round(fraction * 2**64)
        self._process = secrets.token_hex(8)
        self._num_files = 0
        self._waiting: list[_Rows] = []
        self._num_waiting = 0
        self._is_closed = self._has_failed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._write_files, name="request log", daemon=True)
        self._thread.start()

    def wants(self, request_id: str) -> bool:
        """Return whether the rows of a request are to be logged."""
        digest = blake2b(request_id.encode(errors="replace"), digest_size=8, key=SAMPLING_SEED)
        return int.from_bytes(digest.digest(), "little") < self._limit

    def add(
        self,
        model: LoggedModel,
        request_id: str,
        rows: EncodedRows,
        scores_G: NDArray[np.float32],
        *,
        keys: Sequence[str | None] | None = None,
        role: Role = ANSWER,
        at: float | None = None,
    ) -> None:
        """Add the rows of a request that `wants` has chosen. It returns at once.

        Args:
            model: The model that scored them.
            request_id: The id of the request.
            rows: The G good rows of the request. They are not copied.
            scores_G: Their scores.
            keys: The key of each row of the request, bad rows included, as of `key_text`; None if
                the log has no column of keys.
            role: Whether the client gets the scores.
            at: When they were scored, in seconds since 1970; None is now.
        """
        num_rows = len(scores_G)
        if not num_rows:
            return
        request_id = request_id[:MAX_TEXT_CHARS]
        if keys is None:
            keys = [request_id if rows.num_rows == 1 else None] * rows.num_rows
        keys_G = [keys[row] for row in rows.row_numbers_G]
        time_us = int((time.time() if at is None else at) * 1e6)
        waiting = _Rows(time_us, request_id, keys_G, model, role, rows, scores_G)
        with self._changed:
            # The disk is too slow: memory is bounded by what one file has, beside that in writing.
            if self._is_closed or (
                self._num_waiting and self._num_waiting + num_rows > 2 * self._file_rows
            ):
                self._lose(num_rows)
                return
            self._waiting.append(waiting)
            self._num_waiting += num_rows
            if self._num_waiting >= self._file_rows:
                self._changed.notify()

    def close(self) -> None:
        """Write the rows that wait, and end the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()
        if self.rows_lost:
            log.warning(f"the request log lacks {self.rows_lost:,} rows that could not be written")

    def _write_files(self) -> None:
        """Write files until the log is closed: the body of the thread."""
        is_closed = False
        while not is_closed:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._is_closed or self._num_waiting >= self._file_rows,
                    self._file_seconds,
                )
                is_closed, waiting = self._is_closed, self._waiting
                self._waiting, self._num_waiting = [], 0
            for rows in _by_file(waiting):
                self._write_file(rows)

    def _write_file(self, rows: list[_Rows]) -> None:
        num_rows = sum(len(one.scores_G) for one in rows)
        day = datetime.fromtimestamp(rows[0].time_us // 10**6, UTC).date().isoformat()
        self._num_files += 1
        path = self._directory / day / f"{self._process}-{self._num_files:06d}.parquet"
        try:
            with replaced(path) as scratch:
                pq.write_table(self._table(rows), scratch, compression="lz4")
        except Exception as error:  # whatever it is: answers do not depend on the log
            with self._changed:
                self._lose(num_rows)
            if not self._has_failed:
                log.warning(
                    f"{path.parent}: the request log cannot be written ({first_line(error)}); rows"
                    " are lost until it can be. Answers do not depend on it"
                )
            self._has_failed = True
        else:
            self.rows_written += num_rows
            self._count("written", num_rows)

    def _lose(self, num_rows: int) -> None:
        self.rows_lost += num_rows
        self._count("lost", num_rows)

    def _table(self, rows: list[_Rows]) -> pa.Table:
        counts = np.array([len(one.scores_G) for one in rows])
        model = rows[0].model

        def repeated(values: list[str]) -> pa.Array:
            return pa.array(np.repeat(np.array(values, object), counts), pa.string())

        columns = {
            TIME: pa.array(np.repeat([one.time_us for one in rows], counts)).cast(
                pa.timestamp("us", "UTC")
            ),
            REQUEST_ID: repeated([one.request_id for one in rows]),
            ROW: pa.array(
                np.concatenate([one.encoded.row_numbers_G for one in rows]).astype(np.int32)
            ),
            KEY: pa.array([key for one in rows for key in one.keys_G], pa.string()),
            MODEL: repeated([one.model.name for one in rows]),
            VERSION: repeated([one.model.version for one in rows]),
            ROLE: repeated([one.role for one in rows]),
            SCORE: pa.array(np.concatenate([one.scores_G for one in rows]), pa.float32()),
        }
        dense_RN = np.concatenate([one.encoded.dense_GN for one in rows])
        ids_RF = np.concatenate([one.encoded.ids_GF for one in rows])
        for k, name in enumerate(model.dense):
            columns[FEATURE_PREFIX + name] = pa.array(dense_RN[:, k], pa.float32())
        for k, name in enumerate(model.categorical):
            columns[FEATURE_PREFIX + name] = pa.array(ids_RF[:, k], pa.int32())
        metadata = {FORMAT_KEY: FORMAT, FRACTION_KEY: repr(float(self._fraction))}
        return pa.table(columns).replace_schema_metadata(metadata)


def _by_file(waiting: list[_Rows]) -> list[list[_Rows]]:
    """Group rows by the file that they belong to: that of their day and their features."""
    files: dict[tuple[object, ...], list[_Rows]] = defaultdict(list)
    for rows in waiting:
        day = rows.time_us // (86_400 * 10**6)
        files[day, rows.model.dense, rows.model.categorical].append(rows)
    return list(files.values())
