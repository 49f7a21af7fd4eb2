"""How the state comes to be: fitted on the first days together, then grown day by day, so that one more day costs a day's time.

A generation is the state after one such step. Vocabularies are append-only, so generation g is the present state cut to the sizes that
its vocabularies had then, and the rows of a training day keep the ids of the generation that counted them. Validation and test rows have
the newest one's. The counts of all values, rare ones too, are kept beside the state: what is rare each day may be frequent in a month.

Only the layout `frequency`, on a log of several files split by days, can grow. Any other state is fitted anew each time.
"""

import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import polars as pl

from common.config.params import Features
from common.files import read_json, sha256_file, write_json
from common.parquet import ParquetWriter
from features.encode.days import Day, train_rows
from features.encode.feature_state import FeatureState, feature_value
from features.encode.split import TRAIN, SplitOf
from features.encode.vocabulary import (
    add_counts,
    count_values,
    frequent_values,
    values_by_appearance,
)
from features.schema.schema import Feature, Schema

LINEAGE = "lineage.json"
COUNTS = "counts"
COUNTS_GROUP_ROWS = 1 << 20
NUM_THREADS = 2  # features counted at a time: sorting, reading and hashing let go of Python's lock


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


@dataclass
class Counted:
    """A day of which the state has seen the first num_rows rows; generation: that of its ids."""

    name: str
    sha256: str
    num_rows: int
    generation: int


@dataclass
class Lineage:
    """What a state grew from.

    made_by: a hash of code and declarations. days: in the order in which they were counted, those included whose log is gone. chain: per
    generation, a hash of all that its ids follow from: the vocabularies of generation 0, and the rows that were counted up to it. sizes:
    per generation, the length of each vocabulary. num_distinct: per feature, values counted so far
    (none under the policy hash). last_seen: per feature, how many values of its vocabulary were seen on each of the days for the last time.
    counts_sha256: of counts/FEATURE.parquet.
    """

    made_by: str
    days: list[Counted] = field(default_factory=list)
    chain: list[str] = field(default_factory=list)
    sizes: list[list[int]] = field(default_factory=list)
    num_distinct: dict[str, int | None] = field(default_factory=dict)
    last_seen: dict[str, list[int]] = field(default_factory=dict)
    counts_sha256: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, directory: Path) -> "Lineage":
        value = read_json(directory / LINEAGE)
        if value.keys() != {one.name for one in fields(cls)}:
            return cls(made_by="another version")
        return cls(**{**value, "days": [Counted(**day) for day in value["days"]]})

    def write(self, directory: Path) -> None:
        write_json(directory / LINEAGE, asdict(self))

    def damage(self, directory: Path) -> str | None:
        """What is wrong with the counts beside this lineage, if anything."""
        for name, sha256 in self.counts_sha256.items():
            path = directory / COUNTS / f"{name}.parquet"
            if not path.exists() or sha256_file(path) != sha256:
                return f"{path} is missing or not what was counted"
        return None

    def begin(self, state: FeatureState) -> None:
        """With generation 0, of this state and the days that are counted."""
        self.sizes = [[len(values) for values in state.vocabularies.values()]]
        self.chain = [_hash([state.fingerprint, [(day.sha256, day.num_rows) for day in self.days]])]

    def find(self, day: Day) -> Counted | None:
        return next((known for known in self.days if known.sha256 == day.sha256), None)


