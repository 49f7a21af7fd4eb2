"""The features stage: it fits or grows the feature state, and encodes every row with it.

It reads artifacts/parquet, and writes artifacts/features:

    state/                            the feature state (features/encode/feature_state.py)
    train|valid|test/day_NNN.parquet  label u8, N dense f32, F ids i32; row groups of 65,536 rows
    days/day_NNN.json                 what the files of a day were made from, their hashes, and the
                                      data profile of its rows
    vocabulary_history.json, counts/  what the state grew from
                                      (features/encode/vocabulary_history.py)
    data.json                         the data profile of the log, for the report and the gate
    manifest.json                     the size and the hash of each file (common/artifact.py)
"""

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from common.artifact import Artifact, DamageError, write_manifest
from common.code_hash import code_hashes
from common.config.params import Params
from common.files import DataError, recover, replaced, write_json
from common.layout import FEATURES, PARQUET
from common.logs import get_logger
from common.parquet import read_parquet
from features.dataset.writer import Encoder, WriteDays, write_days
from features.encode.days import Day, bounds_of, read_days, rows_of_days
from features.encode.feature_state import FeatureState
from features.encode.split import SplitOfDay, split_by_days, split_by_folds
from features.encode.split_by_time import cut_by_time, times_of
from features.encode.training_days import TrainingDays
from features.encode.vocabulary_growth import (
    LOCAL_COUNTER,
    ValueCounter,
    compact_state,
    fit_state,
    grow_state,
)
from features.encode.vocabulary_history import COUNTS, VocabularyHistory
from features.ingest.readers.row_validation import BAD_ROWS_FILE
from features.ingest.shard import Shard
from features.ingest.stage import used_shards
from features.quality.data_profile import data_json, vocabulary_json
from features.quality.gate import FIGURES, check_data
from features.quality.time_order import check_later_training_rows, check_time_order
from features.schema.schema import Schema, load_schema

log = get_logger("features")

# The features do not depend on this code: the readers are hashed in the shards, and the others only
# check or report.
NOT_IN_FEATURES = (
    "common.artifact",
    "features.ingest",
    "common.config.loading",
    "common.config.params",
    "features.sample",
    "features.schema.sample_section",
    "features.quality.gate",
    "features.quality.time_order",
    "common.progress",
)


def build_features(
    params: Params,
    root: Path,
    forget_after_days: int | None = None,
    counter: ValueCounter = LOCAL_COUNTER,
    write: WriteDays = write_days,
) -> None:
    """Make artifacts/features from artifacts/parquet.

    The files of a day that would come out the same as in the last run are reused.

    Args:
        params: The parameters.
        root: The project folder.
        forget_after_days: If it is given, the values that none of this number of last counted days
            had are forgotten.
        counter: Counts the values of the training rows, here or on other machines.
        write: Writes the files of days, here or on other machines. The bytes do not depend on it.

    Raises:
        DataError: A split has no rows, the gate stops the data, values are to be forgotten but no
            state has grown, or a file of artifacts/parquet is damaged.
    """
    parquet = Artifact.open(root / PARQUET)
    schema = load_schema(parquet.about["schema"]).with_dense_transform(params.features.dense)
    shards = used_shards(parquet)
    days = read_days(parquet, shards, params.data.days)
    split_of_day = split_log(days, schema, params)
    if params.features.split.by == "days":
        check_time_order(days, schema)
        check_later_training_rows(days, split_of_day, schema)
    training = TrainingDays(schema, params.features, days, split_of_day)
    recover(root / FEATURES)
    old = Artifact.open_of_last_run(root / FEATURES)
    with replaced(root / FEATURES) as scratch, parquet.unchanged():
        scratch.mkdir()
        made_by = _made_by(schema, params)
        state, history = _update_state(training, old, scratch, made_by, forget_after_days, counter)
        state.save(scratch / "state")
        history.write(scratch)
        encoder = Encoder(state, history, old, scratch)
        encoded_days = encoder.encode(days, split_of_day, root, write)
        has_header = getattr(schema.format, "header", False)
        data = data_json(
            [day.record.profile for day in encoded_days],
            schema,
            state.cardinalities,
            history.num_distinct,
            _bad_rows_by_day(parquet, days, shards, has_header),
            [day.name for day in days],
        )
        data["vocabulary"] = vocabulary_json(history, schema)
        write_json(root / FIGURES, data)  # it remains if the gate stops the run
        warnings, data["blocks_promotion"] = check_data(data, params.gate)
        data["warnings"] = warnings
        for warning in data["warnings"]:
            log.warning(warning)
        write_json(scratch / "data.json", data)
        known = {name: one for day in encoded_days for name, one in day.listed.items()}
        write_manifest(scratch, {}, known)


def split_log(days: list[Day], schema: Schema, params: Params) -> SplitOfDay:
    """Assign every row of the log to a split, as `features.split` of params.yaml says."""
    split = params.features.split
    if split.by == "days":
        split_of_day = split_by_days(bounds_of(days), split)
        return cut_by_time(split_of_day, days, schema.days) if schema.days else split_of_day
    labels = rows_of_days(days).select(schema.label).collect()
    return split_by_folds(labels[schema.label].to_numpy(), bounds_of(days), split)


