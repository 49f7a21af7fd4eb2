"""Builds a DLRM from the `model` section of params.yaml.

Shapes: F categorical features, N dense features, D embedding dim.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch

from common.config import model as model_params
from common.config.model import Model
from common.config.params import Params
from common.numbers import ceil_div
from features.encode.feature_state import FeatureState
from features.schema.check_params import check_interaction
from features.schema.schema import Schema
from training.models.cross import CrossInteraction
from training.models.dlrm import DLRM
from training.models.embedding_tables import EmbeddingTables, MakeTables, Tables
from training.models.embeddings import Embeddings, FullTables
from training.models.interaction import CatInteraction, DotInteraction, Interaction
from training.models.mixed_dim import MixedDimTables, column_dim
from training.models.mlp import MLP, set_precision
from training.models.per_column import PerColumnTables
from training.models.quotient_remainder import QuotientRemainderTables
from training.models.reads import CategoricalInputs

# Makes tables of a model whose weights are loaded next.
WITHOUT_ROWS: MakeTables = partial(EmbeddingTables, device="meta")


def build_model(
    params: Model,
    cardinalities: Sequence[int],
    num_dense: int,
    generator: torch.Generator,
    make_tables: MakeTables = EmbeddingTables,
    inputs: CategoricalInputs | None = None,
) -> DLRM:
    """Build a DLRM. Every initial weight is drawn from `generator`.

    The outer widths of the MLPs follow from the data: the bottom MLP is N -> ... -> D, and the top
    MLP starts with the outputs of the interaction and ends with 1. Without dense features there is
    no bottom MLP, whatever params.bottom_mlp says.

    Args:
        params: The `model` section.
        cardinalities: Number of ids of each categorical feature.
        num_dense: N.
        generator: A CPU generator.
        make_tables: Makes the embedding tables of one dim.
        inputs: The tables and lists of the features, and their names; None if each has one value
            and a table of its own, and `params` names none.

    Raises:
        ConfigError: There are too few features for the interaction.
    """
    D = params.embedding_dim
    dims = _feature_dims(params, len(cardinalities), inputs)
    embeddings = make_embeddings(
        params.tables,
        table_sizes(cardinalities, inputs),
        D,
        generator,
        make_tables,
        _table_dims(dims, inputs),
    )
    if inputs is not None:
        tables = [table if dim else None for table, dim in zip(inputs.tables, dims, strict=True)]
        embeddings.read_by(inputs._replace(tables=tables))
    bottom = (
        MLP([num_dense, *params.bottom_mlp, D], generator, relu_last=True) if num_dense else None
    )
    num_vectors = _num_kept(dims)
    interaction = _make_interaction(
        params.interaction, num_vectors, D, bottom is not None, generator
    )
    top = MLP([interaction.num_outputs, *params.top_mlp, 1], generator, relu_last=False)
    return DLRM(embeddings, bottom, interaction, top)


def inputs_of(schema: Schema) -> CategoricalInputs:
    """Return the tables, the lists and the names of the categorical features of a schema."""
    tables = list(schema.tables)
    features = [feature for feature in schema.features if feature.policy is not None]
    return CategoricalInputs(
        [tables.index(feature.table) for feature in features],
        [feature.list.pooling if feature.list else None for feature in features],
        [feature.name for feature in features],
    )


def _feature_dims(
    params: Model, num_features: int, inputs: CategoricalInputs | None
) -> Sequence[int]:
    """Return the dim of each categorical feature, 0 if the model leaves it out."""
    if params.tables.name != "per_column":
        return [params.embedding_dim] * num_features
    assert inputs is not None, "dims are chosen by the names of features"
    return params.column_dims(inputs.names)


def _table_dims(dims: Sequence[int], inputs: CategoricalInputs | None) -> Sequence[int]:
    """Return the dim of each table, from those of the features: 0 if all of them are left out."""
    if inputs is None:
        return dims
    of_tables: dict[int, int] = {}
    for table, dim in zip(inputs.tables, dims, strict=True):
        if table is not None:
            of_tables[table] = max(dim, of_tables.get(table, 0))
    return [of_tables[table] for table in range(len(of_tables))]


def _num_kept(dims: Sequence[int]) -> int:
    return sum(dim > 0 for dim in dims)


def table_sizes(cardinalities: Sequence[int], inputs: CategoricalInputs | None) -> list[int]:
    """Return the number of ids of each table.

    Args:
        cardinalities: Number of ids of each categorical feature.
        inputs: The table of each feature; None if each has one of its own.
    """
    if inputs is None:
        return list(cardinalities)
    sizes = {
        table: size
        for table, size in zip(inputs.tables, cardinalities, strict=True)
        if table is not None
    }
    return [sizes[table] for table in range(len(sizes))]


def num_weights(
    params: Model,
    cardinalities: Sequence[int],
    num_dense: int,
    inputs: CategoricalInputs | None = None,
) -> int:
    """Return the number of floats in the state of a model, without making it.

    A model with a width of 10^10 can so be refused before it takes memory.

    Args:
        params: The `model` section.
        cardinalities: Number of ids of each categorical feature.
        num_dense: N.
        inputs: As in `build_model`.
    """
    dims = _feature_dims(params, len(cardinalities), inputs)
    sizes = table_sizes(cardinalities, inputs)
    num_in_tables = _num_table_weights(
        params.tables, sizes, params.embedding_dim, _table_dims(dims, inputs)
    )
    return num_in_tables + num_dense_weights(params, cardinalities, num_dense, inputs)


def num_dense_weights(
    params: Model,
    cardinalities: Sequence[int],
    num_dense: int,
    inputs: CategoricalInputs | None = None,
) -> int:
    """Return `num_weights` without the rows of the embedding tables."""
    dims = _feature_dims(params, len(cardinalities), inputs)
    D, num_vectors = params.embedding_dim, _num_kept(dims) + (num_dense > 0)
    width = num_vectors * D
    num_interaction_weights, num_outputs = 0, width
    if params.interaction.name == "cross":
        rank = params.interaction.rank
        num_of_layer = (2 * rank + 1) * width if rank else (width + 1) * width
        num_interaction_weights = params.interaction.layers * num_of_layer
    elif params.interaction.name == "dot":
        num_outputs = num_vectors * (num_vectors - 1) // 2 + (D if num_dense else 0)
    bottom = [num_dense, *params.bottom_mlp, D] if num_dense else []
    top = [num_outputs, *params.top_mlp, 1]
    return (
        _num_projection_weights(params.tables, table_sizes(cardinalities, inputs), D)
        + sum((num_in + 1) * num_out for num_in, num_out in [*pairwise(bottom), *pairwise(top)])
        + num_interaction_weights
        + 2 * num_dense  # mean and std
    )


def _num_table_weights(
    params: model_params.Tables, cardinalities: Sequence[int], D: int, table_dims: Sequence[int]
) -> int:
    if params.name == "full" or params.name == "per_column":
        return sum(n * dim for n, dim in zip(cardinalities, table_dims, strict=True))
    if params.name == "mixed_dim":
        return sum(n * column_dim(n, D, params.alpha, params.threshold) for n in cardinalities)
    c, dim = params.collisions, D // 2 if params.operation == "concat" else D
    return sum((ceil_div(n, c) + c) * dim if n > params.threshold else n * D for n in cardinalities)


def _num_projection_weights(
    params: model_params.Tables, cardinalities: Sequence[int], D: int
) -> int:
    if params.name != "mixed_dim":
        return 0
    dims = [column_dim(n, D, params.alpha, params.threshold) for n in cardinalities]
    return sum(dim * D for dim in dims if dim < D)


def make_model(params: Params, state: FeatureState, make_tables: MakeTables) -> DLRM:
    """Make the model of params.yaml, with random weights that follow from `train.seed`."""
    generator = torch.Generator().manual_seed(params.train.seed)
    model = build_model(
        params.model,
        state.cardinalities,
        len(state.schema.dense_features),
        generator,
        make_tables,
        inputs_of(state.schema),
    )
    set_precision(model, params.train.precision)
    return model


class Group(NamedTuple):
    """Tables of one dim, which one `Tables` holds."""

    cardinalities: Sequence[int]
    embedding_dim: int


def groups_of(
    params: Model, cardinalities: Sequence[int], inputs: CategoricalInputs | None = None
) -> list[Group]:
    """Return the groups of tables of a model, in the order in which `build_model` makes them.

    No memory is allocated for the rows.

    Args:
        params: The `model` section.
        cardinalities: Number of ids of each categorical feature.
        inputs: As in `build_model`.
    """
    groups = []

    def record_group(
        cardinalities: Sequence[int],
        embedding_dim: int,
        generator: torch.Generator,
        bounds: Sequence[float] | None = None,
    ) -> Tables:
        groups.append(Group(list(cardinalities), embedding_dim))
        return Tables(cardinalities, embedding_dim, generator, bounds)

    make_embeddings(
        params.tables,
        table_sizes(cardinalities, inputs),
        params.embedding_dim,
        torch.Generator(),
        record_group,
        _table_dims(_feature_dims(params, len(cardinalities), inputs), inputs),
    )
    return groups


def groups_in_order(
    params: Model, cardinalities: Sequence[int], inputs: CategoricalInputs | None = None
) -> list[Group]:
    """Return the groups of tables in the order of `Embeddings.tables`, which names their weights.

    No memory is allocated for the rows. `quotient_remainder` makes the composed tables first, and
    has them after the full ones.

    Args:
        params: The `model` section.
        cardinalities: Number of ids of each categorical feature.
        inputs: As in `build_model`.
    """
    embeddings = make_embeddings(
        params.tables,
        table_sizes(cardinalities, inputs),
        params.embedding_dim,
        torch.Generator(),
        Tables,
        _table_dims(_feature_dims(params, len(cardinalities), inputs), inputs),
    )
    return [
        Group([end - start for start, end in tables.spans], tables.embedding_dim)
        for tables in embeddings.tables
        if isinstance(tables, Tables)
    ]


def make_embeddings(
    params: model_params.Tables,
    cardinalities: Sequence[int],
    embedding_dim: int,
    generator: torch.Generator,
    make_tables: MakeTables,
    table_dims: Sequence[int] = (),
) -> Embeddings:
    """Make the embeddings that `model.tables` names.

    They are full tables too if no table has more values than the threshold of another kind, or if
    all tables have the embedding dim.

    Args:
        params: The section `model.tables`.
        cardinalities: Number of ids of each table.
        embedding_dim: D.
        generator: Draws the initial weights.
        make_tables: Makes the tables of one dim.
        table_dims: The dim of each table, 0 if it is left out; for `per_column` only.
    """
    if params.name == "per_column":
        if any(dim != embedding_dim for dim in table_dims):
            return PerColumnTables(
                cardinalities, embedding_dim, generator, make_tables, dims=table_dims
            )
        return FullTables(cardinalities, embedding_dim, generator, make_tables)
    if params.name == "full" or not composes(params, cardinalities):
        return FullTables(cardinalities, embedding_dim, generator, make_tables)
    if params.name == "mixed_dim":
        return MixedDimTables(
            cardinalities,
            embedding_dim,
            generator,
            make_tables,
            alpha=params.alpha,
            threshold=params.threshold,
        )
    return QuotientRemainderTables(
        cardinalities,
        embedding_dim,
        generator,
        make_tables,
        operation=params.operation,
        collisions=params.collisions,
        threshold=params.threshold,
    )


def composes(
    params: model_params.QuotientRemainder | model_params.MixedDim, cardinalities: Sequence[int]
) -> bool:
    """Return whether any feature has more values than the threshold."""
    return max(cardinalities, default=0) > params.threshold


def _make_interaction(
    params: model_params.Interaction, F: int, D: int, has_bottom: bool, generator: torch.Generator
) -> Interaction:
    check_interaction(params, F, D, has_bottom)
    if params.name == "cat":
        return CatInteraction(F, D, has_bottom=has_bottom)
    if params.name == "cross":
        return CrossInteraction(F, D, params.layers, params.rank, generator, has_bottom=has_bottom)
    return DotInteraction(F, D, has_bottom=has_bottom)
