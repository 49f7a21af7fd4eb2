"""Typed Parquet to training-ready Parquet: fit or grow the state on the training rows, then transform every row with it.

artifacts/features/
    state/                            the feature state (features/encode/feature_state.py)
    train|valid|test/day_NNN.parquet  label u8, N dense f32, F ids i32; row groups of 65,536 rows
    days/day_NNN.json                 what a day's files were made from, their hashes, and a profile of its rows
    lineage.json, counts/             what the state grew from (features/encode/vocabulary_growth.py)
    data.json                         the shape of the data, for the report and the gate
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
from common.logs import get_logger
from features.encode.days import Day, bounds_of, read_days
from features.encode.feature_state import FeatureState
from features.encode.split import SplitOf, split_by_days, split_by_folds
from features.encode.vocabulary_growth import LINEAGE, Grower, Lineage
from features.encode.writer import Encoder
from features.ingest.shard import Shard
from features.ingest.stage import BAD_ROWS_FILE, PARQUET, used_shards
from features.quality.data_profile import data_json, vocabulary_json
from features.quality.gate import FIGURES, check_data
from features.schema.schema import Schema, load_schema

log = get_logger("features")

FEATURES = Path("artifacts/features")
# What reads the log is in the shards' hashes already; the rest judges, tells or checks, and makes nothing.
NOT_IN_FEATURES = (
    "features.ingest",
    "common.config.loading",
    "common.config.params",
    "features.sample",
    "features.quality.gate",
    "common.progress",
)


def build_features(params: Params, root: Path, forget_after_days: int | None = None) -> None:
    """artifacts/parquet to artifacts/features; days that are there already, and would come out the same, are taken over as they are.

    forget_after_days: first forget the values that so many of the last counted days do not have. Raises DataError when a split has no
    rows, when values are to be forgotten of a state that does not grow, and for data that the gate stops.
    """
    manifest = read_json(root / PARQUET / "manifest.json")
    schema = load_schema(manifest["schema"]).with_dense(params.features.dense)
    shards = used_shards(root)
    days = read_days(shards, params.data.days, root)
    split_of = split_days(days, schema, params)
    old = root / FEATURES
    with replaced(old) as scratch:
        scratch.mkdir()
        grower = Grower(schema, params.features, days, split_of, scratch)
        state, lineage = _fit_or_grow(grower, old, _made_by(schema, params), forget_after_days)
        state.save(scratch / "state")
        lineage.write(scratch)
        profiles = Encoder(state, lineage, old, scratch).encode(days, split_of, root)
        num_bad_rows = _bad_rows_of_days(
            days, shards, root, getattr(schema.format, "header", False)
        )
        data = data_json(
            profiles,
            schema,
            state.cardinalities,
            lineage.num_distinct,
            num_bad_rows,
            [day.name for day in days],
        )
        data["vocabulary"] = vocabulary_json(lineage, schema)
        write_json(root / FIGURES, data)  # all that is left of a run that the gate stops
        data["warnings"], data["blocks_promotion"] = check_data(data, params.gate)
        for warning in data["warnings"]:
            log.warning(f"{warning}")
        write_json(scratch / "data.json", data)


def split_days(days: list[Day], schema: Schema, params: Params) -> SplitOf:
    """Which rows of each day are for training, validation and test, as params.yaml's features.split says."""
    split = params.features.split
    if split.by == "days":
        return split_by_days(bounds_of(days), split)
    labels = pl.concat([day.rows(0, day.num_rows).select(schema.label) for day in days]).collect()[
        schema.label
    ]
    return split_by_folds(labels.to_numpy(), bounds_of(days), split)


def _made_by(schema: Schema, params: Params) -> str:
    """A hash of all that decides the features beside the rows: code, libraries, declarations."""
    code = code_hashes(__name__, without=NOT_IN_FEATURES)
    declared = [
        schema.model_dump(mode="json", exclude={"sample"}),
        params.features.model_dump(mode="json"),
    ]
    return hashlib.sha256(
        json.dumps([code, pl.__version__, pa.__version__, declared]).encode()
    ).hexdigest()


def _fit_or_grow(
    grower: Grower, old: Path, made_by: str, forget_after_days: int | None
) -> tuple[FeatureState, Lineage]:
    """Go on from the state of the last run if it still holds, else begin anew."""
    last = _last_state(grower, old, made_by) if grower.grows else None
    if last is None:
        if forget_after_days is not None:
            raise DataError(
                f"{old}: nothing to forget: there is no grown state that fits params.yaml and the code (one grows with features.ids "
                "frequency, split by days, and a log file a day); run the features stage first"
            )
        state, lineage = grower.fit(made_by)
        counts = grower.directory
    else:
        (state, lineage), counts = last, old
    if grower.grows:
        state = grower.grow(state, lineage, counts)
    if forget_after_days is not None:
        before = sum(state.cardinalities)
        state = grower.compact(state, lineage, forget_after_days)
        log.info(
            f"{before - sum(state.cardinalities):,} of {before:,} ids given back; now train again: clickmill run"
        )
    return state, lineage


def _last_state(grower: Grower, old: Path, made_by: str) -> tuple[FeatureState, Lineage] | None:
    """What the last run left, if it can be gone on with; why not is told where the user would not expect it."""
    lineage = Lineage.read(old) if (old / LINEAGE).exists() else None
    if (
        lineage is None or lineage.made_by != made_by or not lineage.days
    ):  # a log of one file left no days
        return None
    try:
        conflict = _conflict(grower, lineage) or lineage.damage(old)
        state = None if conflict else FeatureState.load(old / "state")
    except DataError as error:
        conflict, state = str(error), None
    if state is None:
        log.info(f"{conflict}: vocabularies are fitted anew, and ids change")
        return None
    return state, lineage


def _conflict(grower: Grower, lineage: Lineage) -> str | None:
    """Why the old state cannot be gone on with: what was counted cannot be taken back."""
    shas = {known.name: known.sha256 for known in lineage.days}
    for k, day in enumerate(grower.days):
        known = lineage.find(day)
        if known is None and day.name in shas:
            return f"{day.name} has other rows than when it was counted"
        if known and known.num_rows > grower.num_train(k):
            return f"{known.num_rows:,} rows of {day.name} were counted for training, of which only {grower.num_train(k):,} still are"
    return None


def _bad_rows_of_days(days: list[Day], shards: list[Shard], root: Path, header: bool) -> list[int]:
    """How many malformed rows stand in each day; in a log of one file, those before the day's last good row."""
    if len(shards) > 1:
        return [shard.num_bad_rows for shard in shards]
    lines = (
        pl.read_parquet(root / PARQUET / BAD_ROWS_FILE, columns=["line"])["line"]
        .to_numpy()
        .astype(np.int64)
    )
    good_rows_before = lines - (2 if header else 1) - np.arange(len(lines))
    places = np.searchsorted(bounds_of(days)[1:], good_rows_before, side="right")
    return np.bincount(np.minimum(places, len(days) - 1), minlength=len(days)).tolist()  # type: ignore[no-any-return]
