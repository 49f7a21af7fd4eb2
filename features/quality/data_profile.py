"""The data profile: counts of each day's rows, and what they show when days are compared.

A day is counted when it is encoded. Later runs that reuse its files read its counts, not its rows.
"""

from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.encode.feature_state import MISSING, NUM_RESERVED, FeatureState
from features.encode.split import SPLITS
from features.encode.vocabulary_history import VocabularyHistory
from features.list_values import lengths_of, values_of
from features.quality.drift import ID_BINS, VALUE_BINS, BinCounts, count_in_bins, id_bins, psi
from features.schema.list_columns import ListOptions
from features.schema.schema import Feature, Schema

# Bins of ids that follow those of values.
UNSEEN_BIN, MISSING_BIN, NUM_BINS = ID_BINS, ID_BINS + 1, ID_BINS + 2
# With at least this number of rows for each id, it is faster to count each id first.
ROWS_PER_ID = 8


@dataclass
class Tally:
    """Counts of a set of rows.

    Attributes:
        num_rows: Number of rows.
        clicks: Number of rows with the label 1.
        missing: For each feature, the number of rows in which one of its columns is null, or its
            list is empty.
        unseen: For each categorical feature, the number of rows with an unseen value. Features
            whose ids do not distinguish unseen values are left out.
        bins: For each feature, the histogram of the values that are neither missing nor unseen;
            each value of a list counts.
        cut: For each feature of lists, the number of rows whose list is longer than `max_length`.
        lengths: For each feature of lists, the histogram of the lengths of the uncut lists.
    """

    num_rows: int = 0
    clicks: int = 0
    missing: dict[str, int] = field(default_factory=dict)
    unseen: dict[str, int] = field(default_factory=dict)
    bins: dict[str, BinCounts] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    lengths: dict[str, BinCounts] = field(default_factory=dict)

    def plus(self, other: "Tally") -> "Tally":
        """Return the counts of the rows of both."""
        if not self.num_rows or not other.num_rows:  # most days have rows of one split only
            return self if self.num_rows else other
        return self._combined(other, 1)

    def minus(self, other: "Tally") -> "Tally":
        """Return the counts of the rows of this tally without those of the other tally."""
        return self._combined(other, -1)

    def _combined(self, other: "Tally", sign: int) -> "Tally":
        def each(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
            return {name: ours.get(name, 0) + sign * theirs.get(name, 0) for name in ours | theirs}

        return Tally(
            self.num_rows + sign * other.num_rows,
            self.clicks + sign * other.clicks,
            each(self.missing, other.missing),
            each(self.unseen, other.unseen),
            each(self.bins, other.bins),
            each(self.cut, other.cut),
            each(self.lengths, other.lengths),
        )

    def share(self, count: int | None) -> float | None:
        """Return a count as a share of the rows; None for no count, or if there are no rows."""
        return None if count is None or not self.num_rows else count / self.num_rows

    def to_json(self) -> dict[str, Any]:
        """Return the counts as values for JSON.

        A histogram becomes one text, "bin:rows bin:rows", because each item of a list would have
        a line of its own in the file.
        """
        of_lists: dict[str, Any] = {"cut": self.cut, "lengths": _as_texts(self.lengths)}
        return {
            "num_rows": self.num_rows,
            "clicks": self.clicks,
            "missing": self.missing,
            "unseen": self.unseen,
            "bins": _as_texts(self.bins),
            **(of_lists if self.lengths else {}),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any], of_ids: Container[str] = ()) -> "Tally":
        """Return the tally that `to_json` was called on.

        Args:
            value: The result of `to_json`.
            of_ids: The features whose histograms are known to have only ID_BINS bins.
        """
        histograms: dict[str, Any] = {
            key: {
                name: _from_text(text, ID_BINS if key == "bins" and name in of_ids else VALUE_BINS)
                for name, text in value[key].items()
            }
            for key in ("bins", "lengths")
            if key in value
        }
        return cls(**{**value, **histograms})


def _as_texts(histograms: dict[str, BinCounts]) -> dict[str, str]:
    return {
        name: " ".join(f"{i}:{counts[i]}" for i in np.flatnonzero(counts))
        for name, counts in histograms.items()
    }


