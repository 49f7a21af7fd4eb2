"""The features stage: it fits or grows the feature state, and encodes every row with it.

It reads artifacts/parquet, and writes artifacts/features:

    state/                            the feature state (features/encode/feature_state.py)
    train|valid|test/day_NNN.parquet  label u8, N dense f32, F ids i32; row groups of 65,536 rows
    days/day_NNN.json                 what the files of a day were made from, their hashes, and the
                                      data profile of its rows
    vocabulary_history.json, counts/  what the state grew from
                                      (features/encode/vocabulary_history.py)
    data.json                         the data profile of the log, for the report and the gate
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from common.code_hash import code_hashes
from common.config.params import Params
from common.files import DataError, read_json, replaced, write_json
from common.layout import FEATURES, PARQUET
from common.logs import get_logger
from features.dataset.writer import Encoder
from features.encode.days import Day, bounds_of, read_days
from features.encode.feature_state import FeatureState
from features.encode.split import SplitOfDay, split_by_days, split_by_folds
from features.encode.vocabulary_growth import TrainingDays, compact_state, fit_state, grow_state
from features.encode.vocabulary_history import VocabularyHistory
from features.ingest.readers.row_validation import BAD_ROWS_FILE
from features.ingest.shard import Shard
from features.ingest.stage import used_shards
from features.quality.data_profile import data_json, vocabulary_json
from features.quality.gate import FIGURES, check_data
from features.schema.schema import Schema, load_schema

log = get_logger("features")

# The features do not depend on this code: the readers are hashed in the shards, and the others only
# check or report.
NOT_IN_FEATURES = (
    "features.ingest",
    "common.config.loading",
    "common.config.params",
    "features.sample",
    "features.schema.sample_section",
    "features.quality.gate",
    "common.progress",
)


def build_features(params: Params, root: Path, forget_after_days: int | None = None) -> None:
    """Make artifacts/features from artifacts/parquet.

    The files of a day that would come out the same as in the last run are reused.

    Args:
        params: The parameters.
        root: The project folder.
        forget_after_days: If it is given, the values that none of this number of last counted days
            had are forgotten.

    Raises:
        DataError: A split has no rows, the gate stops the data, or values are to be forgotten but
            no state has grown.
    """
    manifest = read_json(root / PARQUET / "manifest.json")
    schema = load_schema(manifest["schema"]).with_dense_transform(params.features.dense)
    shards = used_shards(root)
    days = read_days(shards, params.data.days, root)
    split_of_day = split_log(days, schema, params)
    training = TrainingDays(schema, params.features, days, split_of_day)
    old = root / FEATURES
    with replaced(old) as scratch:
        scratch.mkdir()
        made_by = _made_by(schema, params)
        state, history = _update_state(training, old, scratch, made_by, forget_after_days)
        state.save(scratch / "state")
        history.write(scratch)
        profiles = Encoder(state, history, old, scratch).encode(days, split_of_day, root)
        has_header = getattr(schema.format, "header", False)
        data = data_json(
            profiles,
            schema,
            state.cardinalities,
            history.num_distinct,
            _bad_rows_by_day(days, shards, root, has_header),
            [day.name for day in days],
        )
        data["vocabulary"] = vocabulary_json(history, schema)
        write_json(root / FIGURES, data)  # it remains if the gate stops the run
        data["warnings"], data["blocks_promotion"] = check_data(data, params.gate)
        for warning in data["warnings"]:
            log.warning(warning)
        write_json(scratch / "data.json", data)


def split_log(days: list[Day], schema: Schema, params: Params) -> SplitOfDay:
    """Assign every row of the log to a split, as `features.split` of params.yaml says."""
    split = params.features.split
    if split.by == "days":
        return split_by_days(bounds_of(days), split)
    labels = pl.concat([day.all_rows().select(schema.label) for day in days]).collect()
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
    training: TrainingDays, old: Path, new: Path, made_by: str, forget_after_days: int | None
) -> tuple[FeatureState, VocabularyHistory]:
    """Grow the state of the last run, or fit one from scratch if that is impossible.

    Args:
        training: The training rows.
        old: The folder of features of the last run.
        new: The folder of features that counts/ is written into.
        made_by: The hash of code and parameters.
        forget_after_days: As in `build_features`.
    """
    last = _last_state(training, old, made_by) if training.can_grow else None
    if last is None and forget_after_days is not None:
        raise DataError(
            f"{old}: nothing to forget: there is no grown state that fits params.yaml and the code"
            " (a state grows with features.ids frequency, a split by days, and one log file for"
            " each day); run the features stage first"
        )
    if last is None:
        state, history = fit_state(training, made_by, new)
        if training.can_grow:
            state, history = grow_state(training, state, history, new, new)
    else:
        state, history = grow_state(training, *last, old, new)
    if forget_after_days is not None:
        before = sum(state.cardinalities)
        state, history = compact_state(training, state, history, forget_after_days, new)
        num_freed = before - sum(state.cardinalities)
        log.info(f"{num_freed:,} of {before:,} ids removed; now train again: clickmill run")
    return state, history


def _last_state(
    training: TrainingDays, old: Path, made_by: str
) -> tuple[FeatureState, VocabularyHistory] | None:
    """Return the state of the last run, or None if it cannot grow further.

    The reason is logged if it lies in the data: then ids change although nothing else did.
    """
    history = VocabularyHistory.read(old)
    if history is None or history.made_by != made_by or not history.days:
        return None
    try:
        conflict = _conflict(training, history) or history.damage(old)
        state = None if conflict else FeatureState.load(old / "state")
    except DataError as error:
        conflict, state = str(error), None
    if state is None:
        log.info(f"{conflict}: vocabularies are fitted from scratch, and ids change")
        return None
    return state, history


def _conflict(training: TrainingDays, history: VocabularyHistory) -> str | None:
    """Return why the counts of the last run no longer hold; None if they do.

    A day that was counted cannot be subtracted again.
    """
    sha256_by_name = {counted.name: counted.sha256 for counted in history.days}
    for k, day in enumerate(training.days):
        num_counted, num_train = history.num_counted(day), training.num_train(k)
        if history.find(day) is None and day.name in sha256_by_name:
            return f"{day.name} has other rows than when it was counted"
        if num_counted > num_train:
            return (
                f"{num_counted:,} rows of {day.name} were counted for training, of which only"
                f" {num_train:,} still are"
            )
    return None


def _bad_rows_by_day(
    days: list[Day], shards: list[Shard], root: Path, has_header: bool
) -> list[int]:
    """Return the number of bad rows of each day.

    In a log of one file, a bad row belongs to the day of the next good row.
    """
    if len(shards) > 1:
        return [shard.num_bad_rows for shard in shards]
    bad_rows = pl.read_parquet(root / PARQUET / BAD_ROWS_FILE, columns=["line"])
    lines = bad_rows["line"].to_numpy().astype(np.int64)
    first_line = 2 if has_header else 1
    good_rows_before = lines - first_line - np.arange(len(lines))
    day_of_row = np.searchsorted(bounds_of(days)[1:], good_rows_before, side="right")
    day_of_row = np.minimum(day_of_row, len(days) - 1)  # after the last good row
    return np.bincount(day_of_row, minlength=len(days)).tolist()  # type: ignore[no-any-return]
