"""Typed Parquet to training-ready Parquet: fit the state on the training rows, then transform every row with it."""

from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl

from features.files import read_json, replaced, write_json
from features.ingest import PARQUET, used_shards
from features.params import Params
from features.parquet import Writer
from features.progress import Progress
from features.schema import Schema, load_schema
from features.split import SPLITS, Piece, day_bounds, split_pieces
from features.state import UNSEEN, FeatureState
from features.vocabulary import Vocabulary, fit_vocabulary

FEATURES = Path("artifacts/features")
ROW_GROUP_ROWS = 65_536
BATCH_ROWS = 4 * ROW_GROUP_ROWS  # rows in memory at a time


def build_features(params: Params, root: Path) -> None:
    """artifacts/parquet to artifacts/features: state/, SPLIT/day_NN.parquet (label u8, dense f32, ids i32) and data.json, the data's shape.

    Raises DataError when a split has no rows.
    """
    manifest = read_json(root / PARQUET / "manifest.json")
    schema = load_schema(manifest["schema"])
    shards = used_shards(root)
    rows = pl.scan_parquet([root / PARQUET / shard.parquet for shard in shards])
    bounds = day_bounds([shard.num_rows for shard in shards], params.data.days)
    pieces = split_pieces(bounds, params.features)
    vocabularies = _fit(rows, schema, params, pieces)
    state = FeatureState(schema, params.features.ids, {name: vocabulary.values for name, vocabulary in vocabularies.items()})
    shape = Shape(schema)
    with replaced(root / FEATURES) as scratch, Progress("features", bounds[-1], root) as progress:
        state.save(scratch / "state")
        for piece in pieces:
            target = scratch / piece.split / f"day_{piece.day:02d}.parquet"
            target.parent.mkdir(exist_ok=True)
            _write_piece(rows, piece, state, target, shape, progress)
        write_json(scratch / "data.json", shape.summary(manifest["num_bad_rows"], len(bounds) - 1, vocabularies, state))


def _fit(rows: pl.LazyFrame, schema: Schema, params: Params, pieces: list[Piece]) -> dict[str, Vocabulary]:
    """Vocabularies of the training rows; the appearance layout counts every row, as the reference does."""
    options = params.features
    num_train = max(piece.end for piece in pieces if piece.split == "train")
    fitted_on = rows if options.ids == "appearance" else rows.head(num_train)
    return {name: fit_vocabulary(fitted_on, name, options.ids, options.min_count) for name in schema.categorical}


def _write_piece(rows: pl.LazyFrame, piece: Piece, state: FeatureState, target: Path, shape: "Shape", progress: Progress) -> None:
    with Writer(target, state.output_columns, ROW_GROUP_ROWS) as writer:
        for start in range(piece.start, piece.end, BATCH_ROWS):
            raw = rows.slice(start, min(BATCH_ROWS, piece.end - start)).collect()
            ready = state.transform(raw)
            shape.count(piece, raw, ready)
            writer.write(ready)
            progress.update(raw.height)


class Shape:
    """Counts of rows, clicks, nulls and unseen values, gathered while the rows pass by."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.rows: Counter[tuple[str, int]] = Counter()
        self.clicks: Counter[tuple[str, int]] = Counter()
        self.missing: Counter[str] = Counter()
        self.unseen: Counter[tuple[str, str]] = Counter()

    def count(self, piece: Piece, raw: pl.DataFrame, ready: pl.DataFrame) -> None:
        key = (piece.split, piece.day)
        self.rows[key] += raw.height
        self.clicks[key] += int(raw[self.schema.label].sum())
        self.missing.update(raw.null_count().row(0, named=True))
        unseen = ready.select((pl.col(self.schema.categorical) == UNSEEN).sum()).row(0, named=True)
        self.unseen.update({(piece.split, name): count for name, count in unseen.items()})

    def summary(self, num_bad_rows: int, num_days: int, vocabularies: dict[str, Vocabulary], state: FeatureState) -> dict[str, Any]:
        """data.json: rows and label rate per split and day; per column the shares (of rows) missing and unseen, distinct values and ids."""
        num_rows = self.rows.total()
        cardinality = dict(zip(self.schema.categorical, state.cardinalities, strict=True))
        rows_of = {split: sum(count for (of, _), count in self.rows.items() if of == split) for split in SPLITS}

        def unseen(split: str, name: str) -> float | None:
            # in the appearance layout, fitted on every row, no value is unseen
            return self.unseen[split, name] / rows_of[split] if name in cardinality and state.ids == "frequency" else None

        return {
            "num_rows": num_rows,
            "num_bad_rows": num_bad_rows,
            "splits": {
                split: {**self._totals(split, None), "days": sorted(day for of, day in self.rows if of == split)} for split in SPLITS
            },
            "days": [{"day": day, **self._totals(None, day)} for day in range(num_days)],
            "columns": [
                {
                    "name": name,
                    "kind": "categorical" if name in cardinality else "dense",
                    "missing": self.missing[name] / num_rows,
                    "distinct": vocabularies[name].num_distinct if name in cardinality else None,
                    "cardinality": cardinality.get(name),
                    "unseen_valid": unseen("valid", name),
                    "unseen_test": unseen("test", name),
                }
                for name in [*self.schema.dense, *self.schema.categorical]
            ],
        }

    def _totals(self, split: str | None, day: int | None) -> dict[str, float | None]:
        keys = [key for key in self.rows if split in (None, key[0]) and day in (None, key[1])]
        num_rows = sum(self.rows[key] for key in keys)
        return {"num_rows": num_rows, "label_rate": sum(self.clicks[key] for key in keys) / num_rows if num_rows else None}
