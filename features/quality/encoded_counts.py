"""Counts of encoded rows, by which the traffic of a server is compared with training rows.

The data profile counts the rows of a log before they are encoded. The rows that a server has scored
are at hand only as ids and dense features, so both sides are counted as such here.
"""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.encode.feature_state import UNSEEN, FeatureState
from features.quality.data_profile import (
    MISSING_BIN,
    NUM_BINS,
    UNSEEN_BIN,
    features_with_unseen,
    make_id_counters,
)
from features.quality.drift import ID_BINS, VALUE_BINS, BinCounts, count_in_bins, psi


class EncodedCounts:
    """Counts the encoded rows of a feature state, batch by batch. Lists are not counted.

    Args:
        state: The feature state that the rows are encoded with.
    """

    def __init__(self, state: FeatureState) -> None:
        self.num_rows = 0
        single_valued = state.schema.single_valued_features
        self._has_unseen_id = state.has_unseen_id
        self._features_with_unseen = features_with_unseen(state)
        self._counters = {
            name: counter
            for name, counter in make_id_counters(state).items()
            if name in single_valued
        }
        # A weekday of served rows differs from that of other days, and that is no drift.
        self._made_of_time = {
            feature.name
            for feature in state.schema.features
            if feature.transform and feature.transform.takes == "time"
        }
        self._bins: dict[str, BinCounts] = {
            **{name: np.zeros(VALUE_BINS, np.int64) for name in state.schema.dense_features},
            **{name: np.zeros(NUM_BINS, np.int64) for name in single_valued},
        }

    @property
    def features(self) -> list[str]:
        """The names of the features that are counted: dense ones, then categorical ones."""
        return list(self._bins)

    def add(self, rows: pl.DataFrame) -> None:
        """Count rows.

        Args:
            rows: A column for each feature: f32 for dense ones, i32 for ids.

        Raises:
            ValueError: An id is not one of the feature state. No row of the batch is counted then.
        """
        for name, counter in self._counters.items():
            ids = rows[name].to_numpy()
            if len(ids) and not 0 <= ids.min() <= ids.max() < len(counter.bin_of_id):
                raise ValueError(f"{name}: an id that its feature state does not have")
        for name, bins in self._bins.items():
            if name in self._counters:
                bins += self._counters[name].count(rows[name].to_numpy())
            else:
                bins += count_in_bins(rows[name])
        self.num_rows += rows.height

    def add_of_later_version(self, rows: pl.DataFrame) -> None:
        """Count rows that a later version of the vocabularies has encoded.

        The values that came later are unseen ones here, as if this state had encoded the rows.
        """
        self.add(
            rows.with_columns(
                pl.when(pl.col(name) < len(counter.bin_of_id))
                .then(pl.col(name))
                .otherwise(UNSEEN)
                .cast(pl.Int32)
                for name, counter in self._counters.items()
            )
        )

    def missing(self, name: str) -> float | None:
        """Return the share of rows in which a feature is missing; None if its ids do not say."""
        if name not in self._counters or not self._has_unseen_id:
            return None
        return self._share(name, MISSING_BIN)

    def unseen(self, name: str) -> float | None:
        """Return the share of rows with an unseen value; None if the ids do not say."""
        if name not in self._features_with_unseen or name not in self._counters:
            return None
        return self._share(name, UNSEEN_BIN)

    def drift_from(self, other: "EncodedCounts", name: str) -> float | None:
        """Return the PSI of a feature against other rows of the same state.

        Missing and unseen values are left out. None if there are too few rows, and for features
        made of a time.
        """
        if name in self._made_of_time:
            return None
        return psi(self._known(name), other._known(name))

    def _share(self, name: str, bin_: int) -> float | None:
        return int(self._bins[name][bin_]) / self.num_rows if self.num_rows else None

    def _known(self, name: str) -> NDArray[np.int64]:
        bins = self._bins[name]
        return bins[:ID_BINS] if name in self._counters else bins
