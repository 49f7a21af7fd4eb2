"""The training rows that served traffic is compared with: a sample of the split train."""

from collections.abc import Iterator

import polars as pl
import pyarrow.parquet as pq

from common.artifact import Artifact
from common.bundle_layout import STATE
from common.files import DataError
from common.numbers import ceil_div
from features.encode.feature_state import FeatureState
from features.quality.encoded_counts import EncodedCounts
from training.evaluation.row_groups import day_files

TRAIN = "train"
MAX_ROWS = 1_000_000  # of the sample; more would not change the figures


class TrainingRows:
    """The training rows of artifacts/features.

    Args:
        features: The artifact.
        max_rows: About the number of rows that are counted: row groups at equal distances.

    Raises:
        DataError: Its feature state is damaged.
    """

    def __init__(self, features: Artifact, max_rows: int = MAX_ROWS) -> None:
        self._features, self._max_rows = features, max_rows
        self._state = FeatureState.load(features.folder / STATE)

    def counts_of(self, state: FeatureState) -> EncodedCounts:
        """Count the training rows as a feature state encodes them.

        Raises:
            DataError: The features were made with other vocabularies, a file is damaged, or there
                are no rows.
        """
        if not state.is_version_of(self._state):
            raise DataError(
                "its vocabularies are not those of artifacts/features, so drift is not known; run"
                " the features stage of its repository"
            )
        counts = EncodedCounts(state)
        for rows in self._sampled_groups(counts.features):
            counts.add_of_later_version(rows)
        if not counts.num_rows:
            raise DataError("artifacts/features has no training rows, so drift is not known")
        return counts

    def _sampled_groups(self, columns: list[str]) -> Iterator[pl.DataFrame]:
        paths = [self._features.path(name) for name in day_files(self._features, TRAIN).values()]
        groups, num_rows = [], 0
        for path in paths:
            metadata = pq.read_metadata(path)
            groups += [(path, group) for group in range(metadata.num_row_groups)]
            num_rows += metadata.num_rows
        step = max(1, ceil_div(num_rows, self._max_rows))
        for path, group in groups[::step]:
            with pq.ParquetFile(path) as file:
                yield pl.DataFrame(file.read_row_group(group, columns=columns))
