"""The reader of the request log, whose format is in serving/request_log.py."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from common.files import DataError
from common.printable import first_line
from serving.request_log import (
    FEATURE_PREFIX,
    FORMAT,
    FORMAT_KEY,
    FRACTION_KEY,
    KEY,
    MODEL,
    REQUEST_ID,
    ROLE,
    ROW,
    SCORE,
    TIME,
    VERSION,
)

COLUMNS = pl.Schema(
    {
        TIME: pl.Datetime("us", "UTC"),
        REQUEST_ID: pl.String(),
        ROW: pl.Int32(),
        KEY: pl.String(),
        MODEL: pl.String(),
        VERSION: pl.String(),
        ROLE: pl.String(),
        SCORE: pl.Float32(),
    }
)


@dataclass(frozen=True)
class RequestFile:
    """A file of the request log.

    Attributes:
        path: Its path.
        fraction: The share of the requests that were logged.
        num_rows: The number of its rows.
    """

    path: Path
    fraction: float
    num_rows: int

    def batches(self) -> Iterator[pl.DataFrame]:
        """Yield its rows, a row group at a time.

        Raises:
            DataError: The file is damaged.
        """
        try:
            with pq.ParquetFile(self.path) as file:
                for group in range(file.num_row_groups):
                    rows = pl.DataFrame(file.read_row_group(group))
                    _check_values(self.path, rows)
                    yield rows
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{self.path} is damaged ({first_line(error)})") from None


def find_request_files(
    directory: Path, since: date | None = None, until: date | None = None
) -> tuple[list[RequestFile], list[str]]:
    """Find the files of a request log, in the order of their days.

    Args:
        directory: The folder of the log.
        since: The first day in UTC; None is the first that there is.
        until: The last day; None is the last that there is.

    Returns:
        The files, and why other Parquet files are none of them, one line each.

    Raises:
        DataError: There is no such folder, or it has no folder named by a day.
    """
    try:
        days = {_day_of(path): path for path in directory.iterdir()}
    except OSError as error:
        raise DataError(
            f"{directory}: no request log ({error.strerror}); name the folder that `clickmill serve"
            " --log-requests` writes"
        ) from None
    found = {day: path for day, path in days.items() if day}
    if not found:
        raise DataError(
            f"{directory}: no request log: it has no folder such as 2026-03-01; name the folder "
            "that `clickmill serve --log-requests` writes"
        )
    files, damaged = [], []
    for day in sorted(found):
        if (since and day < since) or (until and day > until):
            continue
        for path in sorted(found[day].glob("*.parquet")):
            if path.name.startswith("."):  # being written
                continue
            try:
                files.append(_open(path))
            except DataError as error:
                damaged.append(str(error))
    return files, damaged


def _day_of(path: Path) -> date | None:
    """Return the day that a folder is named by; None if it is another one."""
    try:
        day = date.fromisoformat(path.name)
    except ValueError:
        return None
    return day if path.name == day.isoformat() and path.is_dir() else None


def _open(path: Path) -> RequestFile:
    try:
        with pq.ParquetFile(path) as file:
            metadata, columns = file.metadata, file.schema_arrow
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} is damaged ({first_line(error)})") from None
    values = metadata.metadata or {}
    found = values.get(FORMAT_KEY.encode(), b"none").decode(errors="replace")
    if found != FORMAT:
        raise DataError(f"{path}: format {found[:20]} found, request log {FORMAT} expected")
    try:
        fraction = float(values[FRACTION_KEY.encode()])
    except (KeyError, ValueError):
        fraction = 0
    if not 0 < fraction <= 1:
        raise DataError(f"{path}: it has no sampling fraction above 0 and up to 1")
    dtypes = pl.DataFrame(columns.empty_table()).schema
    wrong = [name for name, dtype in COLUMNS.items() if dtypes.get(name) != dtype]
    wrong += [
        name
        for name, dtype in dtypes.items()
        if name not in COLUMNS
        and (not name.startswith(FEATURE_PREFIX) or dtype not in (pl.Float32, pl.Int32))
    ]
    if wrong:
        raise DataError(f"{path}: column {wrong[0]} is missing or of a type that it cannot have")
    return RequestFile(path, fraction, metadata.num_rows)


def _check_values(path: Path, rows: pl.DataFrame) -> None:
    required = [name for name in rows.columns if name != KEY]
    has_nulls = rows.select(pl.any_horizontal(pl.col(required).has_nulls())).item()
    if has_nulls or not rows[SCORE].is_between(0, 1).all():
        raise DataError(f"{path}: it has a null, or a score that is not between 0 and 1")


def feature_columns(rows: pl.DataFrame) -> list[str]:
    """Return the names of the features of rows of a request log, without the prefix."""
    return [
        name.removeprefix(FEATURE_PREFIX)
        for name in rows.columns
        if name.startswith(FEATURE_PREFIX)
    ]
