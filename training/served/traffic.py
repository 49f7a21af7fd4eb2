"""The comparison of served traffic with labels and with training rows.

The request log is read once, and counted. Its rows are then joined with the rows of logs by a key:
the rows of the request log are in memory, those of the logs are read piece by piece. If the request
log has more than MAX_COMPARED rows, a share of the keys is compared, which a hash of the key
chooses.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from common.files import DataError
from common.progress import Progress
from features.encode.feature_state import FeatureState, stable_hash
from features.ingest.readers.blocks import NoRowsError
from features.ingest.readers.read_log import has_label, read_log
from features.ingest.readers.row_validation import typed_columns
from features.quality.drift import beyond_chance
from features.quality.encoded_counts import EncodedCounts
from features.schema.schema import Schema
from serving.request_log import (
    ANSWER,
    FEATURE_PREFIX,
    KEY,
    MODEL,
    REQUEST_ID,
    ROLE,
    ROW,
    SCORE,
    TIME,
    VERSION,
)
from training.evaluation.metrics import (
    BOOTSTRAP_SEED,
    bootstrap_intervals,
    compute_metrics,
    sums_of_rows,
)
from training.inference.copied_columns import as_written, check_copied, check_copied_are_found
from training.inference.input_logs import InputLog
from training.served.figures import (
    ColumnFigures,
    JoinedMetrics,
    LargestValue,
    ServedFigures,
    VersionFigures,
)
from training.served.known_models import KnownModels
from training.served.request_files import RequestFile, feature_columns
from training.served.training_rows import TrainingRows

MAX_COMPARED = 1 << 20  # rows in memory, of some 200 bytes each
OPTION = "--key"  # which names the key, for messages
POSITION, OF_VERSION, LINE = "position", "of_version", "line"


class ServedVersion:
    """The rows that one version of a model has scored in one role.

    Args:
        model: The name under which it is served.
        version: The version of the served model.
        role: `answer` or `shadow`.
        state: Its feature state; None if that is not at hand.
        notes: Why a figure is missing.
    """

    def __init__(
        self, model: str, version: str, role: str, state: FeatureState | None, notes: list[str]
    ) -> None:
        self.model, self.version, self.role, self.state = model, version, role, state
        self.notes = notes
        self.num_rows = self.num_without_key = self.num_repeated = 0
        self.num_served = self.score_sum = 0.0
        self.counts = EncodedCounts(state) if state else None
        self.features = self.counts.features if self.counts else []
        self._rows: list[pl.DataFrame] = []

    def add(self, rows: pl.DataFrame, fraction: float, key_mask: int) -> None:
        """Add rows of the request log.

        Args:
            rows: The rows.
            fraction: The share of the requests that were logged.
            key_mask: Only keys are compared in whose hash these bits are 0.
        """
        self.num_rows += rows.height
        self.num_served += rows.height / fraction
        self.score_sum += float(rows[SCORE].cast(pl.Float64).sum())
        self.num_without_key += rows[KEY].null_count()
        self._count(rows)
        prefixed = [FEATURE_PREFIX + name for name in self.features]
        is_compared = pl.col(KEY).is_not_null() & (stable_hash(pl.col(KEY)) & key_mask == 0)
        self._rows.append(
            rows.filter(is_compared).select(TIME, REQUEST_ID, ROW, KEY, SCORE, *prefixed)
        )

    def _count(self, rows: pl.DataFrame) -> None:
        if self.counts is None:
            return
        try:
            if {*feature_columns(rows)} != {*self.features}:
                raise ValueError("its feature state has other features")
            self.counts.add(
                rows.select(pl.col(FEATURE_PREFIX + name).alias(name) for name in self.features)
            )
        except ValueError as error:
            self.notes.append(f"the request log has other features than its bundle ({error})")
            self.state = self.counts = None
            self.features, self._rows = [], [one[:, :5] for one in self._rows]

    def begin_join(self) -> pl.DataFrame:
        """Keep the last row of each key, and return the keys, with their positions."""
        rows = pl.concat(self._rows)
        last = rows.sort(TIME, REQUEST_ID, ROW).unique(KEY, keep="last", maintain_order=True)
        self.num_repeated = rows.height - last.height
        self._rows, self.compared = [], last
        self.labels_R = np.zeros(last.height, np.uint8)
        self.weights_R = np.ones(last.height, np.float32)
        self.num_found_R = np.zeros(last.height, np.int64)
        self.differs_FR = np.zeros((len(self.features), last.height), bool)
        return last.select(KEY).with_row_index(POSITION)

    def join(
        self, positions_L: NDArray[np.uint32], rows: pl.DataFrame, label: str, weight: str | None
    ) -> None:
        """Take rows of a log that have keys of this version.

        Args:
            positions_L: The position of each row's key, as of `begin_join`.
            rows: The L rows, typed.
            label: The label column.
            weight: The column of sample weights; None if there is none.
        """
        np.add.at(self.num_found_R, positions_L, 1)
        self.labels_R[positions_L] = rows[label].to_numpy()
        if weight:
            self.weights_R[positions_L] = rows[weight].to_numpy()
        if self.state is None:
            return
        encoded = self.state.encode(rows)
        for k, name in enumerate(self.features):
            served = self.compared[FEATURE_PREFIX + name].gather(positions_L)
            self.differs_FR[k, positions_L] |= served.to_numpy() != encoded[name].to_numpy()

    def figures(
        self, training: TrainingRows | None, num_rounds: int, *, is_weighted: bool
    ) -> VersionFigures:
        """Return the figures; all rows have been added and joined.

        Args:
            training: The training rows; None if they are not at hand.
            num_rounds: The number of bootstrap rounds for the interval of the calibration ratio.
            is_weighted: Whether the rows of the logs have sample weights.
        """
        is_joined_R = self.num_found_R == 1
        columns = self._columns(training, is_joined_R)
        rises = {one.name: self._unseen_rise(one) for one in columns}
        return VersionFigures(
            model=self.model,
            version=self.version,
            role=self.role,
            num_rows=self.num_rows,
            num_served=round(self.num_served),
            mean_score=min(self.score_sum / self.num_rows, 1.0),
            num_compared=self.compared.height,
            num_without_key=self.num_without_key,
            num_repeated=self.num_repeated,
            num_joined=int(is_joined_R.sum()),
            num_ambiguous=int((self.num_found_R > 1).sum()),
            metrics=self._metrics(is_joined_R, num_rounds, is_weighted=is_weighted),
            columns=columns,
            drift=_largest({one.name: one.drift for one in columns}),
            unseen=_largest(rises),
            skew=_largest({one.name: one.skew or None for one in columns}),
            notes=self.notes,
        )

    def _metrics(
        self, is_joined_R: NDArray[np.bool_], num_rounds: int, *, is_weighted: bool
    ) -> JoinedMetrics | None:
        weights = self.weights_R[is_joined_R] if is_weighted else None
        if not is_joined_R.any() or (weights is not None and not weights.any()):
            return None
        scores = self.compared[SCORE].to_numpy()[is_joined_R]
        sums = sums_of_rows(self.labels_R[is_joined_R], scores, weights)
        metrics: dict[str, Any] = compute_metrics(sums)
        metrics |= bootstrap_intervals(sums, num_rounds, BOOTSTRAP_SEED)
        return JoinedMetrics.model_validate(metrics)

    def _columns(
        self, training: TrainingRows | None, is_joined_R: NDArray[np.bool_]
    ) -> list[ColumnFigures]:
        if self.counts is None or self.state is None:
            return []
        train = None
        if training is None:
            self.notes.append("artifacts/features is not at hand, so drift is not known")
        else:
            try:
                train = training.counts_of(self.state)
            except DataError as error:
                self.notes.append(str(error))
        num_joined = int(is_joined_R.sum())
        self._num_train = train.num_rows if train else 0
        return [
            ColumnFigures(
                name=name,
                missing=self.counts.missing(name),
                unseen=self.counts.unseen(name),
                train_missing=train.missing(name) if train else None,
                train_unseen=train.unseen(name) if train else None,
                drift=self.counts.drift_from(train, name) if train else None,
                skew=(
                    int(self.differs_FR[k, is_joined_R].sum()) / num_joined if num_joined else None
                ),
            )
            for k, name in enumerate(self.features)
        ]

    def _unseen_rise(self, column: ColumnFigures) -> float | None:
        """Return by how much more rows have an unseen value than in training, beyond chance."""
        if column.unseen is None or column.train_unseen is None:
            return None
        rise = beyond_chance(column.unseen, self.num_rows, column.train_unseen, self._num_train)
        return rise if rise > 0 else None


def compare_traffic(
    requests: Sequence[RequestFile],
    damaged: Sequence[str],
    logs: Iterable[InputLog],
    schema: Schema,
    key: str,
    models: KnownModels,
    training: TrainingRows | None,
    *,
    short_rows: str,
    num_rounds: int,
    max_compared: int = MAX_COMPARED,
) -> ServedFigures:
    """Compute the figures of served traffic; memory does not grow with either log.

    Args:
        requests: The files of the request log.
        damaged: Why other files of it cannot be read.
        logs: The logs with the labels.
        schema: Their schema.
        key: The column of these logs that has the keys.
        models: Finds the feature states of the served versions.
        training: The training rows that served rows are compared with; None if not at hand.
        short_rows: The parameter `ingest.short_rows`.
        num_rounds: The number of bootstrap rounds for intervals.
        max_compared: The largest number of rows of the request log that are joined, about.

    Raises:
        DataError: The key cannot be a column of the logs, or a log cannot be read or has no label.
    """
    check_copied([key], schema, OPTION)
    served = _ServedRows(requests, models, max_compared)
    labels = _Labels(served.versions, schema, key, short_rows)
    for one in logs:
        labels.read(one)
    figures = [
        version.figures(training, num_rounds, is_weighted=schema.sample_weight is not None)
        for version in served.versions
    ]
    return ServedFigures(
        since=served.first,
        until=served.last,
        num_files=len(requests),
        damaged=[*damaged, *served.damaged],
        key=key,
        logs=labels.names,
        num_log_rows=labels.num_rows,
        num_bad_rows=labels.num_bad_rows,
        num_log_rows_without_key=labels.num_without_key,
        versions=sorted(
            figures,
            key=lambda one: (one.role != ANSWER, -one.num_rows, one.model, one.version),
        ),
    )


class _ServedRows:
    """The rows of a request log by version.

    Args:
        requests: The files of the log.
        models: Finds the feature states of the served versions.
        max_compared: The largest number of rows that are joined, about.

    Attributes:
        first: When the first row was scored; None without rows.
        last: When the last one was scored.
        damaged: Why a file was not read to its end.
    """

    def __init__(
        self, requests: Sequence[RequestFile], models: KnownModels, max_compared: int
    ) -> None:
        self.first: datetime | None = None
        self.last: datetime | None = None
        self.damaged: list[str] = []
        self._states = _States(models)
        self._versions: dict[tuple[str, str, str], ServedVersion] = {}
        self._key_mask = 0
        while sum(one.num_rows for one in requests) > max_compared * (self._key_mask + 1):
            self._key_mask = 2 * self._key_mask + 1
        for one in requests:
            try:
                for rows in one.batches():
                    self._add(rows, one.fraction)
            except DataError as error:
                self.damaged.append(str(error))

    @property
    def versions(self) -> list[ServedVersion]:
        """The rows of each version in each role."""
        return list(self._versions.values())

    def _add(self, rows: pl.DataFrame, fraction: float) -> None:
        if rows.is_empty():
            return
        by_version = rows.partition_by(MODEL, VERSION, ROLE, as_dict=True, maintain_order=True)
        for name, of_version in by_version.items():
            model, version, role = map(str, name)
            if (model, version, role) not in self._versions:
                state, notes = self._states.find(version)
                self._versions[model, version, role] = ServedVersion(
                    model, version, role, state, notes
                )
            self._versions[model, version, role].add(of_version, fraction, self._key_mask)
        times: list[Any] = [rows[TIME].min(), rows[TIME].max()]
        self.first = min(times[0], self.first or times[0])
        self.last = max(times[1], self.last or times[1])


class _States:
    """The feature states of the served versions, each of them read once."""

    def __init__(self, models: KnownModels) -> None:
        self._models = models
        self._states: dict[str, tuple[FeatureState | None, str]] = {}

    def find(self, version: str) -> tuple[FeatureState | None, list[str]]:
        """Return the state of a version, or None and why it is not at hand."""
        if version not in self._states:
            try:
                self._states[version] = self._models.state_of(version), ""
            except DataError as error:
                self._states[version] = None, str(error)
        state, note = self._states[version]
        return state, [note] if note else []


class _Labels:
    """Gives the rows of logs to the versions whose request log has their keys."""

    def __init__(
        self, versions: Sequence[ServedVersion], schema: Schema, key: str, short_rows: str
    ) -> None:
        self.names: list[str] = []
        self.num_rows = self.num_bad_rows = self.num_without_key = 0
        self._versions, self._schema, self._key = versions, schema, key
        self._short_rows = short_rows
        no_keys = pl.DataFrame(
            schema={POSITION: pl.get_index_type(), KEY: pl.String, OF_VERSION: pl.Int64}
        )
        self._keys = pl.concat(
            [
                no_keys,
                *(
                    one.begin_join().with_columns(pl.lit(k, pl.Int64).alias(OF_VERSION))
                    for k, one in enumerate(versions)
                ),
            ]
        )

    def read(self, one: InputLog) -> None:
        """Read a log.

        Raises:
            DataError: It cannot be read, has no label, or has the key in no row.
        """
        schema = self._schema
        self.names.append(one.name)
        try:
            if not has_label(one.path, schema, one.partitions):
                raise DataError(f"{one.name} has no label; name a log with labels")
            pieces = read_log(
                one.path,
                schema.with_copied([self._key]),
                labelled=True,
                short_rows=self._short_rows,
                partitions=one.partitions,
            )
            with Progress("served", None, None) as progress:
                for number, piece in enumerate(pieces):
                    if not number:
                        names = [self._key]
                        check_copied_are_found(names, schema, piece.rows, one.name, OPTION)
                    self.num_bad_rows += piece.bad_rows.height
                    self._join(piece.rows)
                    progress.update(piece.num_lines)
        except NoRowsError:
            return

    def _join(self, rows: pl.DataFrame) -> None:
        self.num_rows += rows.height
        keys = as_written(rows[self._key], self._schema).cast(pl.String).alias(KEY)
        self.num_without_key += keys.null_count()
        found = (
            keys.to_frame()
            .with_row_index(LINE)
            .join(self._keys, on=KEY, how="inner")
            .sort(LINE, OF_VERSION)
        )
        for name, of_version in found.partition_by(OF_VERSION, as_dict=True).items():
            version = self._versions[int(str(name[0]))]
            typed = rows[of_version[LINE]]
            _leave_state_of_other_columns(version, typed)
            version.join(
                of_version[POSITION].to_numpy(),
                typed,
                self._schema.label,
                self._schema.sample_weight,
            )


def _leave_state_of_other_columns(version: ServedVersion, rows: pl.DataFrame) -> None:
    """Give up the skew of a version whose feature state reads columns that a log does not have."""
    if version.state is None:
        return
    needed = typed_columns(version.state.schema)
    missing = [name for name, dtype in needed.items() if rows.schema.get(name) != dtype]
    if missing:
        version.notes.append(
            "it reads columns that the log does not have, or has with another type, so drift and"
            f" skew are not known: {', '.join(missing)[:200]}"
        )
        version.state = version.counts = None


def _largest(values: dict[str, float | None]) -> LargestValue | None:
    """Return the column with the largest value, and that value."""
    present = {name: value for name, value in values.items() if value is not None}
    if not present:
        return None
    column = max(present, key=lambda name: present[name])
    return LargestValue(column=column, value=present[column])
