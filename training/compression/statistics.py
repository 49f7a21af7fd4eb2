"""Statistics of a model on its features: how often each table row is read, activations of units.

Shapes: R rows of all tables of a group, B batch, U units of a hidden layer.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.artifact import Artifact
from features.encode.feature_state import FeatureState
from features.schema.schema import Schema
from training.inference.score import BATCH_ROWS
from training.loop.batches import Batches, Rows
from training.models.dlrm import DLRM
from training.models.embedding_tables import Tables
from training.models.mlp import MLP, apply_layers


@dataclass(frozen=True)
class RowReads:
    """How the rows of a group of tables are read by the training rows.

    Attributes:
        counts: How often each row is read, int64 (R,).
        is_shared: Whether a row belongs to an id that many values share, bool (R,): that of unseen
            values, or that of missing ones.
    """

    counts: Tensor
    is_shared: Tensor


@dataclass(frozen=True)
class Activations:
    """The activations of the units of a hidden layer, over the validation rows.

    Attributes:
        mean: float64 (U,).
        std: float64 (U,).
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]


def batches_of(features: Artifact, schema: Schema, split: str) -> Iterator[Rows]:
    """Yield the rows of a split in order, in batches."""
    batches = Batches(features.paths_in(split), schema, batch_size=BATCH_ROWS)
    for batch in batches.steps(0, batches.steps_per_epoch):
        yield batch.rows


def count_reads(
    model: DLRM, state: FeatureState, features: Artifact, advance: Callable[[int], None]
) -> list[RowReads]:
    """Count how often the training rows read each row of each group of tables.

    The rows are counted in the feature files. The feature state knows counts of the values of a
    vocabulary alone, as they were when it was fitted, and none of hash buckets.

    Args:
        model: The model.
        state: The feature state.
        features: artifacts/features.
        advance: Receives the number of rows that were read.
    """
    groups = groups_of_tables(model)
    counts = [torch.zeros(tables.num_rows, dtype=torch.int64) for tables in groups]
    for rows in batches_of(features, state.schema, "train"):
        selections = model.embeddings.selections(rows.ids, rows.bags)
        for of_group, tables, selection in zip(counts, groups, selections, strict=True):
            if isinstance(selection, Tensor):
                read = [tables.row_numbers(selection).flatten()]
            else:
                read = [
                    tables.row_numbers_of(one) for one in (*selection.columns, *selection.lists)
                ]
            for numbers in read:
                of_group += torch.bincount(numbers, minlength=tables.num_rows)
        advance(len(rows.labels))
    is_shared = _rows_of_shared_ids(model, state)
    return [RowReads(*pair) for pair in zip(counts, is_shared, strict=True)]


def groups_of_tables(model: DLRM) -> list[Tables]:
    """Return the groups of embedding tables of a model."""
    return [tables for tables in model.embeddings.tables if isinstance(tables, Tables)]


def _rows_of_shared_ids(model: DLRM, state: FeatureState) -> list[Tensor]:
    """Return `RowReads.is_shared` of each group."""
    groups, embeddings = groups_of_tables(model), model.embeddings
    is_shared = [torch.zeros(tables.num_rows, dtype=torch.bool) for tables in groups]
    schema = state.schema
    tables = list(schema.tables)
    for name in schema.categorical_features:
        table = tables.index(schema.table_of[name])
        ids = torch.tensor(list(state.shared_ids(name)))
        places = embeddings.places(table)
        if not places:  # the model leaves the feature out
            continue
        for (group, number), part in zip(places, embeddings.split_ids(table, ids), strict=True):
            is_shared[group][part + groups[group].spans[number][0]] = True
    return is_shared


def hidden_layers(mlp: MLP) -> list[nn.Linear]:
    """Return the layers of an MLP but its last one: their outputs are hidden units."""
    return [layer for layer in mlp if isinstance(layer, nn.Linear)][:-1]


def hidden_widths(mlp: MLP | None) -> list[int]:
    """Return the widths of the hidden layers of an MLP, if there is one."""
    return [] if mlp is None else [layer.out_features for layer in hidden_layers(mlp)]


def mlps_of(model: DLRM) -> dict[str, MLP]:
    """Return the MLPs of a model by their names."""
    return {name: mlp for name in ("bottom", "top") if (mlp := getattr(model, name)) is not None}


def measure_activations(
    members: Sequence[DLRM], schema: Schema, features: Artifact, advance: Callable[[int], None]
) -> list[dict[str, list[Activations]]]:
    """Measure the activations of the hidden layers of each MLP, over the validation rows.

    The sums are those of NumPy, whose order of additions does not depend on the number of threads.

    Args:
        members: The models of an ensemble, or one.
        schema: The columns of the features.
        features: artifacts/features.
        advance: Receives the number of rows that were scored.

    Returns:
        For each model the activations of each hidden layer, by the name of the MLP.
    """
    measured = [_Measured(model) for model in members]
    num_rows = 0
    with torch.inference_mode():
        for rows in batches_of(features, schema, "valid"):
            for each in measured:
                each.model(rows.dense, rows.ids, rows.bags)
            num_rows += len(rows.labels)
            advance(len(rows.labels))
    return [each.finish(num_rows) for each in measured]


class _Measured:
    """A model whose hidden layers are measured while it scores rows."""

    def __init__(self, model: DLRM) -> None:
        self.model = model
        self.sums = {
            name: [Sums(np.zeros(n), np.zeros(n)) for n in hidden_widths(mlp)]
            for name, mlp in mlps_of(model).items()
        }
        self.hooks = [
            mlp.register_forward_pre_hook(partial(_add_activations, self.sums[name]))
            for name, mlp in mlps_of(model).items()
        ]

    def finish(self, num_rows: int) -> dict[str, list[Activations]]:
        """Stop measuring, and return the activations over so many rows."""
        for hook in self.hooks:
            hook.remove()
        return {
            name: [each.activations(num_rows) for each in of_mlp]
            for name, of_mlp in self.sums.items()
        }


class Sums(NamedTuple):
    """The sums of the activations of the units of a layer, and of their squares, (U,)."""

    values: NDArray[np.float64]
    squares: NDArray[np.float64]

    def activations(self, num_rows: int) -> Activations:
        """Return the mean and the standard deviation."""
        mean_U = self.values / num_rows
        variance_U = self.squares / num_rows - np.square(mean_U)
        return Activations(mean_U, np.sqrt(np.maximum(variance_U, 0)))


def _add_activations(sums: Sequence[Sums], mlp: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Add the activations of a batch to the sums of each hidden layer; a forward hook."""
    assert isinstance(mlp, MLP)
    (x_BU,) = inputs
    for of_layer, layer in zip(sums, hidden_layers(mlp), strict=True):
        x_BU = apply_layers(x_BU, [layer], relu_last=True, precision="fp32")
        values_BU = x_BU.numpy().astype(np.float64)
        of_layer.values[:] += values_BU.sum(axis=0)
        of_layer.squares[:] += np.square(values_BU).sum(axis=0)
