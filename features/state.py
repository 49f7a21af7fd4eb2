"""The fitted state of the features: what turns raw columns into model inputs, in training and in serving alike.

Ids of a categorical column, by layout (`features.ids`):

    frequency            appearance (facebookresearch/dlrm)
    0  UNSEEN            0 .. n-1  values by first appearance; a null is the value 0
    1  MISSING           n         never seen; the reference, fitted on every row, has no such id
    2 .. n+1  values by (-count, value)

UNSEEN stands for values that are rare in the training rows (fewer than min_count) or not there at all, so its row is trained.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from features.files import DataError, read_json, sha256_file, write_json
from features.parquet import Writer
from features.schema import Schema, check_schema

UNSEEN = 0
MISSING = 1
NUM_RESERVED = 2
NULL_VALUE = 0  # what a missing category reads as in the appearance layout

Layout = Literal["frequency", "appearance"]


@dataclass(frozen=True)
class FeatureState:
    """Everything that was learned from the training rows. vocabularies: per categorical column its values, in id order."""

    schema: Schema
    ids: Layout
    vocabularies: dict[str, pl.Series]

    @property
    def cardinalities(self) -> list[int]:
        """Number of ids per categorical column, in schema order, F of them; ids are 0 .. cardinality-1."""
        extra = NUM_RESERVED if self.ids == "frequency" else 1
        return [len(self.vocabularies[name]) + extra for name in self.schema.categorical]

    def transform(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Raw typed columns to model inputs: dense float32 = ln(1 + max(x, 0)), null 0; categorical int32 ids. The label stays if there."""
        label = [self.schema.label] if self.schema.label in rows.columns else []
        dense = pl.col(self.schema.dense).cast(pl.Float32).fill_null(0).clip(lower_bound=0).map_batches(_log1, pl.Float32)
        return rows.select(*label, dense, *(self._ids(name) for name in self.schema.categorical))

    def _ids(self, name: str) -> pl.Expr:
        known, ids, other = self._id_maps[name]
        column = pl.col(name).fill_null(NULL_VALUE) if self.ids == "appearance" else pl.col(name)
        return column.replace_strict(known, ids, default=other, return_dtype=pl.Int32)

    @cached_property
    def _id_maps(self) -> dict[str, tuple[pl.Series, pl.Series, int]]:
        """Per categorical column: known values, their ids, and the id of others."""
        return {name: self._id_map(values) for name, values in self.vocabularies.items()}

    def _id_map(self, values: pl.Series) -> tuple[pl.Series, pl.Series, int]:
        if self.ids == "appearance":
            return values, pl.int_range(len(values), dtype=pl.Int32, eager=True), len(values)
        null_first = values.clear(1).append(values)  # MISSING is the id before the vocabulary's first
        return null_first, pl.int_range(MISSING, NUM_RESERVED + len(values), dtype=pl.Int32, eager=True), UNSEEN

    @property
    def output_columns(self) -> pl.Schema:
        """The columns that transform makes of labelled rows."""
        dense, ids = dict.fromkeys(self.schema.dense, pl.Float32), dict.fromkeys(self.schema.categorical, pl.Int32)
        return pl.Schema({self.schema.label: pl.UInt8, **dense, **ids})

    @property
    def fingerprint(self) -> str:
        """SHA-256 of schema, layout and vocabularies, hex: equal states transform equally."""
        digest = hashlib.sha256(f"{json.dumps(self._schema_json(), sort_keys=True)}\n{self.ids}\n".encode())
        for name in self.schema.categorical:
            digest.update(f"{name} {self.vocabularies[name].dtype}\n".encode())
            digest.update(self.vocabularies[name].cast(pl.String).str.join("\n").item().encode())
        return digest.hexdigest()

    def _schema_json(self) -> dict[str, Any]:
        """The schema without what only the sample log generator reads: how a log is imitated says nothing about its features."""
        return self.schema.model_dump(mode="json", exclude={"sample"})

    def save(self, directory: Path) -> None:
        """directory/state.json and directory/vocabulary/COLUMN.parquet (one column `value`, in id order)."""
        (directory / "vocabulary").mkdir(parents=True)
        files = {}
        for name, values in self.vocabularies.items():
            path = directory / "vocabulary" / f"{name}.parquet"
            with Writer(path, pl.Schema({"value": values.dtype})) as writer:
                writer.write(values.to_frame("value"))
            files[name] = sha256_file(path)
        state = {"schema": self._schema_json(), "ids": self.ids, "fingerprint": self.fingerprint}
        write_json(directory / "state.json", {**state, "vocabulary_sha256": files})

    @classmethod
    def load(cls, directory: Path) -> "FeatureState":
        """The state that was saved. Raises DataError when a file is missing or is not the one that was saved."""
        path = directory / "state.json"
        value = read_json(path)
        schema = check_schema(Schema.model_validate(value["schema"]), path)
        vocabularies = {}
        for name in schema.categorical:
            file = directory / "vocabulary" / f"{name}.parquet"
            if not file.exists() or sha256_file(file) != value["vocabulary_sha256"][name]:
                raise DataError(f"{file} is missing or not the file that was saved with {path}; run the features stage again")
            vocabularies[name] = pl.read_parquet(file)["value"]
        state = cls(schema, value["ids"], vocabularies)
        if state.fingerprint != value["fingerprint"]:
            raise DataError(
                f"{path}: fingerprint {value['fingerprint']} is not this state's, {state.fingerprint}; run the features stage again"
            )
        return state


def _log1(values: pl.Series) -> pl.Series:
    """ln(1 + x) in float32; NumPy's is ten times as fast as Polars' log1p."""
    return pl.Series(values.name, np.log(values.to_numpy() + np.float32(1)))
