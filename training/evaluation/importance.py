"""How much each column matters: permutation importance on validation rows.

The importance of a column is the rise of the logloss when each row gets the column's value of
another row (Breiman 2001, "Random Forests", section 10). It says what this model takes from the
column. It does not say what a model that was trained without the column would lose: another column
may know the same.

Shapes: B rows of a block, F categorical features that the model has, D embedding dim.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from common.artifact import Artifact
from common.config.model import Full, Model, PerColumn
from common.config.yaml_text import flow
from training.evaluation.random_rows import random_rows
from training.inference.bundle import Bundle
from training.loop.batches import Rows
from training.models.dlrm import DLRM
from training.models.ensemble import mean_logits, members_of
from training.models.factory import groups_of, inputs_of

# Scores are rows times columns. They are so many, or as many as the split has rows if that is more:
# about a third of the time of the stage for a small log, and less for a large one.
SCORES = 240_000
MIN_ROWS, MAX_ROWS = 512, 100_000
BLOCK_ROWS = 4096
SEED = 1  # not a parameter, as that of the confidence intervals
LEFT_OUT_SHARES = (0.1, 0.2, 0.4)  # of the categorical columns


class Rise(NamedTuple):
    """The rise of the logloss of rows when some of their values are permuted.

    Attributes:
        mean: In nats.
        standard_error: Of the mean, from the differences of the rows.
    """

    mean: float
    standard_error: float


class Columns(NamedTuple):
    """Columns that are permuted together.

    Attributes:
        kind: `dense` or `categorical`.
        numbers: Their numbers among the columns of this kind that the model has.
    """

    kind: str
    numbers: list[int]


class ColumnImportance(NamedTuple):
    """The importance of a column.

    Attributes:
        column: The name of the feature.
        kind: `dense` or `categorical`.
        rise: The rise of the logloss.
    """

    column: str
    kind: str
    rise: Rise


class Subset(NamedTuple):
    """Categorical columns of low importance that a model may leave out.

    Attributes:
        columns: The names, the least important first.
        rise: The rise of the logloss when all of them are permuted together.
        table_share: The share of the numbers of all embedding tables that is saved.
        tables: The section `model.tables` that leaves them out, as YAML in one line.
    """

    columns: list[str]
    rise: Rise
    table_share: float
    tables: str


class Importance(NamedTuple):
    """The importance of all columns that the model has.

    Attributes:
        num_rows: The number of validation rows that it was measured on; 0 if the sample weights
            of all random rows are 0, and there is nothing to measure.
        columns: The columns, the most important first.
        subsets: Columns to leave out; empty if `model.tables` cannot leave out columns.
    """

    num_rows: int
    columns: list[ColumnImportance]
    subsets: list[Subset]


def measure_importance(bundle: Bundle, features: Artifact) -> Importance:
    """Measure the importance of each column on random validation rows.

    The same inputs give the same numbers. Memory does not grow with the rows of the split.

    Args:
        bundle: The model.
        features: artifacts/features; its validation rows do not all have the sample weight 0.
    """
    schema, members = bundle.state.schema, members_of(bundle.model)
    params = Model.model_validate(bundle.manifest.params["model"])
    dims = params.column_dims(schema.categorical_features)
    categorical = [name for name, d in zip(schema.categorical_features, dims, strict=True) if d]
    dense = schema.dense_features
    num_rows = _num_rows(features, len(dense) + len(categorical))
    rows = random_rows(features, schema, "valid", num_rows, SEED)
    if rows.weights is not None and not rows.weights.any():
        return Importance(0, [], [])
    kinds = {"dense": dense, "categorical": categorical}
    names = [(kind, k, name) for kind, of_kind in kinds.items() for k, name in enumerate(of_kind)]
    rises = _rises(members, rows, [Columns(kind, [k]) for kind, k, _ in names])
    of_columns = [
        ColumnImportance(name, kind, rise)
        for (kind, _, name), rise in zip(names, rises, strict=True)
    ]
    of_columns.sort(key=lambda one: -one.rise.mean)
    ascending = [one.column for one in reversed(of_columns) if one.kind == "categorical"]
    sets = _least_important(ascending) if isinstance(params.tables, Full | PerColumn) else []
    numbers = [Columns("categorical", list(map(categorical.index, names))) for names in sets]
    return Importance(
        len(rows.labels),
        of_columns,
        [
            Subset(names, rise, *_without(params, bundle, names))
            for names, rise in zip(sets, _rises(members, rows, numbers), strict=True)
        ],
    )


def _num_rows(features: Artifact, num_columns: int) -> int:
    """Return how many validation rows are scored for each column, fewer of many columns."""
    num_valid = features.read_json("data.json")["splits"]["valid"]["num_rows"]
    num_scores = max(SCORES, num_valid)
    return int(min(MAX_ROWS, max(MIN_ROWS, num_scores // max(1, num_columns))))


def _least_important(ascending: Sequence[str]) -> list[list[str]]:
    """Return sets of the least important columns, of which some column is left each time."""
    sizes = {max(1, round(share * len(ascending))) for share in LEFT_OUT_SHARES}
    return [list(ascending[:size]) for size in sorted(sizes) if size < len(ascending)]


def _without(params: Model, bundle: Bundle, names: Sequence[str]) -> tuple[float, str]:
    """Return the share of table numbers that a model without some columns saves, and its tables."""
    dims = params.tables.dims if isinstance(params.tables, PerColumn) else {}
    tables = PerColumn(name="per_column", dims=dims | dict.fromkeys(names, 0))
    state = bundle.state
    before, after = (
        sum(
            sum(group.cardinalities) * group.embedding_dim
            for group in groups_of(each, state.cardinalities, inputs_of(state.schema))
        )
        for each in (params, params.model_copy(update={"tables": tables}))
    )
    return 1 - after / before, flow(tables.model_dump())


@torch.inference_mode()
def _rises(members: Sequence[DLRM], rows: Rows, permuted: Sequence[Columns]) -> list[Rise]:
    """Return the rise of the logloss for each of several sets of columns that are permuted.

    The rows are in random order, so "another row" is the next one of its block. A list stays whole.

    Args:
        members: The models of an ensemble, or one.
        rows: The rows, in random order.
        permuted: The sets.
    """
    starts = range(0, len(rows.labels), BLOCK_ROWS)
    blocks = [rows.part(start, min(start + BLOCK_ROWS, len(rows.labels))) for start in starts]
    of_blocks = [_differences(members, block, permuted) for block in blocks]
    weights_R = torch.ones(len(rows.labels)) if rows.weights is None else rows.weights
    return [
        _mean(torch.cat(differences), weights_R.double())
        for differences in zip(*of_blocks, strict=True)
    ]


def _differences(members: Sequence[DLRM], block: Rows, permuted: Sequence[Columns]) -> list[Tensor]:
    """Return the rise of the logloss of each row, (B,) float64, for each set of columns.

    What the columns do not change is computed once: a categorical feature is one vector of the row.
    """
    bottoms = [member.bottom_vector(block.dense) for member in members]
    vectors = [member.categorical_vectors(block.ids, block.bags) for member in members]

    def losses(bottoms: Sequence[Tensor | None], vectors: Sequence[Tensor]) -> Tensor:
        logits_B = mean_logits(
            member.combine(bottom_BD, vectors_BFD)
            for member, bottom_BD, vectors_BFD in zip(members, bottoms, vectors, strict=True)
        )
        return binary_cross_entropy_with_logits(logits_B, block.labels, reduction="none").double()

    before_B = losses(bottoms, vectors)
    differences = []
    for kind, columns in permuted:
        if kind == "dense":
            dense_BN = _with_next_row(block.dense, columns)
            changed = losses([member.bottom_vector(dense_BN) for member in members], vectors)
        else:
            changed = losses(bottoms, [_with_next_row(each, columns) for each in vectors])
        differences.append(changed - before_B)
    return differences


def _with_next_row(values: Tensor, columns: Sequence[int]) -> Tensor:
    """Return a copy in which some columns have the values of the next row."""
    changed = values.clone()
    changed[:, columns] = values[:, columns].roll(1, dims=0)
    return changed


def _mean(differences_R: Tensor, weights_R: Tensor) -> Rise:
    total = weights_R.sum()
    mean = (weights_R * differences_R).sum() / total
    error = (weights_R * (differences_R - mean)).square().sum().sqrt() / total
    return Rise(mean.item(), error.item())
