"""The fitted state of the features: what turns raw columns into model inputs, in training and in serving alike.

Ids of a categorical feature, by layout (`features.ids`); V values in its vocabulary, K buckets in its policy:

    frequency                                      appearance (facebookresearch/dlrm)          padded (BARS)
    0            UNSEEN: not in the vocabulary     0 .. V-1  values by first appearance;       0       padding, never used
    1            MISSING                                     a null is the value 0             1 .. V  values by (-count, value)
    2 .. K+1     hash buckets, for unseen values   V         never seen: the reference,        V+1     all else, missing too
    K+2 .. K+V+1 values                                      fitted on every row, has none

UNSEEN stands for values that are rare in the training rows (fewer than min_count) or not there at all, so its row is trained. With
buckets an unseen value v has the id 2 + hash(v) mod K instead. Only `frequency` grows: values that come later are appended, in the
order (-count, value) of the day that brought them, and no id ever changes its meaning.

hash(v) is XXH64 with seed 0 of the value as UTF-8 text, numbers as decimal digits (a hex32 value is a number: 0000000a is "10");
docs/hash.md has test vectors.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import polars as pl
import polars_hash  # noqa: F401  (gives expressions the namespace nchash)

from common.files import DataError, read_json, sha256_file, write_json
from common.parquet import ParquetWriter
from features.encode.id_map import IdMap
from features.schema.schema import Feature, Schema, check_schema

UNSEEN = 0
MISSING = 1
NUM_RESERVED = 2  # of the layout `frequency`

Layout = Literal["frequency", "appearance", "padded"]


@dataclass(frozen=True)
class FeatureState:
    """Everything that was learned from the training rows.

    vocabularies: per categorical feature its values, in id order (none under the policy `hash`); fitted: what transforms learned,
    by feature.
    """

    schema: Schema
    ids: Layout
    vocabularies: dict[str, pl.Series]
    fitted: dict[str, pl.DataFrame]

    @property
    def cardinalities(self) -> list[int]:
        """Number of ids per categorical feature, in the schema's order, F of them; ids are 0 .. cardinality-1."""
        extra = {"frequency": NUM_RESERVED, "appearance": 1, "padded": 2}[self.ids]
        return [
            extra + policy.buckets + len(self.vocabularies[name])
            for name, policy in self.schema.policies.items()
        ]

    def shared_ids(self, name: str) -> dict[int, str]:
        """The ids of a categorical feature, buckets aside, that stand for no single value, and what they stand for."""
        if self.ids == "frequency":
            return {UNSEEN: "unseen or rare", MISSING: "missing"}
        num_values = len(self.vocabularies[name])
        if self.ids == "padded":
            return {num_values + 1: "unseen, rare or missing"}
        return {num_values: "unseen or rare"}

    def transform(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Raw typed columns to model inputs: the label if it is there, N dense float32, F int32 ids; a function of each row alone."""
        label = [self.schema.label] if self.schema.label in rows.columns else []
        made = {feature.name: self._made(feature) for feature in self.schema.features}
        names = [*self.schema.dense_features, *self.schema.categorical_features]
        return rows.select(*label, *(made[name].alias(name) for name in names))

    def _made(self, feature: Feature) -> pl.Expr:
        value = feature_value(feature, self.fitted.get(feature.name))
        if feature.policy is None:
            return value
        if self.ids == "appearance":
            value = value.fill_null("" if self.vocabularies[feature.name].dtype == pl.String else 0)
        ids = value.map_batches(self._id_maps[feature.name].ids, pl.Int32)
        if not feature.policy.buckets:
            return ids
        bucket = (NUM_RESERVED + stable_hash(value) % feature.policy.buckets).cast(pl.Int32)
        return pl.when(ids == UNSEEN).then(bucket).otherwise(ids)

    @cached_property
    def _id_maps(self) -> dict[str, IdMap]:
        """Per categorical feature."""
        return {
            name: self._id_map(values, self.schema.policies[name].buckets)
            for name, values in self.vocabularies.items()
        }

    def _id_map(self, values: pl.Series, buckets: int) -> IdMap:
        if self.ids == "frequency":
            return IdMap(values, first=NUM_RESERVED + buckets, missing=MISSING, other=UNSEEN)
        first = 1 if self.ids == "padded" else 0
        return IdMap(values, first=first, missing=first + len(values), other=first + len(values))

    def first(self, sizes: list[int]) -> "FeatureState":
        """This state as it was when its vocabularies had so many values."""
        return replace(
            self,
            vocabularies={
                name: self.vocabularies[name][:size]
                for name, size in zip(self.vocabularies, sizes, strict=True)
            },
        )

    @property
    def output_columns(self) -> pl.Schema:
        """The columns that transform makes of labelled rows."""
        dense, ids = (
            dict.fromkeys(self.schema.dense_features, pl.Float32),
            dict.fromkeys(self.schema.categorical_features, pl.Int32),
        )
        return pl.Schema({self.schema.label: pl.UInt8, **dense, **ids})

    @property
    def fingerprint(self) -> str:
        """SHA-256 of schema, layout, vocabularies and what transforms learned, hex: equal states transform equally."""
        digest = hashlib.sha256(
            f"{json.dumps(self._schema_json(), sort_keys=True)}\n{self.ids}\n".encode()
        )
        for name, frame in sorted(self._frames().items()):
            digest.update(f"{name} {frame.schema}\n".encode())
            for column in frame:
                digest.update(column.cast(pl.String).str.join("\n").item().encode())
        return digest.hexdigest()

    def _frames(self) -> dict[str, pl.DataFrame]:
        """By file: everything learned."""
        values = {
            f"vocabulary/{name}": values.to_frame("value")
            for name, values in self.vocabularies.items()
        }
        return values | {f"fitted/{name}": frame for name, frame in self.fitted.items()}

    def _schema_json(self) -> dict[str, Any]:
        """The schema without what only the sample log generator reads: how a log is imitated says nothing about its features."""
        return self.schema.model_dump(mode="json", exclude={"sample"})

    def save(self, directory: Path) -> None:
        """directory/state.json, vocabulary/FEATURE.parquet (one column `value`, in id order) and fitted/FEATURE.parquet."""
        files = {}
        for name, frame in self._frames().items():
            path = directory / f"{name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            with ParquetWriter(path, frame.schema) as writer:
                writer.write(frame)
            files[name] = sha256_file(path)
        write_json(
            directory / "state.json",
            {
                "schema": self._schema_json(),
                "ids": self.ids,
                "fingerprint": self.fingerprint,
                "sha256": files,
            },
        )

    @classmethod
    def load(cls, directory: Path) -> "FeatureState":
        """The state that was saved. Raises DataError when a file is missing or is not the one that was saved."""
        path = directory / "state.json"
        value = read_json(path)
        schema = check_schema(Schema.model_validate(value["schema"]), path)
        frames = {}
        for name, sha256 in value["sha256"].items():
            file = directory / f"{name}.parquet"
            if not file.exists() or sha256_file(file) != sha256:
                raise DataError(
                    f"{file} is missing or not the file that was saved with {path}; run the features stage again"
                )
            frames[name] = pl.read_parquet(file)
        vocabularies = {
            name: frames[f"vocabulary/{name}"]["value"] for name in schema.categorical_features
        }
        fitted = {
            name.removeprefix("fitted/"): frame
            for name, frame in frames.items()
            if name.startswith("fitted/")
        }
        state = cls(schema, value["ids"], vocabularies, fitted)
        if state.fingerprint != value["fingerprint"]:
            raise DataError(
                f"{path}: fingerprint {value['fingerprint']} is not this state's, {state.fingerprint}; run the features stage again"
            )
        return state


def feature_value(feature: Feature, fitted: pl.DataFrame | None) -> pl.Expr:
    """A dense feature itself, or the value of a categorical one: null where missing."""
    return (
        feature.transform.expr(feature.of, fitted) if feature.transform else pl.col(feature.of[0])
    )


def stable_hash(value: pl.Expr) -> pl.Expr:
    """XXH64 with seed 0 of the value's text, u64; a null stays null."""
    hashed: pl.Expr = value.cast(pl.String).nchash.xxhash64()  # type: ignore[attr-defined]
    return hashed