@dataclass
class Grower:
    """Fits and grows a state in `directory`, where counts/ is kept; days and split_of: the log as it is now."""

    schema: Schema
    options: Features
    days: list[Day]
    split_of: SplitOf
    directory: Path

    @property
    def grows(self) -> bool:
        one_file = len({day.shard for day in self.days}) == 1
        return self.options.ids == "frequency" and self.options.split.by == "days" and not one_file

    def num_train(self, k: int) -> int:
        return int((self.split_of(k) == TRAIN).sum())

    def fit(self, made_by: str) -> tuple[FeatureState, Lineage]:
        """Generation 0."""
        in_training = [k for k in range(len(self.days)) if self.num_train(k)]
        wanted = in_training[: self.options.fit_days] if self.grows else in_training
        rows = train_rows(self.days, wanted, self.split_of)
        fitted = {}
        for feature in self.schema.features:
            if (
                feature.transform
                and (learned := feature.transform.fit(rows, feature.of)) is not None
            ):
                fitted[feature.name] = learned
        lineage = Lineage(made_by)
        lineage.days = (
            [Counted(self.days[k].name, self.days[k].sha256, self.num_train(k), 0) for k in wanted]
            if self.grows
            else []
        )

        def fit_one(feature: Feature) -> pl.Series:
            return self._fit_one(
                feature.name,
                rows,
                feature_value(feature, fitted.get(feature.name)),
                wanted,
                lineage,
            )

        with ThreadPoolExecutor(NUM_THREADS) as pool:
            features = self._categorical()
            vocabularies = dict(
                zip(
                    [feature.name for feature in features], pool.map(fit_one, features), strict=True
                )
            )
        state = FeatureState(self.schema, self.options.ids, vocabularies, fitted)
        lineage.begin(state)
        return state, lineage

    def _fit_one(
        self, name: str, rows: pl.LazyFrame, value: pl.Expr, wanted: list[int], lineage: Lineage
    ) -> pl.Series:
        dtype = rows.select(value.alias("value")).collect_schema()["value"]
        if self.schema.policies[name].name == "hash":
            lineage.num_distinct[name] = None
            return pl.Series("value", dtype=dtype)
        if self.options.ids == "appearance":  # as the reference: the rows of all splits are counted
            everything = pl.concat([day.rows(0, day.num_rows) for day in self.days])
            null_is = "" if dtype == pl.String else 0
            values, lineage.num_distinct[name] = values_by_appearance(
                everything, value, null_is, self.options.min_count
            )
            return values
        if not self.grows:
            counts = count_values(rows, value)
        else:
            counts = add_counts([self._of_day(k, value, place) for place, k in enumerate(wanted)])
        values = frequent_values(counts, self.options.min_count)
        if self.grows:
            self._keep(name, counts, values, lineage)
        lineage.num_distinct[name] = counts.height
        return values

    def grow(self, state: FeatureState, lineage: Lineage, old: Path) -> FeatureState:
        """A generation for each whole training day that is not counted yet, in time order. counts/ stands in old so far."""
        starts = [known.num_rows if (known := lineage.find(day)) else 0 for day in self.days]
        new = [
            k for k, day in enumerate(self.days) if self.num_train(k) == day.num_rows > starts[k]
        ]
        if not new:
            self._take_over_counts(old)
            return state
        entered = [
            (k, starts[k], self._enter(self.days[k], lineage, len(lineage.sizes) + step))
            for step, k in enumerate(new)
        ]
        features = self._categorical()
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            grown = list(
                pool.map(
                    lambda feature: self._grow_one(feature, state, lineage, old, entered), features
                )
            )
        lineage.sizes += [list(sizes) for sizes in zip(*(sizes for _, sizes in grown), strict=True)]
        for k, start, _ in entered:
            lineage.chain.append(
                _hash([lineage.chain[-1], self.days[k].sha256, start, self.days[k].num_rows])
            )
        return replace(
            state,
            vocabularies={
                feature.name: values for feature, (values, _) in zip(features, grown, strict=True)
            },
        )

    def _grow_one(
        self,
        feature: Feature,
        state: FeatureState,
        lineage: Lineage,
        old: Path,
        new: list[tuple[int, int, int]],
    ) -> tuple[pl.Series, list[int]]:
        """A feature's vocabulary with what the new days bring (number, first row, place in the lineage), and its length after each."""
        name, values = feature.name, state.vocabularies[feature.name]
        if self.schema.policies[name].name == "hash":
            return values, [0] * len(new)
        value, sizes = feature_value(feature, state.fitted.get(name)), []
        counted = pl.read_parquet(old / COUNTS / f"{name}.parquet")
        for k, start, place in new:
            counted = add_counts([counted, self._of_day(k, value, place, start)])
            fresh = counted.filter(pl.col("count") >= self.options.min_count).join(
                values.to_frame("value"), on="value", how="anti"
            )
            values = pl.concat([values, frequent_values(fresh, self.options.min_count)])
            sizes.append(len(values))
        lineage.num_distinct[name] = counted.height
        self._keep(name, counted, values, lineage)
        return values, sizes

    def compact(self, state: FeatureState, lineage: Lineage, unseen_days: int) -> FeatureState:
        """Forget the values that none of the last unseen_days counted days has; those kept move up, which gives the rows of tables back.

        The result is a generation 0 of its own: every day has to be given its ids again.
        """
        first = len(lineage.days) - unseen_days
        vocabularies = dict(state.vocabularies)
        for feature in self._categorical():
            name, values = feature.name, state.vocabularies[feature.name]
            if self.schema.policies[name].name != "hash":
                counted = pl.read_parquet(self.directory / COUNTS / f"{name}.parquet").filter(
                    pl.col("last_day") >= first
                )
                vocabularies[name] = values.filter(values.is_in(counted["value"].implode()))
                lineage.num_distinct[name] = counted.height
                self._keep(name, counted, vocabularies[name], lineage)
        compacted = replace(state, vocabularies=vocabularies)
        lineage.begin(compacted)
        for day in lineage.days:
            day.generation = 0
        return compacted

    def _categorical(self) -> list[Feature]:
        return [feature for feature in self.schema.features if feature.policy is not None]

    def _of_day(self, k: int, value: pl.Expr, place: int, start: int = 0) -> pl.DataFrame:
        """The counts of day k's training rows from `start` on; place: the day's in the lineage."""
        counts = count_values(train_rows(self.days, [k], self.split_of, start), value)
        return counts.with_columns(pl.lit(place, pl.UInt32).alias("last_day"))

    def _enter(self, day: Day, lineage: Lineage, generation: int) -> int:
        """Note that all of the day's rows are counted; returns its place in the lineage."""
        known = lineage.find(day)
        if known:
            known.num_rows, known.generation = day.num_rows, generation
            return lineage.days.index(known)
        lineage.days.append(Counted(day.name, day.sha256, day.num_rows, generation))
        return len(lineage.days) - 1

    def _take_over_counts(self, old: Path) -> None:
        if old != self.directory:
            shutil.copytree(old / COUNTS, self.directory / COUNTS, copy_function=os.link)

    def _keep(self, name: str, counts: pl.DataFrame, values: pl.Series, lineage: Lineage) -> None:
        path = self.directory / COUNTS / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # it may be a link to the last run's
        with ParquetWriter(path, counts.schema, COUNTS_GROUP_ROWS) as writer:
            writer.write(counts)
        lineage.counts_sha256[name] = sha256_file(path)
        last_seen = values.to_frame("value").join(counts, on="value")["last_day"]
        lineage.last_seen[name] = np.bincount(
            last_seen.to_numpy(), minlength=len(lineage.days)
        ).tolist()
