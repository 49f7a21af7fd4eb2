"""The feature state: what was fitted on the training rows. It encodes rows: values become ids.

Training and serving encode rows with the same state, and so alike.

Ids of a categorical feature, by layout (`features.ids` of params.yaml). V is the number of values
in its vocabulary, and K the number of hash buckets of its policy.

    layout      id               what has this id
    frequency   0                UNSEEN: a value that is not in the vocabulary
                1                MISSING: null
                2 .. K+1         hash buckets; only with policies that have buckets
                K+2 .. K+V+1     the values of the vocabulary, by (-count, value)
    appearance  0 .. V-1         the values, in the order of their first row; null counts as the
                                 value 0, or as the empty text
                V                UNSEEN; the reference implementation has no such id, because it
                                 fits on the rows of all splits
    padded      0                padding, which no row has
                1 .. V           the values, by (-count, value)
                V+1              all other values, and null

`frequency` is the layout of this project, `appearance` that of facebookresearch/dlrm, and `padded`
that of the BARS benchmark.

In `frequency`, an unseen value is one that occurs in fewer than `min_count` training rows, or in
none. Rare training rows have the id UNSEEN, so its embedding is trained. If the policy has buckets,
an unseen value v has the id 2 + hash(v) mod K instead of UNSEEN. Only this layout grows: the new
values of a later training day are appended by (-count, value), and an id never changes its meaning.

A list has an id for each of its first `max_length` values, and a null in it has the id of a missing
value; a missing list has no id, like an empty one. Features that share an embedding table have one
vocabulary. `appearance` has neither lists nor shared tables (features/schema/check_params.py).

hash(v) is XXH64 with seed 0 of the value as UTF-8 text. Integers are decimal digits; a hex32 value
is an integer, so 0000000a is "10". docs/hash.md has test vectors.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import polars_hash  # noqa: F401  (adds the namespace nchash to expressions)
from numpy.typing import NDArray
from polars.exceptions import PanicException, PolarsError
from pydantic import Field

from common.config.base import Strict
from common.config.loading import ConfigError, as_data_error, read_json_as, shorten
from common.files import DataError, sha256_file, write_json
from common.hashed_files import find_mismatch
from common.parquet import ParquetWriter, read_parquet
from common.printable import first_line
from features.encode.id_map import IdMap
from features.ingest.readers.row_validation import typed_columns
from features.list_values import lengths_of, map_values
from features.schema.list_columns import ListOptions
from features.schema.schema import Feature, Schema, check_schema
from features.value_counts import count_values

UNSEEN = 0
MISSING = 1
NUM_RESERVED = 2  # UNSEEN and MISSING, of the layout `frequency`

STATE_FILE = "state.json"
VOCABULARY, FITTED = "vocabulary", "fitted"  # folders of a saved state

Layout = Literal["frequency", "appearance", "padded"]


class SavedState(Strict):
    """The contents of state.json.

    Attributes:
        log_schema: The schema.
        ids: The layout, as the parameter features.ids.
        fingerprint: That of the whole state.
        sha256: Parquet file of the state, without its ending -> SHA-256, in hex.
    """

    log_schema: Schema = Field(alias="schema")
    ids: Layout
    fingerprint: str
    sha256: dict[str, str]


@dataclass(frozen=True)
class FeatureState:
    """Everything that was fitted on the training rows.

    Attributes:
        schema: The schema, with the transforms that the features really have.
        layout: How ids are numbered (the table at the top of this module).
        vocabularies: For each embedding table its values, in id order; empty under the policy
            `hash`.
        fitted: For each feature with a transform that is fitted, the table that it was fitted to.
        newest: The state of which this one is an earlier vocabulary version, as `truncated` makes
            it; None for any other state.
    """

    schema: Schema
    layout: Layout
    vocabularies: dict[str, pl.Series]
    fitted: dict[str, pl.DataFrame]
    newest: "FeatureState | None" = None

    @property
    def cardinalities(self) -> list[int]:
        """Number of ids of each categorical feature, in the schema's order.

        It is the same for features that share an embedding table.
        """
        num_reserved = {"frequency": NUM_RESERVED, "appearance": 1, "padded": 2}[self.layout]
        return [
            num_reserved + feature.policy.buckets + len(self.vocabularies[feature.table])
            for feature in self.schema.features
            if feature.policy is not None
        ]

    @property
    def has_unseen_id(self) -> bool:
        """Whether the ids distinguish unseen values from missing ones and from known ones."""
        return self.layout == "frequency"

    def shared_ids(self, name: str) -> dict[int, str]:
        """Return the ids of a categorical feature that several values share, with their meaning.

        Hash buckets are left out.
        """
        if self.layout == "frequency":
            return {UNSEEN: "unseen or rare", MISSING: "missing"}
        num_values = len(self.vocabularies[self.schema.table_of[name]])
        if self.layout == "padded":
            return {num_values + 1: "unseen, rare or missing"}
        return {num_values: "unseen or rare"}

    def encode(
        self, rows: pl.DataFrame, known: Mapping[str, NDArray[np.int32]] | None = None
    ) -> pl.DataFrame:
        """Encode typed rows. The result of a row does not depend on other rows.

        Args:
            rows: The typed columns of the schema, B rows, with or without the label.
            known: For an embedding table, how many first values of its vocabulary each row knows
                (B,), so that rows of several vocabulary versions are encoded together; a table that
                is left out is known as a whole.

        Returns:
            The label (u8) and the sample weight (f32) if `rows` has them, N dense features (f32),
            the ids of each categorical feature (i32 or lists of i32), and the weights of lists
            (lists of f32); B rows. No list is null.
        """
        of_row = [name for name in self._columns_of_row if name in rows.columns]
        encoded = {
            feature.name: self._encoded(feature, (known or {}).get(feature.table))
            for feature in self.schema.features
        }
        names = [*self.schema.dense_features, *self.schema.categorical_features]
        weights = [
            pl.col(options.weights).list.head(options.max_length).fill_null([])
            for options in self._lists_with_weights
            if options.weights
        ]
        return rows.select(*of_row, *(encoded[name].alias(name) for name in names), *weights)

    @property
    def _columns_of_row(self) -> list[str]:
        """The columns that are no features: the label and the sample weight."""
        sample_weight = self.schema.sample_weight
        return [self.schema.label, *([sample_weight] if sample_weight else [])]

    @property
    def _lists_with_weights(self) -> list[ListOptions]:
        return [one.list for one in self.schema.list_features if one.list and one.list.weights]

    def _encoded(self, feature: Feature, known_B: NDArray[np.int32] | None) -> pl.Expr:
        value = feature_value(feature, self.fitted.get(feature.name))
        if feature.policy is None:
            return value
        if feature.list is None:
            return self._ids(feature, value, known_B)

        def ids_of_lists(lists: pl.Series) -> pl.Series:
            known_V = None if known_B is None else np.repeat(known_B, lengths_of(lists))
            ids = self._ids(feature, pl.col("value"), known_V)
            return map_values(
                lists, lambda values: values.to_frame("value").select(ids).to_series()
            )

        return value.fill_null([]).map_batches(ids_of_lists, pl.List(pl.Int32))

    def _ids(self, feature: Feature, value: pl.Expr, known_B: NDArray[np.int32] | None) -> pl.Expr:
        """Return the ids of values of a categorical feature."""
        assert feature.policy is not None
        if self.layout == "appearance":
            vocabulary = self.vocabularies[feature.table]
            value = value.fill_null("" if vocabulary.dtype == pl.String else 0)
        id_map = self._id_maps[feature.table]
        ids = value.map_batches(lambda values: id_map.ids_of(values, known_B), pl.Int32)
        if not feature.policy.buckets:
            return ids
        bucket = (NUM_RESERVED + stable_hash(value) % feature.policy.buckets).cast(pl.Int32)
        return pl.when(ids == UNSEEN).then(bucket).otherwise(ids)

    @cached_property
    def _id_maps(self) -> dict[str, IdMap]:
        if self.newest is not None:
            return {
                table: id_map.truncated(len(self.vocabularies[table]))
                for table, id_map in self.newest._id_maps.items()
            }
        return {
            table: self._id_map(values, self.schema.policy_of_table(table).buckets)
            for table, values in self.vocabularies.items()
        }

    def _id_map(self, values: pl.Series, num_buckets: int) -> IdMap:
        if self.layout == "frequency":
            first_id = NUM_RESERVED + num_buckets
            return IdMap(values, first_id=first_id, missing_id=MISSING, unseen_id=UNSEEN)
        first_id = 1 if self.layout == "padded" else 0
        id_after_values = first_id + len(values)
        return IdMap(
            values, first_id=first_id, missing_id=id_after_values, unseen_id=id_after_values
        )

    def truncated(self, sizes: list[int]) -> "FeatureState":
        """Return the state of an earlier vocabulary version.

        All versions look ids up in the tables of the newest one, which are made once: an id never
        changes its meaning, so the values that came later are the unseen ones.

        Args:
            sizes: The number of values of each vocabulary in that version.
        """
        vocabularies = {
            name: values[:size]
            for (name, values), size in zip(self.vocabularies.items(), sizes, strict=True)
        }
        return replace(self, vocabularies=vocabularies, newest=self.newest or self)

    def is_version_of(self, later: "FeatureState") -> bool:
        """Return whether another state gives each value the id that it has here.

        Args:
            later: A state whose vocabularies may have more values, appended to those of this one.
        """
        may_grow = self.layout == "frequency"
        return (
            self.layout == later.layout
            and self._schema_json() == later._schema_json()
            and all(self.fitted[name].equals(table) for name, table in later.fitted.items())
            and all(
                (may_grow or len(values) == len(later.vocabularies[name]))
                and values.equals(later.vocabularies[name][: len(values)])
                for name, values in self.vocabularies.items()
            )
        )

    @property
    def output_columns(self) -> pl.Schema:
        """The names and dtypes of the columns that `encode` makes of labelled rows."""
        typed = typed_columns(self.schema)
        columns = {name: typed[name] for name in self._columns_of_row}
        columns |= dict.fromkeys(self.schema.dense_features, pl.Float32())
        for feature in self.schema.features:
            if feature.policy is not None:
                columns[feature.name] = pl.List(pl.Int32()) if feature.list else pl.Int32()
        for options in self._lists_with_weights:
            columns[str(options.weights)] = pl.List(pl.Float32())
        return pl.Schema(columns)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the whole state, in hex: states of the same fingerprint encode rows alike."""
        schema_json = json.dumps(self._schema_json(), sort_keys=True)
        digest = hashlib.sha256(f"{schema_json}\n{self.layout}\n".encode())
        for name, frame in sorted(self._frames().items()):
            digest.update(f"{name} {frame.schema}\n".encode())
            for column in frame:
                digest.update(column.cast(pl.String).str.join("\n").item().encode())
        return digest.hexdigest()

    def _frames(self) -> dict[str, pl.DataFrame]:
        """Return the contents of each Parquet file of a saved state, by its name."""
        files = self.schema.file_names
        vocabularies = {
            f"{VOCABULARY}/{files[table]}": values.to_frame("value")
            for table, values in self.vocabularies.items()
        }
        fitted = {f"{FITTED}/{files[name]}": frame for name, frame in self.fitted.items()}
        return vocabularies | fitted

    def _schema_json(self) -> dict[str, Any]:
        """Return the schema without the section that only the generator of the sample log reads."""
        return self.schema.model_dump(mode="json", exclude={"sample"})

    def save(self, directory: Path) -> None:
        """Write the state into a folder.

        The folder has state.json, vocabulary/TABLE.parquet with the column `value` in id order,
        and fitted/FEATURE.parquet, where the names are as of `Schema.file_names`. A table has the
        name of its feature, unless features share it.
        """
        sha256_by_name = {}
        for name, frame in self._frames().items():
            path = directory / f"{name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            with ParquetWriter(path, frame.schema) as writer:
                writer.write(frame)
            sha256_by_name[name] = sha256_file(path)
        write_json(
            directory / STATE_FILE,
            {
                "schema": self._schema_json(),
                "ids": self.layout,
                "fingerprint": self.fingerprint,
                "sha256": sha256_by_name,
            },
        )

    @classmethod
    def load(cls, directory: Path, remedy: str = "run the features stage again") -> "FeatureState":
        """Read a state that was saved.

        Args:
            directory: The folder of the state.
            remedy: What the user can do if the state is damaged, for the error.

        Raises:
            DataError: A file is missing, is not the file that was saved, or has contents that no
                state has.
        """
        path = directory / STATE_FILE
        saved = read_json_as(SavedState, path, remedy)
        try:
            schema = check_schema(saved.log_schema, path)
        except ConfigError as error:
            raise as_data_error(error, remedy) from None
        frames = _read_frames(directory, saved, schema, remedy)
        files = schema.file_names
        vocabularies = {
            table: frames[f"{VOCABULARY}/{files[table]}"]["value"] for table in schema.tables
        }
        fitted = {
            name: frames[f"{FITTED}/{file}"]
            for name, file in files.items()
            if f"{FITTED}/{file}" in frames
        }
        state = cls(schema, saved.ids, vocabularies, fitted)
        if state.fingerprint != saved.fingerprint:
            raise DataError(
                f"{path}: the fingerprint of this state is {state.fingerprint}, but"
                f" {shorten(saved.fingerprint)} was saved; {remedy}"
            )
        return state


