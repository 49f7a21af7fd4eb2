"""The feature files of a split, read one row group at a time."""

from collections.abc import Iterator, Sequence
from pathlib import PurePath

import polars as pl
import pyarrow.parquet as pq

from common.artifact import Artifact


def day_files(features: Artifact, split: str) -> dict[int, str]:
    """Find the feature files of a split.

    Returns:
        Number of the day -> name of its file, in ascending order of days.
    """
    names = features.names(split)
    return {int(PurePath(name).stem.removeprefix("day_")): name for name in names}


def read_row_groups(
    features: Artifact, split: str, columns: Sequence[str] | None = None
) -> Iterator[tuple[int, pl.DataFrame]]:
    """Read the rows of a split, day after day.

    Args:
        features: artifacts/features.
        split: The split.
        columns: The columns to read; None reads all.

    Yields:
        The number of the day, and the rows of one row group of its file.

    Raises:
        DataError: A file is missing or damaged.
    """
    for day, name in day_files(features, split).items():
        with pq.ParquetFile(features.path(name)) as file:
            for group in range(file.num_row_groups):
                yield day, pl.DataFrame(file.read_row_group(group, columns=columns))