def _from_text(text: str, num_bins: int) -> BinCounts:
    counts = np.zeros(num_bins, np.int64)
    numbers = [int(number) for number in text.replace(":", " ").split()]
    counts[numbers[0::2]] = numbers[1::2]
    return counts


class IdCounter:
    """Counts the ids of one categorical feature. It takes two bytes of memory for each id.

    Args:
        cardinality: Number of ids.
        num_reserved: Number of ids before those of values. In the layout `frequency` these are
            UNSEEN, MISSING and the hash buckets of unseen values; in other layouts there are none.
    """

    def __init__(self, cardinality: int, num_reserved: int) -> None:
        self.num_reserved = num_reserved
        self.bin_of_id = _bin_of_id(cardinality, num_reserved)
        self.has_occurred = np.zeros(cardinality, bool)

    def count(self, ids: NDArray[np.int32]) -> BinCounts:
        """Count rows by bin.

        Args:
            ids: The id of each row (B,).

        Returns:
            The number of rows of each bin (NUM_BINS,); the last two are UNSEEN_BIN and MISSING_BIN.
        """
        if len(ids) >= ROWS_PER_ID * len(self.has_occurred):
            rows_of_id = np.bincount(ids, minlength=len(self.has_occurred))
            self.has_occurred |= rows_of_id > 0
            return np.bincount(self.bin_of_id, rows_of_id, NUM_BINS).astype(np.int64)
        indices = ids.astype(np.intp)
        self.has_occurred[indices] = True
        return np.bincount(self.bin_of_id[indices], minlength=NUM_BINS)

    @property
    def num_distinct(self) -> int:
        """Number of ids of values that have occurred."""
        return int(np.count_nonzero(self.has_occurred[self.num_reserved :]))


@lru_cache(maxsize=64)  # a worker of a cluster makes profiles of many runs
def _bin_of_id(cardinality: int, num_reserved: int) -> NDArray[np.uint8]:
    """Return the bin of each id (cardinality,). All days have the same array."""
    bins = id_bins(cardinality)
    bins[:num_reserved] = UNSEEN_BIN
    if num_reserved:
        bins[MISSING] = MISSING_BIN
    return bins


def make_id_counters(state: FeatureState) -> dict[str, IdCounter]:
    """Create the counter of each categorical feature of a state, by the feature's name."""
    counters = {}
    # An earlier version has a part of the newest version's ids.
    cardinalities = (state.newest or state).cardinalities
    for (name, policy), cardinality in zip(
        state.schema.policies.items(), cardinalities, strict=True
    ):
        num_reserved = 0
        if state.has_unseen_id:  # the buckets of `hash` have no unseen values
            num_reserved = NUM_RESERVED + (0 if policy.name == "hash" else policy.buckets)
        counters[name] = IdCounter(cardinality, num_reserved)
    return counters


def features_with_unseen(state: FeatureState) -> set[str]:
    """Return the categorical features whose ids distinguish unseen values."""
    return {
        name
        for name, policy in state.schema.policies.items()
        if state.has_unseen_id and policy.name != "hash"
    }