def _read_frames(
    directory: Path, saved: SavedState, schema: Schema, remedy: str
) -> dict[str, pl.DataFrame]:
    """Return the contents of each Parquet file of a saved state, by its name, checked."""
    path = directory / STATE_FILE
    contents = _contents_of_files(schema)
    # No other file is looked at, wherever a name would lead.
    for name in sorted(contents.keys() ^ saved.sha256.keys()):
        problem = "missing" if name in contents else "no such feature"
        raise DataError(f"{path}: sha256: {shorten(name)}: {problem}; {remedy}")
    recorded = {f"{name}.parquet": saved.sha256[name] for name in contents}
    if mismatch := find_mismatch(directory, recorded):
        raise DataError(
            f"{mismatch.path} is missing or not the file that was saved with {path}; {remedy}"
        )
    name_of = {file: name for name, file in schema.file_names.items()}
    frames = {}
    for name, columns in contents.items():
        file = directory / f"{name}.parquet"
        frame = frames[name] = _read_parquet(file, remedy)
        folder, _, file_name = name.partition("/")
        if folder == FITTED:
            fault = _fault_of(frame, columns) or _fault_of_order(frame)
        else:
            is_hashed = schema.policy_of_table(name_of[file_name]).name == "hash"
            fault = _fault_of(frame, columns) or _fault_of_vocabulary(frame["value"], is_hashed)
        if fault:
            raise DataError(f"{file}: {fault}; {remedy}")
    return frames


