"""The shape of the data: what each day's rows count up to, and what the days say when they are put side by side.

A day's counts are all that is ever known of it, so a day that was read in an earlier run is told by the counts kept then.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.encode.feature_state import MISSING, NUM_RESERVED
from features.encode.split import SPLITS
from features.encode.vocabulary_growth import Lineage
from features.quality.drift import ID_BINS, VALUE_BINS, Counts, count_values, id_bins, psi
from features.schema.schema import Feature, Schema

UNSEEN_BIN, MISSING_BIN, NUM_BINS = ID_BINS, ID_BINS + 1, ID_BINS + 2
FEW_IDS = 8  # so many times more rows than ids: each id is counted on its own


@dataclass
class Tally:
    """Counts of some rows. By feature: missing (of raw values), unseen (where ids say so), bins (of the values that are neither)."""

    num_rows: int = 0
    clicks: int = 0
    missing: dict[str, int] = field(default_factory=dict)
    unseen: dict[str, int] = field(default_factory=dict)
    bins: dict[str, Counts] = field(default_factory=dict)

    def plus(self, other: "Tally", sign: int = 1) -> "Tally":
        """The rows of both, or with sign -1 those of self without those of other."""

        def each(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
            return {name: ours.get(name, 0) + sign * theirs.get(name, 0) for name in ours | theirs}

        num_rows, clicks = self.num_rows + sign * other.num_rows, self.clicks + sign * other.clicks
        return Tally(
            num_rows,
            clicks,
            each(self.missing, other.missing),
            each(self.unseen, other.unseen),
            each(self.bins, other.bins),
        )

    def share(self, count: int | None) -> float | None:
        return None if count is None or not self.num_rows else count / self.num_rows

    def to_json(self) -> dict[str, Any]:
        """Bins as text, "bin:rows bin:rows …": as a list each would have a line of its own in a file."""
        bins = {
            name: " ".join(f"{i}:{counts[i]}" for i in np.flatnonzero(counts))
            for name, counts in self.bins.items()
        }
        return {
            "num_rows": self.num_rows,
            "clicks": self.clicks,
            "missing": self.missing,
            "unseen": self.unseen,
            "bins": bins,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Tally":
        bins = {}
        for name, text in value["bins"].items():
            pairs = np.array([pair.split(":") for pair in text.split()], np.int64).reshape(-1, 2)
            bins[name] = np.bincount(pairs[:, 0], pairs[:, 1], VALUE_BINS).astype(np.int64)
        return cls(**{**value, "bins": bins})


class Ids:
    """The ids of one categorical feature as they pass by; two bytes of memory an id."""

    def __init__(self, cardinality: int, num_reserved: int) -> None:
        """num_reserved: the ids before those of values; none, or UNSEEN, MISSING and the buckets of unseen values."""
        self.num_reserved = num_reserved
        self.bin_of = id_bins(cardinality)
        self.bin_of[:num_reserved] = UNSEEN_BIN
        if num_reserved:
            self.bin_of[MISSING] = MISSING_BIN
        self.occurred = np.zeros(cardinality, bool)

    def count(self, ids: NDArray[np.int32]) -> Counts:
        """Rows per bin, the last two are UNSEEN_BIN and MISSING_BIN."""
        if FEW_IDS * len(self.occurred) <= len(ids):
            rows_of_id = np.bincount(ids, minlength=len(self.occurred))
            self.occurred |= rows_of_id > 0
            return np.bincount(self.bin_of, rows_of_id, NUM_BINS).astype(np.int64)
        places = ids.astype(np.intp)
        self.occurred[places] = True
        return np.bincount(self.bin_of[places], minlength=NUM_BINS)

    @property
    def distinct(self) -> int:
        return int(self.occurred[self.num_reserved :].sum())


class DayProfile:
    """Counts a day's rows while they pass by. Neither their order matters nor how they are cut into batches."""

    def __init__(self, schema: Schema, cardinalities: list[int], has_unseen: bool) -> None:
        """cardinalities: per categorical feature. has_unseen: the layout is `frequency` (features/encode/feature_state.py), ids say what was unseen."""
        self.schema = schema
        self.tallies: dict[str, Tally] = {}
        self.ids = {}
        self.have_unseen = []
        for (name, policy), cardinality in zip(schema.policies.items(), cardinalities, strict=True):
            # under the policy `hash` no value is unseen: a bucket is all there is to know of one
            vocabulary = has_unseen and policy.name != "hash"
            self.have_unseen += [name] * vocabulary
            self.ids[name] = Ids(
                cardinality,
                NUM_RESERVED + policy.buckets if vocabulary else NUM_RESERVED * has_unseen,
            )

    def add(self, split: str, raw: pl.DataFrame, ready: pl.DataFrame) -> None:
        """Rows of one split: raw typed columns, and the same rows transformed (label u8, dense f32, ids i32)."""
        tally = Tally(raw.height, int(raw[self.schema.label].sum()))
        for feature in self.schema.features:
            name = feature.name
            tally.missing[name] = _num_missing(raw, feature)
            if feature.policy is None:
                tally.bins[name] = count_values(_numbers(raw, ready, feature))
            else:
                counts = self.ids[name].count(ready[name].to_numpy())
                tally.bins[name] = counts[:ID_BINS]
                if name in self.have_unseen:
                    tally.unseen[name] = int(counts[UNSEEN_BIN])
        self.tallies[split] = self.tallies.get(split, Tally()).plus(tally)

    def summary(self) -> dict[str, Any]:
        """The day's counts, to be kept as JSON, some 50 KB a split: a tally of each, and the ids of values that occurred, by feature."""
        return {
            "splits": {split: tally.to_json() for split, tally in self.tallies.items()},
            "distinct": {name: ids.distinct for name, ids in self.ids.items()},
        }


