"""The formats of scores: CSV, JSON lines and Parquet, written piece by piece."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Literal, Protocol, Self

import polars as pl

from common.bundle_layout import MODEL_VERSION_KEY
from common.files import DataError
from common.parquet import ParquetWriter
from common.spreadsheets import without_formulas
from common.user_files import UserOutput

Format = Literal["csv", "jsonl", "parquet"]
FORMAT_OF_ENDING: dict[str, Format] = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}


class ScoreWriter(Protocol):
    """Writes frames of the same columns, one after the other."""

    def write(self, frame: pl.DataFrame) -> None:
        """Add the rows of a frame."""


class CsvWriter:
    """Writes CSV with a header; text that a spreadsheet would execute is marked as text."""

    def __init__(self, file: IO[bytes], schema: pl.Schema) -> None:
        self.file = file
        file.write(pl.DataFrame(schema=schema).write_csv().encode())

    def __enter__(self) -> Self:
        return self

    def write(self, frame: pl.DataFrame) -> None:
        """Add the rows of a frame."""
        # Python's file names the error where the disk is full or the pipe is closed.
        self.file.write(without_formulas(frame).write_csv(include_header=False).encode())

    def __exit__(self, *_: object) -> None:
        """Do nothing: each frame is written at once."""


class JsonLinesWriter:
    """Writes an object for each row, on a line of its own."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def __enter__(self) -> Self:
        return self

    def write(self, frame: pl.DataFrame) -> None:
        """Add the rows of a frame."""
        self.file.write(frame.write_ndjson().encode())

    def __exit__(self, *_: object) -> None:
        """Do nothing: each frame is written at once."""


def choose_format(output: UserOutput, chosen: Format | None) -> Format:
    """Return the format of an output: by its ending; where it has none, the chosen one, or CSV.

    Raises:
        DataError: The file's ending is unknown, or that of another format than the chosen one.
    """
    names = [output.name] if output.target is None else [output.name, output.target.name]
    endings = [Path(name).suffix for name in names]
    ending = next((ending for ending in endings if ending), "")
    by_ending = FORMAT_OF_ENDING.get(ending.lower())
    if output.target is None:
        return chosen or by_ending or "csv"
    if by_ending is None and (ending or chosen is None):
        found = f"the ending {ending}" if ending else "none"
        raise DataError(
            f"--output {output.name}: an ending that names the format expected "
            f"({', '.join(FORMAT_OF_ENDING)}), found {found}"
        )
    if by_ending and chosen and by_ending != chosen:
        raise DataError(
            f"--output {output.name}: the ending means {by_ending}, but --format is {chosen}; "
            "change one of them"
        )
    return by_ending or chosen or "csv"


def open_writer(
    file: IO[bytes], format_: Format, schema: pl.Schema, version: str
) -> AbstractContextManager[ScoreWriter]:
    """Begin a file of scores.

    Args:
        file: The open file, which may be a pipe.
        format_: Its format.
        schema: The names and dtypes of the columns.
        version: The model version, which Parquet records.
    """
    if format_ == "csv":
        return CsvWriter(file, schema)
    if format_ == "jsonl":
        return JsonLinesWriter(file)
    return ParquetWriter(file, schema, metadata={MODEL_VERSION_KEY: version})
