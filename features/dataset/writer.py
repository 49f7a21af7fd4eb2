"""The writer of encoded rows: it encodes each day, or reuses the day's files of the last run."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise, tee
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from common.artifact import Artifact, ListedFile, listed_as
from common.files import json_text
from common.logs import get_logger
from common.lookahead import map_ahead
from common.parquet import ParquetWriter
from common.progress import Progress
from features.dataset.dense_range import check_dense_range, is_dense_in_range
from features.encode.day_groups import has_small_files
from features.encode.days import ROW_GROUP_ROWS, Day, bounds_of, rows_of_days
from features.encode.feature_state import FeatureState
from features.encode.split import SPLITS, SplitCodes, SplitOfDay
from features.encode.vocabulary_history import VocabularyHistory
from features.quality.data_profile import DayProfile
from features.quality.small_days import profiles_of_days

log = get_logger("features")

BATCH_ROWS = 4 * ROW_GROUP_ROWS  # rows that are encoded together
MAX_DAYS = 256  # small days that are encoded together: a feature's histograms take up to 24 MiB
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


@dataclass(frozen=True)
class DayToEncode:
    """A day whose files have to be written.

    Attributes:
        number: The number of the day in the log.
        day: Its rows.
        codes: The split of each row.
        sizes: The number of values of each vocabulary in the version that encodes the day.
        key: As of `EncodedDay`.
    """

    number: int
    day: Day
    codes: SplitCodes
    sizes: list[int]
    key: str


@dataclass(frozen=True)
class WrittenDay:
    """A day whose files are written.

    Attributes:
        record: The record of the day.
        listed: Its files, by their names in artifacts/features.
    """

    record: EncodedDay
    listed: dict[str, ListedFile]


WriteDays = Callable[
    [FeatureState, Iterable[DayToEncode], Path, Callable[[int], None]], Iterator[WrittenDay]
]
"""`write_days`, or a function that gives the same days to other machines."""


class Batch(NamedTuple):
    """Consecutive rows of a day: typed, and encoded."""

    typed: pl.DataFrame
    encoded: pl.DataFrame


def write_days(
    state: FeatureState,
    days: Iterable[DayToEncode],
    target: Path,
    report: Callable[[int], None],
) -> Iterator[WrittenDay]:
    """Write the files of days, in their order; threads encode the next rows ahead of the writer.

    Args:
        state: The newest feature state.
        days: The days.
        target: The folder of features to write into, which has a folder for each split.
        report: Receives the number of rows that were written since the last call.
    """
    for_writer, for_threads = tee(_groups(days))
    batches = _encoded_batches(state, for_threads)
    for group in for_writer:
        if has_small_files(group[0].day):
            yield from _write_small_days(state, group, target, next(batches), report)
        else:
            yield _write_day(state, group[0], target, batches, report)


def _groups(days: Iterable[DayToEncode]) -> Iterator[list[DayToEncode]]:
    """Yield the days whose rows are encoded together: small ones that follow each other, or one."""
    group: list[DayToEncode] = []
    num_rows = 0
    for to_encode in days:
        is_small = has_small_files(to_encode.day)
        num_rows += to_encode.day.num_rows
        if group and not (is_small and num_rows <= BATCH_ROWS and len(group) < MAX_DAYS):
            yield group
            group, num_rows = [], to_encode.day.num_rows
        group.append(to_encode)
        if not is_small:
            yield group
            group, num_rows = [], 0
    if group:
        yield group


def _encoded_batches(state: FeatureState, groups: Iterable[list[DayToEncode]]) -> Iterator[Batch]:
    def encode(batch: tuple[list[DayToEncode], int]) -> Batch:
        group, start = batch
        day, sizes = group[0].day, group[0].sizes
        if has_small_files(day):
            return _encode_small_days(state, group)
        state_of_version = state.truncated(sizes)
        typed = day.rows(start, min(start + BATCH_ROWS, day.num_rows)).collect()
        encoded = state_of_version.encode(typed)
        check_dense_range(encoded, typed, state_of_version, day, start)
        return Batch(typed, encoded)

    batches = (
        (group, start)
        for group in groups
        for start in range(0, max(group[0].day.num_rows, 1), BATCH_ROWS)
    )
    return map_ahead(encode, batches, BATCHES_AHEAD)


def _encode_small_days(state: FeatureState, group: list[DayToEncode]) -> Batch:
    """Read and encode all rows of some days, each day with its version of the vocabularies."""
    days = [to_encode.day for to_encode in group]
    typed = rows_of_days(days).collect()
    sizes = np.array([to_encode.sizes for to_encode in group], np.int32)
    num_rows = [day.num_rows for day in days]
    known = {
        table: np.repeat(sizes_of_table, num_rows)
        for (table, values), sizes_of_table in zip(state.vocabularies.items(), sizes.T, strict=True)
        if sizes_of_table.min() < len(values)
    }
    encoded = state.encode(typed, known)
    if not is_dense_in_range(encoded, state):
        for day, (start, end) in zip(days, pairwise(bounds_of(days)), strict=True):
            check_dense_range(encoded[start:end], typed[start:end], state, day, 0)
    return Batch(typed, encoded)


def _write_small_days(
    state: FeatureState,
    group: list[DayToEncode],
    target: Path,
    batch: Batch,
    report: Callable[[int], None],
) -> Iterator[WrittenDay]:
    """Write the files of some days whose rows are one batch."""
    num_rows = [to_encode.day.num_rows for to_encode in group]
    codes = np.concatenate([to_encode.codes for to_encode in group])
    day_of_row = np.repeat(np.arange(len(group)), num_rows)
    profiles = profiles_of_days(state, *batch, day_of_row, codes, len(group))
    bounds = pairwise(bounds_of([to_encode.day for to_encode in group]))
    for to_encode, profile, (start, end) in zip(group, profiles, bounds, strict=True):
        encoded = batch.encoded[start:end]
        listed = {}
        for split in profile["splits"]:
            in_split = to_encode.codes == SPLITS.index(split)
            rows = encoded if in_split.all() else encoded.filter(pl.Series(in_split))
            name = file_of(to_encode.number, split)
            with ParquetWriter(target / name, encoded.schema, ROW_GROUP_ROWS) as writer:
                writer.write(rows)
            listed[name] = ListedFile.of(target / name)
        report(end - start)
        yield _written(to_encode, listed, profile)


def _written(
    to_encode: DayToEncode, listed: dict[str, ListedFile], profile: dict[str, Any]
) -> WrittenDay:
    sha256 = {Path(name).parts[0]: one.sha256 for name, one in listed.items()}
    return WrittenDay(EncodedDay(to_encode.key, sha256, profile), listed)


def _write_day(
    state: FeatureState,
    to_encode: DayToEncode,
    target: Path,
    batches: Iterator[Batch],
    report: Callable[[int], None],
) -> WrittenDay:
    """Write the next batches, which are those of this day, to the files of their splits."""
    state, codes = state.truncated(to_encode.sizes), to_encode.codes
    names = {SPLITS[code]: file_of(to_encode.number, SPLITS[code]) for code in np.unique(codes)}
    profile = DayProfile(state)
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(
                ParquetWriter(target / name, state.output_columns, ROW_GROUP_ROWS)
            )
            for split, name in names.items()
        }
        for start in range(0, to_encode.day.num_rows, BATCH_ROWS):
            batch = next(batches)
            codes_B = codes[start : start + batch.typed.height]
            for code in np.unique(codes_B):
                rows = _rows_of_split(batch, codes_B == code)
                writers[SPLITS[code]].write(rows.encoded)
                profile.add(SPLITS[code], rows.typed, rows.encoded)
            report(batch.typed.height)
    listed = {name: ListedFile.of(target / name) for name in names.values()}
    return _written(to_encode, listed, profile.summary())


def _rows_of_split(batch: Batch, in_split_B: np.ndarray[Any, np.dtype[np.bool_]]) -> Batch:
    if in_split_B.all():
        return batch
    mask = pl.Series(in_split_B)
    return Batch(batch.typed.filter(mask), batch.encoded.filter(mask))


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

    def encode(
        self, days: list[Day], split_of_day: SplitOfDay, root: Path, write: WriteDays = write_days
    ) -> list[WrittenDay]:
        """Write the files of all days.

        Args:
            days: All days of the log.
            split_of_day: The split of each row of a day.
            root: The project folder, for the timing of the stage.
            write: Writes the files of the days that cannot be reused.

        Returns:
            The days with their records and files.
        """
        (self.target / "days").mkdir()
        for split in SPLITS:
            (self.target / split).mkdir()
        keys = [self._key(day, split_of_day(k)) for k, day in enumerate(days)]
        old_days = self._old_days()
        reusable = {k: old_days[key] for k, key in enumerate(keys) if key in old_days}
        to_encode = (
            DayToEncode(k, day, codes, self.history.sizes[self._version(day, codes)], keys[k])
            for k, day in enumerate(days)
            if k not in reusable
            for codes in [split_of_day(k)]
        )
        num_rows = sum(day.num_rows for k, day in enumerate(days) if k not in reusable)
        written_days = []
        with Progress("features", num_rows, root) as progress:
            new_days = write(self.state, to_encode, self.target, progress.update)
            for k in range(len(days)):
                written = self._reuse(*reusable[k], k) if k in reusable else next(new_days)
                written_days.append(self._with_record(written, k))
            next(new_days, None)  # there are no more, and it cleans up
        if reusable:
            log.info(f"{len(reusable)} days are reused")
        return written_days

    def _with_record(self, written: WrittenDay, k: int) -> WrittenDay:
        """Write the record of day k, and list it."""
        name = f"days/{day_file(k)}.json"
        contents = json_text(vars(written.record)).encode()
        (self.target / name).write_bytes(contents)  # the folder is complete or absent as a whole
        listed = {**written.listed, name: listed_as(contents)}
        return replace(written, listed=listed)

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

    def _reuse(self, encoded_day: EncodedDay, old_name: str, k: int) -> WrittenDay:
        """Link the files of a day of the last run as those of day k."""
        assert self.old is not None
        listed = {}
        for split in encoded_day.files:
            old_file = f"{split}/{old_name}.parquet"
            os.link(self.old.path(old_file), self.target / file_of(k, split))
            listed[file_of(k, split)] = self.old.files[old_file]
        return WrittenDay(encoded_day, listed)


def day_file(k: int) -> str:
    """Return the name, without its ending, of the files of the log's day k."""
    return f"day_{k:03d}"


def file_of(k: int, split: str) -> str:
    """Return the name in artifacts/features of the file with the rows of a day in a split."""
    return f"{split}/{day_file(k)}.parquet"