class DayProfile:
    """Counts the rows of a day, batch by batch.

    Neither the order of the rows nor their cut into batches changes the counts.

    Args:
        state: The feature state that the rows are encoded with.
    """

    def __init__(self, state: FeatureState) -> None:
        self.schema = state.schema
        self.tallies: dict[str, Tally] = {}
        self.id_counters = make_id_counters(state)
        self.features_with_unseen = features_with_unseen(state)

    def add(self, split: str, typed: pl.DataFrame, encoded: pl.DataFrame) -> None:
        """Count rows of one split.

        Args:
            split: The split.
            typed: The typed columns of the rows.
            encoded: The same rows encoded: label u8, dense features f32, ids i32.
        """
        tally = Tally(typed.height, int(typed[self.schema.label].sum()))
        for feature in self.schema.features:
            name = feature.name
            tally.missing[name] = _num_missing(typed, feature)
            if feature.policy is None:
                tally.bins[name] = count_in_bins(numbers_of(typed, encoded, feature))
            elif feature.list is not None:
                self._add_lists(tally, feature, feature.list, typed, encoded[name])
            else:
                counts = self.id_counters[name].count(encoded[name].to_numpy())
                tally.bins[name] = counts[:ID_BINS]
                if name in self.features_with_unseen:
                    tally.unseen[name] = int(counts[UNSEEN_BIN])
        self.tallies[split] = self.tallies.get(split, Tally()).plus(tally)

    def _add_lists(
        self,
        tally: Tally,
        feature: Feature,
        options: ListOptions,
        typed: pl.DataFrame,
        encoded: pl.Series,
    ) -> None:
        """Count the lists of a feature, and their values."""
        name, counter = feature.name, self.id_counters[feature.name]
        lengths = lengths_of(typed[feature.of[0]])
        tally.lengths[name] = count_in_bins(pl.Series(lengths))
        tally.missing[name] = int((lengths == 0).sum())
        tally.cut[name] = int((lengths > options.max_length).sum())
        ids = values_of(encoded).to_numpy()
        tally.bins[name] = counter.count(ids)[:ID_BINS]
        if name in self.features_with_unseen:
            row_of_value = np.repeat(np.arange(len(lengths)), lengths_of(encoded))
            is_unseen = counter.bin_of_id[ids] == UNSEEN_BIN
            tally.unseen[name] = len(np.unique(row_of_value[is_unseen]))

    def summary(self) -> dict[str, Any]:
        """Return the counts for JSON, about 50 KB for each split.

        `splits` has the tally of each split, `distinct` the number of distinct values of each
        categorical feature.
        """
        return {
            "splits": {split: tally.to_json() for split, tally in self.tallies.items()},
            "distinct": {name: counter.num_distinct for name, counter in self.id_counters.items()},
        }


def data_json(
    days: list[dict[str, Any]],
    schema: Schema,
    cardinalities: list[int],
    num_distinct: dict[str, int | None],
    num_bad_rows: list[int],
    names: list[str],
) -> dict[str, Any]:
    """Return the contents of data.json: figures of splits, days and columns.

    Each day is compared with its `window`, the training rows of all other days. What is compared
    is None if the window has no rows. `missing` and `unseen` are shares of rows; `unseen` is None
    if the ids do not distinguish unseen values. `drift` is the PSI (features/quality/drift.py) of
    the values that are neither missing nor unseen. `drift` and `window_unseen` are None for
    features made of a time, because a day has, for example, a weekday of its own.

    A feature of lists has three figures more: `cut`, the share of rows whose list is longer than
    `max_length`, and of each day `window_cut` and `length_drift`, the PSI of the lists' lengths.

    Args:
        days: The result of `DayProfile.summary` of each day, in time order.
        schema: The schema.
        cardinalities: The number of ids of each categorical feature, (F,).
        num_distinct: For each embedding table, the number of distinct values in the rows that its
            vocabulary was fitted on, rare ones included; None under the policy `hash`.
        num_bad_rows: The number of bad rows of each day.
        names: The name of each day.
    """
    rows_of_split = {split: _sum(_tally(day, split) for day in days) for split in SPLITS}
    all_rows = _sum(rows_of_split.values())
    cardinality = dict(zip(schema.categorical_features, cardinalities, strict=True))
    splits = {
        split: {**_size(rows), "days": [k for k, day in enumerate(days) if split in day["splits"]]}
        for split, rows in rows_of_split.items()
    }
    compared_days = [
        {
            "day": k,
            "name": names[k],
            "num_bad_rows": num_bad_rows[k],
            **_compare(day, rows_of_split["train"], schema),
        }
        for k, day in enumerate(days)
    ]
    columns = [
        {
            "name": name,
            "kind": "categorical" if name in cardinality else "dense",
            "missing": all_rows.share(all_rows.missing[name]),
            "distinct": num_distinct.get(schema.table_of.get(name, name)),
            "cardinality": cardinality.get(name),
            **{
                f"unseen_{split}": rows.share(rows.unseen.get(name))
                for split, rows in rows_of_split.items()
            },
            **({"cut": all_rows.share(all_rows.cut[name])} if name in all_rows.cut else {}),
        }
        for name in [*schema.dense_features, *schema.categorical_features]
    ]
    return {
        "num_rows": all_rows.num_rows,
        "num_bad_rows": sum(num_bad_rows),
        "splits": splits,
        "days": compared_days,
        "columns": columns,
    }


