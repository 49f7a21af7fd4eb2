"""The feature files of a split, read one row group at a time."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq


def day_files(directory: Path) -> dict[int, Path]:
    """Find the feature files of a split.

    Args:
        directory: The folder of the split, with a file day_NNN.parquet for each day.

    Returns:
        Number of the day -> file, in ascending order of days.
    """
    paths = sorted(directory.glob("day_*.parquet"))
    return {int(path.stem.removeprefix("day_")): path for path in paths}


def read_row_groups(
    directory: Path, columns: Sequence[str] | None = None
) -> Iterator[tuple[int, pl.DataFrame]]:
    """Read the rows of a split, day after day.

    Args:
        directory: The folder of the split.
        columns: The columns to read; None reads all.

    Yields:
        The number of the day, and the rows of one row group of its file.
    """
    for day, path in day_files(directory).items():
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                yield day, pl.DataFrame(file.read_row_group(group, columns=columns))
