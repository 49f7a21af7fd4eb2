"""params.yaml's `model` section to a DLRM."""

from collections.abc import Sequence

import torch

from features.params import Model
from training.models.dlrm import DLRM
from training.models.embeddings import FullTables
from training.models.interaction import DotInteraction
from training.models.mlp import MLP


def build_model(params: Model, cardinalities: Sequence[int], num_dense: int, generator: torch.Generator) -> DLRM:
    """A DLRM for columns of these cardinalities, every initial weight drawn from `generator`.

    The MLPs' outer widths follow: bottom N -> ... -> D, top: what the interaction gives -> ... -> 1.
    """
    D = params.embedding_dim
    embeddings = FullTables(cardinalities, D, generator)
    bottom = MLP([num_dense, *params.bottom_mlp, D], generator, relu_last=True) if num_dense else None
    interaction = DotInteraction(len(cardinalities), D, has_bottom=bottom is not None)
    top = MLP([interaction.num_outputs, *params.top_mlp, 1], generator, relu_last=False)
    return DLRM(embeddings, bottom, interaction, top)
