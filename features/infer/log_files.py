"""The files of a log where they lie, found as the stage `collect` finds them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from common.config.params import Data
from features.collect.stage import source_files
from features.ingest.readers.blocks import NoRowsError
from features.ingest.readers.read_log import read_log
from features.ingest.readers.row_validation import ValidatedRows
from features.schema.schema import Schema


@dataclass(frozen=True)
class LogFile:
    """A file of a log.

    Attributes:
        name: Its name.
        path: Where it lies.
        partitions: The values of the columns that its folders give.
    """

    name: str
    path: Path
    partitions: Mapping[str, str | None] = field(default_factory=dict)

    @contextmanager
    def at_hand(self) -> Iterator[Path]:
        """Yield the path of the file."""
        yield self.path


def find_log_files(data: Data, root: Path) -> list[LogFile]:
    """Return the files that data.source names, in time order.

    Args:
        data: The section `data` of params.yaml.
        root: The folder of a relative data.source.

    Raises:
        DataError: See `source_files`.
    """
    return [LogFile(path.name, path) for path in source_files(data, root)]


def read_file(
    file: LogFile, path: Path, schema: Schema, short_rows: str
) -> Iterator[ValidatedRows]:
    """Yield the rows of a file piece by piece; nothing of a file without rows.

    Args:
        file: The file.
        path: Where it is at hand.
        schema: Its schema.
        short_rows: As of `read_log`.

    Raises:
        DataError: The file cannot be read with the schema.
    """
    pieces = read_log(path, schema, labelled=True, short_rows=short_rows)
    with suppress(NoRowsError):
        yield from pieces
