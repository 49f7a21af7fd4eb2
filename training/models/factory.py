"""params.yaml's `model` section to a DLRM."""

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
    """A DLRM for columns of these cardinalities, every initial weight drawn from `generator`.

    The MLPs' outer widths follow: bottom N -> ... -> D, top: what the interaction gives -> ... -> 1. Without dense columns there is no
    bottom MLP, whatever its widths. Raises ConfigError for an interaction that these columns are too few for.
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
    """Tables of one dim."""

    cardinalities: Sequence[int]
    embedding_dim: int


def groups_of(params: Model, cardinalities: Sequence[int]) -> list[Group]:
    """The groups of tables of a model, in the order in which it makes them; no row is allocated."""
    groups = []

    def note(
        cardinalities: Sequence[int],
        embedding_dim: int,
        generator: torch.Generator,
        bounds: Sequence[float] | None = None,
    ) -> Tables:
        groups.append(Group(list(cardinalities), embedding_dim))
        return Tables(cardinalities, embedding_dim, generator, bounds)

    make_embeddings(params.tables, cardinalities, params.embedding_dim, torch.Generator(), note)
    return groups


def make_embeddings(
    params: model_params.Tables,
    cardinalities: Sequence[int],
    D: int,
    generator: torch.Generator,
    make_tables: MakeTables,
) -> Embeddings:
    """Full tables also where no column is above the threshold of the others."""
    if params.name == "full" or not composes(params, cardinalities):
        return FullTables(cardinalities, D, generator, make_tables)
    if params.name == "mixed_dim":
        return MixedDimTables(
            cardinalities, D, generator, make_tables, alpha=params.alpha, threshold=params.threshold
        )
    return QuotientRemainderTables(
        cardinalities,
        D,
        generator,
        make_tables,
        operation=params.operation,
        collisions=params.collisions,
        threshold=params.threshold,
    )


def composes(
    params: model_params.QuotientRemainder | model_params.MixedDim, cardinalities: Sequence[int]
) -> bool:
    """Whether any column has more values than the threshold."""
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