def _contents_of_files(schema: Schema) -> dict[str, pl.Schema]:
    """Return the names and dtypes of the columns of each Parquet file of a saved state, by name.

    They are what is fitted to no rows.
    """
    no_rows = pl.DataFrame(schema=typed_columns(schema))
    fitted = fit_transforms(schema, no_rows.lazy())
    values = no_rows.select(
        feature_value(feature, fitted.get(feature.name)).alias(feature.name)
        for feature in schema.features
        if feature.policy is not None
    )
    files = schema.file_names
    return {
        **{
            f"{VOCABULARY}/{files[schema.table_of[name]]}": pl.Schema(
                {"value": dtype.inner if isinstance(dtype, pl.List) else dtype}
            )
            for name, dtype in values.schema.items()
        },
        **{f"{FITTED}/{files[name]}": table.schema for name, table in fitted.items()},
    }


def _read_parquet(path: Path, remedy: str) -> pl.DataFrame:
    try:
        return read_parquet(path)
    except (PolarsError, PanicException) as error:
        raise DataError(f"{path} cannot be read ({first_line(error)}); {remedy}") from None


def _fault_of(frame: pl.DataFrame, columns: pl.Schema) -> str | None:
    """Return why a frame cannot be the contents of a file of a saved state; None if it can."""
    if frame.schema != columns:
        return f"columns {_shown(frame.schema)} found, {_shown(columns)} expected"
    for column in frame:
        if column.has_nulls():
            return f"a null in column {column.name}"
        if column.dtype.is_float() and not column.is_finite().all():
            return f"a value in column {column.name} that is NaN or infinite"
    return None


