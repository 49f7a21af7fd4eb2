"""The model and the rows that every contender trains: the Kaggle architecture of DLRM.

The rows have the popularity laws of the sample log.
"""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl

from common.artifact import write_manifest
from features.sample.values import ValueSampler
from features.schema.schema import Schema, load_schema

SCHEMA = "criteo"
# of the full Kaggle log, in facebookresearch/dlrm's vocabulary: 33,762,577 rows
CARDINALITIES = (
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194),
    *(27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
)
SMALL_CARDINALITY = 1000  # the largest with --small
BOTTOM_MLP = (512, 256, 64)
TOP_MLP = (512, 256)
LR = 0.1
ROW_GROUP_ROWS = 1 << 16  # as in the files of the features stage
WINDOW_ROWS = {"cpu": 1 << 15, "cuda": 1 << 20}  # of a contender's turn
VALID_ROWS = 1024


@dataclass(frozen=True)
class Work:
    """The arguments of a contender's process. Paths are strings, so that they can be sent as JSON.

    Attributes:
        root: The rows, as the features stage writes them; in reference/ as facebookresearch/dlrm
            does.
        num_rows: Rows of an epoch.
        batch_size: Rows of a batch.
        threads: CPU threads.
        dim: Embedding dim.
        small: Whether tables have SMALL_CARDINALITY rows at most.
        device: `cpu` or `cuda`.
        reference: A checkout of facebookresearch/dlrm.
        fuxictr: A checkout of FuxiCTR.
    """

    root: str
    num_rows: int
    batch_size: int
    threads: int
    dim: int = 16
    small: bool = False
    device: str = "cpu"
    reference: str | None = None
    fuxictr: str | None = None

    @classmethod
    def from_json(cls, text: str) -> "Work":
        """Undo `to_json`."""
        return cls(**json.loads(text))

    def to_json(self) -> str:
        """Return all attributes as JSON."""
        return json.dumps(asdict(self))

    @cached_property
    def schema(self) -> Schema:
        """The schema of the rows."""
        return load_schema(SCHEMA)

    @property
    def cardinalities(self) -> list[int]:
        """Rows of each table."""
        return [min(rows, SMALL_CARDINALITY) if self.small else rows for rows in CARDINALITIES]

    @property
    def window_steps(self) -> int:
        """Steps of a window, unless it is a whole epoch."""
        return min(
            max(1, WINDOW_ROWS[self.device] // self.batch_size), self.num_rows // self.batch_size
        )

    @property
    def num_vectors(self) -> int:
        """Vectors that the interaction combines."""
        return len(CARDINALITIES) + 1

    @property
    def bottom_widths(self) -> list[int]:
        """Inputs and outputs of the layers of the bottom MLP."""
        return [len(self.schema.dense_features), *BOTTOM_MLP, self.dim]

    @property
    def top_widths(self) -> list[int]:
        """Inputs and outputs of the layers of the top MLP."""
        return [self.dim + self.num_vectors * (self.num_vectors - 1) // 2, *TOP_MLP, 1]

    @property
    def flop_per_row(self) -> int:
        """FLOP of the matrix products of the forward and backward pass.

        A weight takes 2 in the forward pass, 2 for its gradient and 2 for the gradient of its
        input, which the first layer of the bottom MLP does not need. The interaction multiplies V x
        D by D x V in the forward pass and V x V by V x D in the backward pass.
        """
        weights = [
            [num_in * num_out for num_in, num_out in pairwise(widths)]
            for widths in (self.bottom_widths, self.top_widths)
        ]
        interaction = self.num_vectors**2 * self.dim
        return 6 * sum(map(sum, weights)) - 2 * weights[0][0] + 4 * interaction

    @property
    def table_bytes_per_row(self) -> int:
        """Bytes of embeddings that a step moves at least.

        A row is read, its gradient is written and read, and the row is read and written again.
        """
        return 5 * len(CARDINALITIES) * self.dim * 4


def write_rows(work: Work) -> None:
    """Write the same rows as Parquet, like the features stage, and as .npz, like the reference.

    Both are trained on all rows. The reference keeps its seventh day for the test; that day repeats
    the first rows.
    """
    random = np.random.default_rng(0)
    schema, root, num_rows = work.schema, Path(work.root), work.num_rows
    if schema.sample is None:
        raise ValueError(f"schema {SCHEMA} has no sample section to draw values from")
    rows = ValueSampler(schema, schema.sample).day(0).draw(num_rows, random)
    dense_RN = np.column_stack(
        [np.where(rows.missing.get(name, False), 0, rows.dense[name]) for name in schema.dense]
    ).clip(min=0)
    ids_RF = np.column_stack(
        [
            rows.ranks[name] % size
            for name, size in zip(schema.categorical, work.cardinalities, strict=True)
        ]
    )
    labels_R = (random.random(num_rows) < schema.sample.label_rate).astype(np.uint8)
    _write_ours(root, schema, dense_RN, ids_RF, labels_R)
    _write_reference(root / "reference", work, dense_RN, ids_RF, labels_R)


def _write_ours(
    root: Path, schema: Schema, dense_RN: np.ndarray, ids_RF: np.ndarray, labels_R: np.ndarray
) -> None:
    dense = pl.DataFrame(np.log1p(dense_RN).astype(np.float32), schema=schema.dense_features)
    ids = pl.DataFrame(ids_RF.astype(np.int32), schema=schema.categorical_features)
    rows = pl.concat([pl.DataFrame({schema.label: labels_R}), dense, ids], how="horizontal")
    for split, part in (("train", rows), ("valid", rows.head(VALID_ROWS))):
        (root / split).mkdir(parents=True)
        part.write_parquet(root / split / "day_000.parquet", row_group_size=ROW_GROUP_ROWS)
    write_manifest(root, {})


def _write_reference(
    directory: Path, work: Work, dense_RN: np.ndarray, ids_RF: np.ndarray, labels_R: np.ndarray
) -> None:
    """Write dtypes and memory order as its data_utils.py does: ids as float64, column by column."""
    directory.mkdir()
    days, num_rows = 7, len(labels_R)
    per_day = [len(part) for part in np.array_split(labels_R, days - 1)] + [VALID_ROWS]
    order = np.concatenate([np.arange(num_rows), np.arange(VALID_ROWS) % num_rows])
    np.savez(directory / "train_day_count.npz", total_per_file=np.array(per_day))
    np.savez(
        directory / "processed.npz",
        X_int=dense_RN[order].astype(np.int32),
        X_cat=np.asfortranarray(ids_RF[order].astype(np.float64)),
        y=labels_R[order].astype(np.int32),
        counts=np.array(work.cardinalities, np.int32),
    )
