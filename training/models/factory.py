"""Builds a DLRM from the `model` section of params.yaml.

Shapes: F categorical features, N dense features, D embedding dim.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from common.config import model as model_params
from common.config.model import Model
from features.schema.check_params import check_interaction
from training.models.cross import CrossInteraction
from training.models.dlrm import DLRM
from training.models.embedding_tables import EmbeddingTables, MakeTables, Tables
from training.models.embeddings import Embeddings, FullTables
from training.models.interaction import CatInteraction, DotInteraction, Interaction
from training.models.mixed_dim import MixedDimTables
from training.models.mlp import MLP
from training.models.quotient_remainder import QuotientRemainderTables


def build_model(
    params: Model,
    cardinalities: Sequence[int],
    num_dense: int,
    generator: torch.Generator,
    make_tables: MakeTables = EmbeddingTables,
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

    Raises:
        ConfigError: There are too few features for the interaction.
    """
    D = params.embedding_dim
    embeddings = make_embeddings(params.tables, cardinalities, D, generator, make_tables)
    bottom = (
        MLP([num_dense, *params.bottom_mlp, D], generator, relu_last=True) if num_dense else None
    )
    interaction = _make_interaction(
        params.interaction, len(cardinalities), D, bottom is not None, generator
    )
    top = MLP([interaction.num_outputs, *params.top_mlp, 1], generator, relu_last=False)
    return DLRM(embeddings, bottom, interaction, top)


class Group(NamedTuple):
    """Tables of one dim, which one `Tables` holds."""

    cardinalities: Sequence[int]
    embedding_dim: int


def groups_of(params: Model, cardinalities: Sequence[int]) -> list[Group]:
    """Return the groups of tables of a model, in the order in which `build_model` makes them.

    No memory is allocated for the rows.
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
        params.tables, cardinalities, params.embedding_dim, torch.Generator(), record_group
    )
    return groups


def make_embeddings(
    params: model_params.Tables,
    cardinalities: Sequence[int],
    embedding_dim: int,
    generator: torch.Generator,
    make_tables: MakeTables,
) -> Embeddings:
    """Make the embeddings that `model.tables` names.

    They are full tables too if no feature has more values than the threshold of another kind.
    """
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