def _fault_of_order(fitted: pl.DataFrame) -> str | None:
    """Return why the values of the first column are not distinct and rising; None if they are."""
    first = fitted.to_series()
    if first.is_sorted() and first.n_unique() == len(first):
        return None
    return f"the values of column {first.name} do not rise"


def _fault_of_vocabulary(values: pl.Series, is_hashed: bool) -> str | None:
    """Return why values cannot be a vocabulary; None if they can."""
    if is_hashed and len(values):
        return f"{len(values):,} values found, none expected under the policy hash"
    if values.n_unique() < len(values):
        return f"value {shorten(values.filter(values.is_duplicated())[0])} occurs twice"
    return None


def _shown(columns: pl.Schema) -> str:
    return ", ".join(f"{name!r} {dtype}" for name, dtype in list(columns.items())[:5]) or "none"


def values_to_fit(schema: Schema) -> dict[str, pl.Expr]:
    """Return the value that each transform is fitted to, by the name of the feature."""
    values = {
        feature.name: feature.transform.fitted_value(feature.of)
        for feature in schema.features
        if feature.transform is not None
    }
    return {name: value for name, value in values.items() if value is not None}


def fit_transform(schema: Schema, name: str, counts: pl.DataFrame) -> pl.DataFrame:
    """Fit the transform of a feature to the counts of its value in the training rows."""
    (feature,) = (feature for feature in schema.features if feature.name == name)
    assert feature.transform is not None
    return feature.transform.fit(counts)


