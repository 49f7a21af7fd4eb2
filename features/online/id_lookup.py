"""The ids of a request's keys, by the layout and the policies of a feature state."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.encode.feature_state import MISSING, NUM_RESERVED, UNSEEN, FeatureState
from features.online.feature_makers import Inputs, looked_up
from features.online.key_table import KeyTable
from features.online.value_readers import UnusualError
from features.online.xxh64 import xxh64

TEXT_CHUNK = 1 << 16  # texts of a vocabulary that are Python objects at a time


class IdLookup:
    """The ids of all categorical features, and the counts of the transform `count`.

    Args:
        state: The feature state.

    Raises:
        UnusualError: A vocabulary has values that are no integers and no texts, or cannot be a
            table.
    """

    def __init__(self, state: FeatureState) -> None:
        features = looked_up(state)
        categorical = [feature for feature in features if feature.policy is not None]
        counted = features[len(categorical) :]
        self.num_columns, self.num_features = len(features), len(categorical)
        tables = list(state.vocabularies)
        vocabularies = [
            *state.vocabularies.values(),
            *(state.fitted[feature.name]["value"] for feature in counted),
        ]
        columns = [tables.index(feature.table) for feature in categorical]
        columns += range(len(tables), len(vocabularies))
        try:
            self.table = KeyTable(list(map(_keys, vocabularies)), columns)
        except ValueError:
            raise UnusualError from None
        self.texts = {
            column: vocabularies[number]
            for column, number in enumerate(columns)
            if vocabularies[number].dtype == pl.String
        }
        self.counts = [
            (
                self.num_features + k,
                state.schema.dense_features.index(feature.name),
                _logs(state, feature.name),
            )
            for k, feature in enumerate(counted)
        ]
        buckets = [feature.policy.buckets for feature in categorical if feature.policy]
        self.num_buckets_F = np.array(buckets, np.uint64)
        self.bucket_columns = np.flatnonzero(self.num_buckets_F)
        sizes = [len(state.vocabularies[feature.table]) for feature in categorical]
        first, unseen, missing = _ids_of_layout(state.layout, sizes, buckets)
        self.first_F = np.array(first, np.int32)
        self.unseen_F = np.array(unseen, np.int32)
        self.missing_F = None if missing is None else np.array(missing, np.int32)

    def look_up(self, inputs: Inputs) -> NDArray[np.int32]:
        """Return the ids (B, F), and set the dense features that are counts."""
        positions = self.table.positions_of(inputs.keys_BK)
        for column, values in self.texts.items():
            _forget_other_texts(positions[:, column], values, inputs.texts[column])
        nulls = inputs.is_null_BK
        for column, feature, logs in self.counts:
            of_column = positions[:, column]
            is_known = of_column >= 0
            if nulls is not None:
                is_known &= ~nulls[:, column]
            inputs.dense_BN[is_known, feature] = logs[of_column[is_known]]
        positions = positions[:, : self.num_features]
        ids = np.where(positions < 0, self.unseen_F, positions + self.first_F)
        if nulls is not None and self.missing_F is not None:
            ids = np.where(nulls[:, : self.num_features], self.missing_F, ids)
        if len(self.bucket_columns):
            self._set_buckets(ids, inputs)
        return ids

    def _set_buckets(self, ids_BF: NDArray[np.int32], inputs: Inputs) -> None:
        """Replace the ids of unseen values by those of their hash buckets."""
        rows, columns = np.nonzero(ids_BF[:, self.bucket_columns] == UNSEEN)
        if not len(rows):
            return
        columns = self.bucket_columns[columns]
        cells = zip(
            rows.tolist(), columns.tolist(), inputs.keys_BK[rows, columns].tolist(), strict=True
        )
        texts = [
            inputs.texts[column][row] if column in inputs.texts else str(key)
            for row, column, key in cells
        ]
        ids_BF[rows, columns] = np.uint64(NUM_RESERVED) + xxh64(texts) % self.num_buckets_F[columns]

    @property
    def num_bytes(self) -> int:
        """The memory of the table."""
        return self.table.num_bytes


def _forget_other_texts(
    positions: NDArray[np.int32], values: pl.Series, texts: Sequence[str]
) -> None:
    """Set the position -1 where a text is another one that has the same hash."""
    for row, position in enumerate(positions.tolist()):
        if position >= 0 and values[position] != texts[row]:
            positions[row] = -1


def _keys(values: pl.Series) -> NDArray[np.int64]:
    """Return the key of each value of a vocabulary."""
    if values.dtype.is_integer():
        return values.to_numpy().astype(np.int64)
    if values.dtype != pl.String:
        raise UnusualError
    keys = np.empty(len(values), np.int64)
    for start in range(0, len(values), TEXT_CHUNK):
        texts = values[start : start + TEXT_CHUNK].to_list()
        keys[start : start + len(texts)] = list(map(hash, texts))
    if len(np.unique(keys)) < len(keys):
        raise UnusualError
    return keys


def _logs(state: FeatureState, name: str) -> NDArray[np.float32]:
    counts = state.fitted[name]["count"]
    return counts.cast(pl.Float64).log1p().cast(pl.Float32).to_numpy()


def _ids_of_layout(
    layout: str, sizes: list[int], buckets: list[int]
) -> tuple[list[int], list[int], list[int] | None]:
    """Return the ids of the first value, of unseen and of missing values, of each feature.

    In the layout `appearance` no value is missing: null counts as 0 or as the empty text.
    """
    if layout == "frequency":
        num = len(sizes)
        return [NUM_RESERVED + one for one in buckets], [UNSEEN] * num, [MISSING] * num
    if layout == "appearance":
        return [0] * len(sizes), sizes, None
    after = [size + 1 for size in sizes]
    return [1] * len(sizes), after, after
