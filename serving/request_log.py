"""The request log: a sample of the rows that were scored, as Parquet files.

    DIR/NAME/VERSION/TIME-PROCESS.parquet

has a row for each scored row of the sampled requests to model NAME that its version VERSION
answered:

    time          when it was answered (UTC)
    request_id    the header X-Request-Id of the request; null if it had none
    row           the number of the row in the request, from 0
    role          champion or canary
    score         the answer
    dense.NAME    a dense input of the model
    id.NAME       the id of a categorical feature

The values of the columns themselves are not written. Files are complete or absent. A worker keeps
at most MAX_ROWS rows, and those of the last WRITE_EVERY_S seconds are lost if it is killed.
"""

import asyncio
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl

from common.files import replaced
from common.logs import get_logger
from common.parquet import ParquetWriter
from common.printable import first_line
from serving.service import Scored

WRITE_EVERY_S = 60.0
WRITE_ROWS = 10_000  # or as soon as there are so many
MAX_ROWS = 50_000
LOOK_EVERY_S = 1.0

log = get_logger("serve")


@dataclass(frozen=True)
class LoggedRequest:
    """A request that was sampled."""

    name: str
    request_id: str | None
    time: datetime
    scored: Scored


class RequestLog:
    """Collects sampled requests, and writes them by a thread.

    Args:
        folder: Where to write.
        fraction: The fraction of the requests to write.
        count: It is called with an outcome (written, dropped or failed) and a number of rows.
    """

    def __init__(self, folder: Path, fraction: float, count: Callable[[str, int], None]) -> None:
        self._folder = folder
        self._fraction = fraction
        self._count = count
        self._requests: list[LoggedRequest] = []
        self._num_rows = 0
        self._written_s = time.monotonic()

    def add(self, name: str, request_id: str | None, scored: Scored) -> None:
        """Take a request that was answered, if it is in the sample."""
        num_rows = scored.rows.num_rows
        if not len(scored.scores_G) or random.random() >= self._fraction:
            return
        if self._num_rows + num_rows > MAX_ROWS:
            self._count("dropped", num_rows)
            return
        self._num_rows += num_rows
        self._requests.append(LoggedRequest(name, request_id, datetime.now(UTC), scored))

    async def run(self) -> None:
        """Write what was added now and then, until it is cancelled; then write the rest."""
        try:
            while True:
                await asyncio.sleep(LOOK_EVERY_S)
                is_due = time.monotonic() - self._written_s >= WRITE_EVERY_S
                if self._requests and (is_due or self._num_rows >= WRITE_ROWS):
                    requests = self._take()
                    await asyncio.to_thread(self._write, requests)
        finally:
            self._write(self._take())

    def _take(self) -> list[LoggedRequest]:
        requests, self._requests, self._num_rows = self._requests, [], 0
        self._written_s = time.monotonic()
        return requests

    def _write(self, requests: list[LoggedRequest]) -> None:
        files: dict[tuple[str, str], list[LoggedRequest]] = {}
        for request in requests:
            key = request.name, request.scored.model.version
            files.setdefault(key, []).append(request)
        for (name, version), of_file in files.items():
            stamp = of_file[0].time.strftime("%Y-%m-%dT%H-%M-%S.%f")
            path = self._folder / name / version / f"{stamp}-{os.getpid()}.parquet"
            num_rows = sum(len(request.scored.scores_G) for request in of_file)
            try:
                frame = frame_of(of_file)
                with replaced(path) as scratch, ParquetWriter(scratch, frame.schema) as writer:
                    writer.write(frame)
            except Exception as error:  # whatever is wrong with the disk, the answers go on
                self._count("failed", num_rows)
                log.error("%s cannot be written: %s", path, first_line(error))
            else:
                self._count("written", num_rows)


def frame_of(requests: list[LoggedRequest]) -> pl.DataFrame:
    """Return the rows of requests to one version of a model, as they are written."""
    scored = [request.scored for request in requests]
    schema = scored[0].model.schema
    sizes = [len(one.scores_G) for one in scored]

    def repeated(values: list[object], dtype: pl.DataType) -> pl.Series:
        return pl.Series(values, dtype=dtype).gather(np.repeat(np.arange(len(values)), sizes))

    dense_RN = np.concatenate([one.rows.dense_GN for one in scored])
    ids_RF = np.concatenate([one.rows.ids_GF for one in scored])
    columns = {
        "time": repeated([one.time for one in requests], pl.Datetime("us", "UTC")),
        "request_id": repeated([one.request_id for one in requests], pl.String()),
        "row": np.concatenate([one.rows.row_numbers_G for one in scored]).astype(np.int32),
        "role": repeated([one.role for one in scored], pl.String()),
        "score": np.concatenate([one.scores_G for one in scored]),
    }
    columns |= {f"dense.{name}": dense_RN[:, n] for n, name in enumerate(schema.dense_features)}
    columns |= {f"id.{name}": ids_RF[:, f] for f, name in enumerate(schema.categorical_features)}
    return pl.DataFrame(columns)