def fit_transforms(schema: Schema, rows: pl.LazyFrame) -> dict[str, pl.DataFrame]:
    """Fit all transforms to training rows.

    Args:
        schema: The schema.
        rows: Typed rows.

    Returns:
        For each feature with a transform that is fitted, the table that it was fitted to.
    """
    return {
        name: fit_transform(schema, name, count_values(rows, value))
        for name, value in values_to_fit(schema).items()
    }


def feature_value(feature: Feature, fitted: pl.DataFrame | None) -> pl.Expr:
    """Return the value of a feature before it gets an id; null where it is missing.

    For a dense feature, this is the model input itself; for a feature with several values, the list
    of those that are used.

    Args:
        feature: The feature.
        fitted: The table that its transform was fitted to; None if it is not fitted.
    """
    if feature.list is not None:
        return pl.col(feature.of[0]).list.head(feature.list.max_length)
    if feature.transform is None:
        return pl.col(feature.of[0])
    return feature.transform.expr(feature.of, fitted)


def values_of_table(schema: Schema, table: str, fitted: dict[str, pl.DataFrame]) -> list[pl.Expr]:
    """Return the value of each feature of an embedding table, as of `feature_value`.

    Args:
        schema: The schema.
        table: The name of the embedding table.
        fitted: For each feature with a transform that is fitted, the table that it was fitted to.
    """
    return [
        feature_value(feature, fitted.get(feature.name))
        for feature in schema.features
        if feature.name in schema.tables[table]
    ]


def dtype_of_table(schema: Schema, table: str, fitted: dict[str, pl.DataFrame]) -> pl.DataType:
    """Return the dtype of the values of an embedding table, which are those of lists if it has any.

    The arguments are those of `values_of_table`.
    """
    no_rows = pl.LazyFrame(schema=typed_columns(schema))
    value = values_of_table(schema, table, fitted)[0]
    dtype = no_rows.select(value.alias("value")).collect_schema()["value"]
    return dtype.inner if isinstance(dtype, pl.List) else dtype  # type: ignore[return-value]


def stable_hash(value: pl.Expr) -> pl.Expr:
    """Return XXH64 with seed 0 of each value's text (u64). A null stays null."""
    hashes: pl.Expr = value.cast(pl.String).nchash.xxhash64()  # type: ignore[attr-defined]
    return hashes
