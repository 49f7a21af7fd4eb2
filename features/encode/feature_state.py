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

hash(v) is XXH64 with seed 0 of the value as UTF-8 text. Integers are decimal digits; a hex32 value
is an integer, so 0000000a is "10". docs/hash.md has test vectors.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import polars as pl
import polars_hash  # noqa: F401  (adds the namespace nchash to expressions)

from common.files import DataError, read_json, sha256_file, write_json
from common.hashed_files import find_mismatch
from common.parquet import ParquetWriter, read_parquet
from features.encode.id_map import IdMap
from features.schema.schema import Feature, Schema, check_schema

UNSEEN = 0
MISSING = 1
NUM_RESERVED = 2  # UNSEEN and MISSING, of the layout `frequency`

Layout = Literal["frequency", "appearance", "padded"]


@dataclass(frozen=True)
class FeatureState:
    """Everything that was fitted on the training rows.

    Attributes:
        schema: The schema, with the transforms that the features really have.
        layout: How ids are numbered (the table at the top of this module).
        vocabularies: For each categorical feature its values, in id order; empty under the policy
            `hash`.
        fitted: For each feature with a transform that is fitted, the table that it was fitted to.
    """

    schema: Schema
    layout: Layout
    vocabularies: dict[str, pl.Series]
    fitted: dict[str, pl.DataFrame]

    @property
    def cardinalities(self) -> list[int]:
        """Number of ids of each categorical feature, (F,), in the schema's order."""
        num_reserved = {"frequency": NUM_RESERVED, "appearance": 1, "padded": 2}[self.layout]
        return [
            num_reserved + policy.buckets + len(self.vocabularies[name])
            for name, policy in self.schema.policies.items()
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
        num_values = len(self.vocabularies[name])
        if self.layout == "padded":
            return {num_values + 1: "unseen, rare or missing"}
        return {num_values: "unseen or rare"}

    def encode(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Encode typed rows. The result of a row does not depend on other rows.

        Args:
            rows: The typed columns of the schema, B rows, with or without the label.

        Returns:
            The label (u8) if `rows` has it, N dense features (f32), and F ids (i32); B rows.
        """
        label = [self.schema.label] if self.schema.label in rows.columns else []
        encoded = {feature.name: self._encoded(feature) for feature in self.schema.features}
        names = [*self.schema.dense_features, *self.schema.categorical_features]
        return rows.select(*label, *(encoded[name].alias(name) for name in names))

    def _encoded(self, feature: Feature) -> pl.Expr:
        value = feature_value(feature, self.fitted.get(feature.name))
        if feature.policy is None:
            return value
        if self.layout == "appearance":
            value = value.fill_null("" if self.vocabularies[feature.name].dtype == pl.String else 0)
        ids = value.map_batches(self._id_maps[feature.name].ids_of, pl.Int32)
        if not feature.policy.buckets:
            return ids
        bucket = (NUM_RESERVED + stable_hash(value) % feature.policy.buckets).cast(pl.Int32)
        return pl.when(ids == UNSEEN).then(bucket).otherwise(ids)

    @cached_property
    def _id_maps(self) -> dict[str, IdMap]:
        return {
            name: self._id_map(values, self.schema.policies[name].buckets)
            for name, values in self.vocabularies.items()
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

        Args:
            sizes: The number of values of each vocabulary in that version, (F,).
        """
        vocabularies = {
            name: values[:size]
            for (name, values), size in zip(self.vocabularies.items(), sizes, strict=True)
        }
        return replace(self, vocabularies=vocabularies)

    @property
    def output_columns(self) -> pl.Schema:
        """The names and dtypes of the columns that `encode` makes of labelled rows."""
        dense = dict.fromkeys(self.schema.dense_features, pl.Float32)
        ids = dict.fromkeys(self.schema.categorical_features, pl.Int32)
        return pl.Schema({self.schema.label: pl.UInt8, **dense, **ids})

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
        vocabularies = {
            f"vocabulary/{name}": values.to_frame("value")
            for name, values in self.vocabularies.items()
        }
        return vocabularies | {f"fitted/{name}": frame for name, frame in self.fitted.items()}

    def _schema_json(self) -> dict[str, Any]:
        """Return the schema without the section that only the generator of the sample log reads."""
        return self.schema.model_dump(mode="json", exclude={"sample"})

    def save(self, directory: Path) -> None:
        """Write the state into a folder.

        The folder has state.json, vocabulary/FEATURE.parquet with the column `value` in id order,
        and fitted/FEATURE.parquet.
        """
        sha256_by_name = {}
        for name, frame in self._frames().items():
            path = directory / f"{name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            with ParquetWriter(path, frame.schema) as writer:
                writer.write(frame)
            sha256_by_name[name] = sha256_file(path)
        write_json(
            directory / "state.json",
            {
                "schema": self._schema_json(),
                "ids": self.layout,  # as the parameter features.ids
                "fingerprint": self.fingerprint,
                "sha256": sha256_by_name,
            },
        )

    @classmethod
    def load(cls, directory: Path) -> "FeatureState":
        """Read a state that was saved.

        Raises:
            DataError: A file is missing, or is not the file that was saved.
        """
        path = directory / "state.json"
        value = read_json(path)
        schema = check_schema(Schema.model_validate(value["schema"]), path)
        recorded = {f"{name}.parquet": sha256 for name, sha256 in value["sha256"].items()}
        if mismatch := find_mismatch(directory, recorded):
            raise DataError(
                f"{mismatch.path} is missing or not the file that was saved with {path};"
                " run the features stage again"
            )
        frames = {name: read_parquet(directory / f"{name}.parquet") for name in value["sha256"]}
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
                f"{path}: the fingerprint of this state is {state.fingerprint}, but"
                f" {value['fingerprint']} was saved; run the features stage again"
            )
        return state


def feature_value(feature: Feature, fitted: pl.DataFrame | None) -> pl.Expr:
    """Return the value of a feature before it gets an id; null where it is missing.

    For a dense feature, this is the model input itself.

    Args:
        feature: The feature.
        fitted: The table that its transform was fitted to; None if it is not fitted.
    """
    if feature.transform is None:
        return pl.col(feature.of[0])
    return feature.transform.expr(feature.of, fitted)


def stable_hash(value: pl.Expr) -> pl.Expr:
    """Return XXH64 with seed 0 of each value's text (u64). A null stays null."""
    hashes: pl.Expr = value.cast(pl.String).nchash.xxhash64()  # type: ignore[attr-defined]
    return hashes
