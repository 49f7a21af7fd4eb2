"""Bands of frequency: how often a row's value of one column was there in training, in decades of the count of its id.

An id's count is how often its row of the embedding table was trained. It is taken from the training rows as they are, and so holds for
every layout of ids, and for a value that got an id of its own only after some days.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features.encode.feature_state import FeatureState
from features.schema.check_params import check_column

NEVER = "unseen or rare"  # an id that many values share, or that no training row has
MOST_DECADES = 19  # of an int64


@dataclass(frozen=True)
class Bands:
    """names: of the B bands, rarer ones first; num_ids: in each; of_id: the band of each id of the column, (C,)."""

    column: str
    names: list[str]
    num_ids: list[int]
    of_id: NDArray[np.int64]


def make_bands(column: str | None, state: FeatureState, train_dir: Path) -> Bands | None:
    """Bands of a categorical feature (None: of that with the most ids), counted in one pass over train_dir/day_*.parquet.

    None when no feature is categorical. Raises ConfigError when the column is not one of them.
    """
    names = state.schema.categorical_features
    check_column(column, names)
    if not names:
        return None
    column = column or names[int(np.argmax(state.cardinalities))]
    count_C = np.zeros(state.cardinalities[names.index(column)], np.int64)
    for path in sorted(train_dir.glob("day_*.parquet")):
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                ids = pl.DataFrame(file.read_row_group(group, columns=[column]))[column].to_numpy()
                count_C += np.bincount(ids, minlength=len(count_C))
    return _bands(column, count_C, state.shared_ids(column))


def _bands(column: str, count_C: NDArray[np.int64], shared: dict[int, str]) -> Bands:
    decade_C = np.searchsorted(
        10 ** np.arange(1, MOST_DECADES), count_C, side="right"
    )  # 0 for a count below 10
    decades = [f"{10**k:,}–{10 ** (k + 1) - 1:,}" for k in range(int(decade_C.max()) + 1)]
    names = list(dict.fromkeys([NEVER, *shared.values(), *decades]))
    of_id = decade_C + names.index(decades[0])
    of_id[count_C == 0] = names.index(NEVER)
    for place, name in shared.items():
        of_id[place] = names.index(name)
    return Bands(column, names, np.bincount(of_id, minlength=len(names)).tolist(), of_id)
