"""The files of a log where they lie; an object of a store is fetched to a temporary folder."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from common.config.params import Data
from common.logs import get_logger
from features.collect.discovery import FoundLog
from features.collect.local import LocalLogs
from features.collect.remote import RemoteLogs
from features.collect.stage import find_source
from features.ingest.readers.blocks import NoRowsError
from features.ingest.readers.read_log import read_log
from features.ingest.readers.row_validation import ValidatedRows
from features.schema.schema import Partitions, Schema

log = get_logger("schema")


@dataclass(frozen=True)
class LogFile:
    """A file of a log.

    Attributes:
        source: The log.
        found: The file, as the discovery found it.
    """

    source: LocalLogs | RemoteLogs
    found: FoundLog

    @property
    def name(self) -> str:
        """The name of the file, relative to data.source."""
        return self.found.name

    @property
    def partitions(self) -> Partitions:
        """The values of the columns that its folders give."""
        return self.found.partitions

    @contextmanager
    def at_hand(self) -> Iterator[Path]:
        """Yield the path of the file; a fetched object is removed at the end."""
        if isinstance(self.source, LocalLogs):
            yield self.source.path(self.found)
            return
        with TemporaryDirectory() as folder:
            # Not the folder of the stage `collect`, which may have objects of a broken run.
            apart = replace(self.source, parts=Path(folder) / "parts")
            target = Path(folder) / Path(self.name).name
            apart.prepare([self.found])
            apart.fetch(self.found, target)
            yield target

    def partitions_in(self, schema: Schema) -> dict[str, str | None]:
        """Return the partitions that are columns of a schema."""
        return {name: value for name, value in self.partitions.items() if name in schema.names}


def find_log_files(data: Data, root: Path) -> list[LogFile]:
    """Return the files that data.source names, in time order, and log those that are not taken.

    Args:
        data: The section `data` of params.yaml.
        root: The folder of a relative data.source.

    Raises:
        ConfigError, ConnectionError, DataError: See `find_source`.
    """
    source = find_source(data, root)
    if source.discovery.not_taken:
        log.info(f"not taken: {source.discovery.describe_not_taken()}")
    return [LogFile(source, one) for one in source.discovery.logs]


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
    partitions = file.partitions_in(schema)
    pieces = read_log(path, schema, labelled=True, short_rows=short_rows, partitions=partitions)
    with suppress(NoRowsError):
        yield from pieces