def vocabulary_json(history: VocabularyHistory, schema: Schema) -> dict[str, Any] | None:
    """Return the section `vocabulary` of data.json; None if vocabularies do not grow day by day.

    `days` are the counted days, in the order in which they were counted. For each embedding
    table, `sizes` has the number of values of each vocabulary version, and `last_seen` the number
    of values whose last occurrence was on each of the days. Values that were last seen long ago are
    those that `clickmill stage compact` would forget.
    """
    if not history.days:
        return None
    sizes = {
        name: [sizes_of_version[i] for sizes_of_version in history.sizes]
        for i, name in enumerate(schema.tables)
        if name in history.last_seen
    }
    return {
        "days": [day.name for day in history.days],
        "sizes": sizes,
        "last_seen": history.last_seen,
    }


def _compare(day: dict[str, Any], all_train: Tally, schema: Schema) -> dict[str, Any]:
    """Compare a day with its window, as a whole and by column."""
    made_of_time = {
        feature.name
        for feature in schema.features
        if feature.transform and feature.transform.takes == "time"
    }
    tallies = {split: _tally(day, split) for split in SPLITS}
    rows, window = _sum(tallies.values()), all_train.minus(tallies["train"])
    columns = {}
    # In the schema's order: the counts of a day that is reused are in the order of its JSON file.
    for name in [one.name for one in schema.features if one.name in rows.missing]:
        is_comparable = name not in made_of_time
        columns[name] = {
            "missing": rows.share(rows.missing[name]),
            "window_missing": window.share(window.missing.get(name)),
            "unseen": rows.share(rows.unseen.get(name)),
            "window_unseen": window.share(window.unseen.get(name)) if is_comparable else None,
            "drift": (
                psi(rows.bins[name], window.bins[name])
                if window.num_rows and is_comparable
                else None
            ),
            "distinct": day["distinct"].get(name),
        }
        if name in rows.lengths:
            columns[name] |= {
                "cut": rows.share(rows.cut[name]),
                "window_cut": window.share(window.cut.get(name)),
                "length_drift": (
                    psi(rows.lengths[name], window.lengths[name]) if window.num_rows else None
                ),
            }
    rows_by_split = {split: tally["num_rows"] for split, tally in day["splits"].items()}
    return {
        **_size(rows),
        "split_rows": rows_by_split,
        "window": _size(window),
        "columns": columns,
    }


def _size(rows: Tally) -> dict[str, Any]:
    return {"num_rows": rows.num_rows, "label_rate": rows.share(rows.clicks)}


def _tally(day: dict[str, Any], split: str) -> Tally:
    """Return the counts of a split of a day, which may have no rows."""
    if split not in day["splits"]:
        return Tally()
    return Tally.from_json(day["splits"][split], of_ids=day["distinct"])


def _sum(tallies: Iterable[Tally]) -> Tally:
    total = Tally()
    for tally in tallies:
        total = total.plus(tally)
    return total


def _num_missing(typed: pl.DataFrame, feature: Feature) -> int:
    """Return the number of rows in which one of the feature's columns is null."""
    if len(feature.of) == 1:
        return typed[feature.of[0]].null_count()
    return int(rows_with_missing(typed, feature).sum())


def rows_with_missing(typed: pl.DataFrame, feature: Feature) -> NDArray[np.bool_]:
    """Return in which rows one of the feature's columns is null (B,)."""
    is_missing = np.zeros(typed.height, bool)
    for name in feature.of:
        if typed[name].has_nulls():
            is_missing |= typed[name].is_null().to_numpy()
    return is_missing


def numbers_of(typed: pl.DataFrame, encoded: pl.DataFrame, feature: Feature) -> pl.Series:
    """Return the numbers of a dense feature before its transform, if it is made of a number.

    A dense feature that is made of a category has only the encoded numbers.
    """
    assert feature.transform is not None
    if feature.transform.takes == "dense":
        return typed[feature.of[0]]
    return encoded[feature.name]
