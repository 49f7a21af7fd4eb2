"""The data profiles of small days, whose rows are counted together.

`DayProfile` counts the same of one day. It takes a time for each feature that does not depend on
the number of rows, and a log may have thousands of small files.

B is the number of rows of all days, P the number of parts: the rows of one split of one day.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.encode.feature_state import FeatureState
from features.encode.split import SPLITS
from features.list_values import lengths_of, values_of
from features.quality.data_profile import (
    NUM_BINS,
    UNSEEN_BIN,
    features_with_unseen,
    make_id_counters,
    numbers_of,
    rows_with_missing,
)
from features.quality.drift import ID_BINS, BinCounts, count_parts_in_bins
from features.schema.schema import Feature

Indices = NDArray[np.int64]


def profiles_of_days(
    state: FeatureState,
    typed: pl.DataFrame,
    encoded: pl.DataFrame,
    day_of_row: Indices,
    code_of_row: NDArray[np.uint8],
    num_days: int,
) -> list[dict[str, Any]]:
    """Return what `DayProfile.summary` returns for each day.

    Args:
        state: The feature state that the rows are encoded with.
        typed: The typed rows of all days.
        encoded: The same rows, encoded.
        day_of_row: The day of each row (B,), 0 to num_days - 1.
        code_of_row: The split of each row (B,), an index into SPLITS.
        num_days: The number of days.
    """
    counts = _Counts(state, typed, encoded, day_of_row, code_of_row, num_days)
    for feature in state.schema.features:
        counts.add(feature)
    profiles: list[dict[str, Any]] = [
        {"splits": {}, "distinct": {name: days[k] for name, days in counts.distinct.items()}}
        for k in range(num_days)
    ]
    days, codes = np.divmod(counts.parts, len(SPLITS))
    for day, code, tally in zip(days.tolist(), codes.tolist(), counts.tallies, strict=True):
        profiles[day]["splits"][SPLITS[code]] = tally
    return profiles


class _Counts:
    """The tallies of all parts, as of `Tally.to_json`, feature by feature.

    Attributes:
        parts: The parts that have rows (P,), as day * number of splits + split.
        tallies: The tally of each part.
        distinct: For each categorical feature, the number of distinct values on each day.
    """

    def __init__(
        self,
        state: FeatureState,
        typed: pl.DataFrame,
        encoded: pl.DataFrame,
        day_of_row: Indices,
        code_of_row: NDArray[np.uint8],
        num_days: int,
    ) -> None:
        self.typed, self.encoded = typed, encoded
        self.day_of_row, self.num_days = day_of_row, num_days
        self.counters, self.with_unseen = make_id_counters(state), features_with_unseen(state)
        self.parts, self.part_of_row = np.unique(
            day_of_row * len(SPLITS) + code_of_row, return_inverse=True
        )
        clicks = typed[state.schema.label].to_numpy() == 1
        keys = ["missing", "unseen", "bins"]
        if state.schema.list_features:
            keys += ["cut", "lengths"]
        self.tallies: list[dict[str, Any]] = [
            {"num_rows": num_rows, "clicks": num_clicks, **{key: {} for key in keys}}
            for num_rows, num_clicks in zip(
                self._num_each(self.part_of_row),
                self._num_each(self.part_of_row[clicks]),
                strict=True,
            )
        ]
        self.distinct: dict[str, list[int]] = {}

    def add(self, feature: Feature) -> None:
        """Count the rows by the values of a feature."""
        name = feature.name
        if feature.list is not None:
            self._add_lists(feature)
            return
        is_missing = rows_with_missing(self.typed, feature)
        self._set("missing", name, self._num_each(self.part_of_row[is_missing]))
        if feature.policy is None:
            values = numbers_of(self.typed, self.encoded, feature)
            self._set("bins", name, self._in_bins(values, self.part_of_row))
            return
        ids = self.encoded[name].to_numpy()
        counts = self._add_ids(name, ids, np.arange(len(ids)))
        if name in self.with_unseen:
            self._set("unseen", name, counts[:, UNSEEN_BIN].tolist())

    def _add_lists(self, feature: Feature) -> None:
        name, options = feature.name, feature.list
        assert options is not None
        lengths = lengths_of(self.typed[feature.of[0]])
        self._set("lengths", name, self._in_bins(pl.Series(lengths), self.part_of_row))
        self._set("missing", name, self._num_each(self.part_of_row[lengths == 0]))
        self._set("cut", name, self._num_each(self.part_of_row[lengths > options.max_length]))
        ids = values_of(self.encoded[name]).to_numpy()
        row_of_value = np.repeat(np.arange(len(lengths)), lengths_of(self.encoded[name]))
        self._add_ids(name, ids, row_of_value)
        if name in self.with_unseen:
            is_unseen = self.counters[name].bin_of_id[ids] == UNSEEN_BIN
            rows = np.unique(row_of_value[is_unseen])
            self._set("unseen", name, self._num_each(self.part_of_row[rows]))

    def _add_ids(self, name: str, ids: NDArray[np.int32], row_of_id: Indices) -> BinCounts:
        """Count ids by bin (P, NUM_BINS), and the distinct ones of each day."""
        counter, num_parts = self.counters[name], len(self.parts)
        bins = self.part_of_row[row_of_id] * NUM_BINS + counter.bin_of_id[ids]
        counts = np.bincount(bins, minlength=num_parts * NUM_BINS).reshape(num_parts, NUM_BINS)
        self._set("bins", name, _as_texts(counts[:, :ID_BINS]))
        is_value = ids >= counter.num_reserved
        num_ids = len(counter.bin_of_id)
        distinct = np.unique(self.day_of_row[row_of_id[is_value]] * num_ids + ids[is_value])
        num_distinct = np.bincount(distinct // num_ids, minlength=self.num_days)
        self.distinct[name] = num_distinct.tolist()
        return counts

    def _in_bins(self, values: pl.Series, part_of_row: Indices) -> list[str]:
        return _as_texts(count_parts_in_bins(values, part_of_row, len(self.parts)))

    def _num_each(self, parts: Indices) -> list[int]:
        """Return how often each part occurs."""
        return np.bincount(parts, minlength=len(self.parts)).tolist()  # type: ignore[no-any-return]

    def _set(self, key: str, name: str, figures: list[Any]) -> None:
        for tally, figure in zip(self.tallies, figures, strict=True):
            tally[key][name] = figure


def _as_texts(counts: BinCounts) -> list[str]:
    """Return each histogram of (P, bins) as the text of `Tally.to_json`."""
    parts, bins = np.nonzero(counts)
    pairs = [f"{i}:{n}" for i, n in zip(bins.tolist(), counts[parts, bins].tolist(), strict=True)]
    ends = parts.searchsorted(np.arange(len(counts)), side="right").tolist()
    return [" ".join(pairs[start:end]) for start, end in pairwise([0, *ends])]