def _made_by(schema: Schema, params: Params) -> str:
    """Return a hash of all that decides the features besides the rows: code and parameters."""
    code = code_hashes(__name__, without=NOT_IN_FEATURES)
    declared = [
        schema.model_dump(mode="json", exclude={"sample"}),
        params.features.model_dump(mode="json"),
    ]
    inputs = [code, pl.__version__, pa.__version__, declared]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


def _update_state(
    training: TrainingDays,
    old: Artifact | None,
    new: Path,
    made_by: str,
    forget_after_days: int | None,
    counter: ValueCounter,
) -> tuple[FeatureState, VocabularyHistory]:
    """Grow the state of the last run, or fit one from scratch if that is impossible.

    Args:
        training: The training rows.
        old: The features of the last run, None if there are none.
        new: The folder of features that counts/ is written into.
        made_by: The hash of code and parameters.
        forget_after_days: As in `build_features`.
        counter: As in `build_features`.
    """
    last = _last_state(training, old, made_by) if training.can_grow else None
    if last is None and forget_after_days is not None:
        raise DataError(
            f"{FEATURES}: nothing to forget: there is no grown state that fits params.yaml and the"
            " code (a state grows with features.ids frequency, a split by days, and one log file"
            " for each day); run the features stage first"
        )
    if last is None:
        state, history = fit_state(training, made_by, new, counter)
        if training.can_grow:
            state, history = grow_state(training, state, history, new, new, counter)
    else:
        assert old is not None
        state, history = grow_state(training, *last, old.folder, new, counter)
    if forget_after_days is not None:
        before = sum(state.cardinalities)
        state, history = compact_state(training, state, history, forget_after_days, new)
        num_freed = before - sum(state.cardinalities)
        log.info(f"{num_freed:,} of {before:,} ids removed; now train again: clickmill run")
    return state, history


def _last_state(
    training: TrainingDays, old: Artifact | None, made_by: str
) -> tuple[FeatureState, VocabularyHistory] | None:
    """Return the state of the last run, or None if it cannot grow further.

    The reason is logged if it lies in the data: then ids change although nothing else did.
    """
    if old is None:
        return None
    try:
        history = VocabularyHistory.read(old)
        if history is None or history.made_by != made_by or not history.days:
            return None
        conflict = _conflict(training, history)
        if conflict is None:
            old.paths([*old.names(COUNTS), "state/state.json"])  # checks them
            return FeatureState.load(old.folder / "state"), history
    except DamageError as error:
        conflict = error.fault
    except DataError as error:
        conflict = str(error)
    log.info(f"{conflict}: vocabularies are fitted from scratch, and ids change")
    return None


def _conflict(training: TrainingDays, history: VocabularyHistory) -> str | None:
    """Return why the counts of the last run no longer hold; None if they do.

    A day that was counted cannot be subtracted again.
    """
    sha256_by_name = {counted.name: counted.sha256 for counted in history.days}
    for k, day in enumerate(training.days):
        num_counted, num_train = history.num_counted(day), training.num_train(k)
        if history.find(day) is None and day.name in sha256_by_name:
            return f"{day.name} has other rows than when it was counted"
        # Growth counts the rows after the first `num_counted` ones. If a day is not in the order of
        # time, those are not the rows that were counted.
        if (
            training.schema.days
            and 0 < num_counted < num_train
            and not times_of(day, training.schema.days).is_sorted()
        ):
            return f"{day.name} was counted in part, and its rows are not in the order of time"
        if num_counted > num_train:
            return (
                f"{num_counted:,} rows of {day.name} were counted for training, of which only"
                f" {num_train:,} still are"
            )
    return None


def _bad_rows_by_day(
    parquet: Artifact, days: list[Day], shards: list[Shard], has_header: bool
) -> list[int]:
    """Return the number of bad rows of each day.

    In a log of one file, a bad row belongs to the day of the next good row. Where the log says of
    which days its rows are, the bad rows of a file belong to the file's first day.
    """
    if any(shard.days is not None for shard in shards):
        num_bad_rows = Counter[str]()
        for shard in shards:
            num_bad_rows[next(iter(shard.days or {}), "")] += shard.num_bad_rows
        return [num_bad_rows[day.name] for day in days]
    if len(shards) > 1:
        return [shard.num_bad_rows for shard in shards]
    bad_rows = read_parquet(parquet.path(BAD_ROWS_FILE), ["line"])
    lines = bad_rows["line"].to_numpy().astype(np.int64)
    first_line = 2 if has_header else 1
    good_rows_before = lines - first_line - np.arange(len(lines))
    day_of_row = np.searchsorted(bounds_of(days)[1:], good_rows_before, side="right")
    day_of_row = np.minimum(day_of_row, len(days) - 1)  # after the last good row
    return np.bincount(day_of_row, minlength=len(days)).tolist()  # type: ignore[no-any-return]
