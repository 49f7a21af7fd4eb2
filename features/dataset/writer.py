"""The writer of encoded rows: it encodes each day, or reuses the day's files of the last run."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from common.artifact import Artifact
from common.files import sha256_file, write_json
from common.logs import get_logger
from common.lookahead import map_ahead
from common.parquet import ParquetWriter
from common.progress import Progress
from features.dataset.dense_range import check_dense_range
from features.encode.days import ROW_GROUP_ROWS, Day
from features.encode.feature_state import FeatureState
from features.encode.split import SPLITS, SplitCodes, SplitOfDay
from features.encode.vocabulary_history import VocabularyHistory
from features.quality.data_profile import DayProfile

log = get_logger("features")

BATCH_ROWS = 4 * ROW_GROUP_ROWS  # rows that are encoded together
BATCHES_AHEAD = 2  # batches that are encoded while another one is written


@dataclass(frozen=True)
class EncodedDay:
    """The record of the files of one day, days/day_NNN.json.

    Attributes:
        key: A hash of everything that the contents of the files depend on.
        files: The SHA-256 of the day's file of each split, by split.
        profile: The data profile of the day's rows.
    """

    key: str
    files: dict[str, str]
    profile: dict[str, Any]


class Batch(NamedTuple):
    """Consecutive rows of a day: typed, and encoded."""

    typed: pl.DataFrame
    encoded: pl.DataFrame


@dataclass(frozen=True)
class Encoder:
    """Encodes the rows of the log, each day with its vocabulary version.

    Attributes:
        state: The newest feature state.
        history: The history of its vocabularies.
        old: The features of the last run, None if there are none. Files that would come out the
            same are reused.
        target: The folder of features to write into.
    """

    state: FeatureState
    history: VocabularyHistory
    old: Artifact | None
    target: Path
    states_by_version: dict[int, FeatureState] = field(default_factory=dict)

    def encode(self, days: list[Day], split_of_day: SplitOfDay, root: Path) -> list[EncodedDay]:
        """Write the files of all days.

        Args:
            days: All days of the log.
            split_of_day: The split of each row of a day.
            root: The project folder, for the timing of the stage.

        Returns:
            The record of each day.
        """
        (self.target / "days").mkdir()
        for split in SPLITS:
            (self.target / split).mkdir()
        keys = [self._key(day, split_of_day(k)) for k, day in enumerate(days)]
        old_days = self._old_days()
        reusable = {k: old_days[key] for k, key in enumerate(keys) if key in old_days}
        to_encode = [(day, split_of_day(k)) for k, day in enumerate(days) if k not in reusable]
        encoded_days = []
        with Progress("features", sum(day.num_rows for day, _ in to_encode), root) as progress:
            batches = self._encoded_batches(to_encode)
            for k, day in enumerate(days):
                if k in reusable:
                    encoded_day = self._reuse(*reusable[k], k)
                else:
                    encoded_day = self._write(day, k, split_of_day(k), keys[k], batches, progress)
                write_json(self.target / "days" / f"{day_file(k)}.json", vars(encoded_day))
                encoded_days.append(encoded_day)
        if reusable:
            log.info(f"{len(reusable)} days are reused")
        return encoded_days

    def _version(self, day: Day, codes: SplitCodes) -> int:
        """Return the vocabulary version that encodes a day with these splits of its rows."""
        counted = self.history.find(day)
        is_all_train = not codes.any()
        if counted and is_all_train:
            return counted.vocabulary_version
        return len(self.history.sizes) - 1

    def _key(self, day: Day, codes: SplitCodes) -> str:
        inputs = [
            self.history.made_by,
            self.history.version_hashes[self._version(day, codes)],
            day.sha256,
            hashlib.sha256(codes.tobytes()).hexdigest(),
        ]
        return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()

    def _old_days(self) -> dict[str, tuple[EncodedDay, str]]:
        """Return the days of the last run whose files are whole, and their file name, by key."""
        old_days: dict[str, tuple[EncodedDay, str]] = {}
        if self.old is None:
            return old_days
        for record in filter(self.old.is_whole, self.old.names("days")):
            encoded_day, name = EncodedDay(**self.old.read_json(record)), Path(record).stem
            if all(self.old.is_whole(f"{split}/{name}.parquet") for split in encoded_day.files):
                old_days[encoded_day.key] = (encoded_day, name)
        return old_days

    def _reuse(self, encoded_day: EncodedDay, old_name: str, k: int) -> EncodedDay:
        """Link the files of a day of the last run as those of day k."""
        assert self.old is not None
        for split in encoded_day.files:
            old_file = self.old.path(f"{split}/{old_name}.parquet")
            os.link(old_file, self.target / split / f"{day_file(k)}.parquet")
        return encoded_day

    def _encoded_batches(self, days: list[tuple[Day, SplitCodes]]) -> Iterator[Batch]:
        """Encode all rows of these days; threads encode the next batches ahead of the caller."""
        batches = [
            (self._state_of(day, codes), day, start)
            for day, codes in days
            for start in range(0, day.num_rows, BATCH_ROWS)
        ]

        def encode(batch: tuple[FeatureState, Day, int]) -> Batch:
            state, day, start = batch
            typed = day.rows(start, min(start + BATCH_ROWS, day.num_rows)).collect()
            encoded = state.encode(typed)
            check_dense_range(encoded, typed, state, day, start)
            return Batch(typed, encoded)

        return map_ahead(encode, batches, BATCHES_AHEAD)

    def _state_of(self, day: Day, codes: SplitCodes) -> FeatureState:
        version = self._version(day, codes)
        if version not in self.states_by_version:
            sizes = self.history.sizes[version]
            self.states_by_version[version] = self.state.truncated(sizes)
        return self.states_by_version[version]

    def _write(
        self,
        day: Day,
        k: int,
        codes: SplitCodes,
        key: str,
        batches: Iterator[Batch],
        progress: Progress,
    ) -> EncodedDay:
        """Write the next batches, which are those of this day, to the files of their splits."""
        state = self._state_of(day, codes)
        splits = [SPLITS[code] for code in np.unique(codes)]
        paths = {split: self.target / split / f"{day_file(k)}.parquet" for split in splits}
        profile = DayProfile(state)
        with ExitStack() as stack:
            writers = {
                split: stack.enter_context(
                    ParquetWriter(path, state.output_columns, ROW_GROUP_ROWS)
                )
                for split, path in paths.items()
            }
            for start in range(0, day.num_rows, BATCH_ROWS):
                batch = next(batches)
                codes_B = codes[start : start + batch.typed.height]
                for code in np.unique(codes_B):
                    rows = _rows_of_split(batch, codes_B == code)
                    writers[SPLITS[code]].write(rows.encoded)
                    profile.add(SPLITS[code], rows.typed, rows.encoded)
                progress.update(batch.typed.height)
        return EncodedDay(
            key, {split: sha256_file(path) for split, path in paths.items()}, profile.summary()
        )


def _rows_of_split(batch: Batch, in_split_B: np.ndarray[Any, np.dtype[np.bool_]]) -> Batch:
    if in_split_B.all():
        return batch
    mask = pl.Series(in_split_B)
    return Batch(batch.typed.filter(mask), batch.encoded.filter(mask))


def hashes_of(encoded_days: list[EncodedDay]) -> dict[str, str]:
    """Return the SHA-256 of the files of all days, by their names in artifacts/features."""
    return {
        f"{split}/{day_file(k)}.parquet": sha256
        for k, encoded_day in enumerate(encoded_days)
        for split, sha256 in encoded_day.files.items()
    }


def day_file(k: int) -> str:
    """Return the name, without its ending, of the files of the log's day k."""
    return f"day_{k:03d}"