def data_json(
    days: list[dict[str, Any]],
    schema: Schema,
    cardinalities: list[int],
    num_distinct: dict[str, int | None],
    num_bad_rows: list[int],
    names: list[str],
) -> dict[str, Any]:
    """data.json: rows and label rate per split and day; per column, over all days and for each, what its values are like.

    days: the summaries, in time order; num_bad_rows and names: of each day. cardinalities, num_distinct: per categorical feature; the
    latter counts rare values too, in the rows that the vocabulary was fitted on, and is None under the policy `hash`.

    A day's `window` is the training rows of all other days; what is compared with it is None where there are none. Shares are of rows;
    `unseen` is None where ids do not tell. `drift` is the PSI (features/quality/drift.py) of the values that are neither missing nor unseen. It and
    `window_unseen` are None for what is made of a time: a day is meant to have a weekday of its own.
    """
    of_split = {split: _sum(_tally(day, split) for day in days) for split in SPLITS}
    total = _sum(of_split.values())
    cardinality = dict(zip(schema.categorical_features, cardinalities, strict=True))
    return {
        "num_rows": total.num_rows,
        "num_bad_rows": sum(num_bad_rows),
        "splits": {
            split: {
                **_size(rows),
                "days": [k for k, day in enumerate(days) if split in day["splits"]],
            }
            for split, rows in of_split.items()
        },
        "days": [
            {
                "day": k,
                "name": names[k],
                "num_bad_rows": num_bad_rows[k],
                **_compared(day, of_split["train"], schema),
            }
            for k, day in enumerate(days)
        ],
        "columns": [
            {
                "name": name,
                "kind": "categorical" if name in cardinality else "dense",
                "missing": total.share(total.missing[name]),
                "distinct": num_distinct.get(name),
                "cardinality": cardinality.get(name),
                **{
                    f"unseen_{split}": rows.share(rows.unseen.get(name))
                    for split, rows in of_split.items()
                },
            }
            for name in [*schema.dense_features, *schema.categorical_features]
        ],
    }


def vocabulary_json(lineage: Lineage, schema: Schema) -> dict[str, Any] | None:
    """data.json's `vocabulary`, where vocabularies grow from day to day (None where they do not).

    days: those counted so far, in that order. By feature, sizes: values at first and after each step of growth; last_seen: of today's
    values, how many were seen on each of the days for the last time. What was not seen for long is what a compaction would forget.
    """
    if not lineage.days:
        return None
    sizes = {
        name: [step[i] for step in lineage.sizes]
        for i, name in enumerate(schema.categorical_features)
        if name in lineage.last_seen
    }
    return {
        "days": [day.name for day in lineage.days],
        "sizes": sizes,
        "last_seen": lineage.last_seen,
    }


def _compared(day: dict[str, Any], train: Tally, schema: Schema) -> dict[str, Any]:
    """A day beside its window, as a whole and by column."""
    of_time = {
        feature.name
        for feature in schema.features
        if feature.transform and feature.transform.takes == "time"
    }
    rows, window = (
        _sum(_tally(day, split) for split in SPLITS),
        train.plus(_tally(day, "train"), -1),
    )
    columns = {
        name: {
            "missing": rows.share(rows.missing[name]),
            "window_missing": window.share(window.missing.get(name)),
            "unseen": rows.share(rows.unseen.get(name)),
            "window_unseen": None if name in of_time else window.share(window.unseen.get(name)),
            "drift": psi(rows.bins[name], window.bins[name])
            if window.num_rows and name not in of_time
            else None,
            "distinct": day["distinct"].get(name),
        }
        for name in rows.missing
    }
    split_rows = {split: part["num_rows"] for split, part in day["splits"].items()}
    return {**_size(rows), "split_rows": split_rows, "window": _size(window), "columns": columns}


def _size(rows: Tally) -> dict[str, Any]:
    return {"num_rows": rows.num_rows, "label_rate": rows.share(rows.clicks)}


def _tally(day: dict[str, Any], split: str) -> Tally:
    return Tally.from_json(day["splits"][split]) if split in day["splits"] else Tally()


def _sum(parts: Iterable[Tally]) -> Tally:
    total = Tally()
    for part in parts:
        total = total.plus(part)
    return total


def _num_missing(raw: pl.DataFrame, feature: Feature) -> int:
    """Rows in which one of the feature's raw columns is null."""
    if len(feature.of) == 1:
        return raw[feature.of[0]].null_count()
    return int(raw.select(pl.any_horizontal(pl.col(feature.of).is_null()).sum()).item())


def _numbers(raw: pl.DataFrame, ready: pl.DataFrame, feature: Feature) -> pl.Series:
    """A dense feature's raw numbers; where it was made of something else, what was made."""
    assert feature.transform is not None
    return raw[feature.of[0]] if feature.transform.takes == "dense" else ready[feature.name]
