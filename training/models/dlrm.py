"""DLRM (Naumov et al. 2019, arXiv:1906.00091): single-device maths, equal to facebookresearch/dlrm.

Shapes: B batch, N dense features, F categorical features, F1 of them with one value, D embedding
dim.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from training.models.bags import Bag
from training.models.embeddings import Embeddings
from training.models.interaction import Interaction
from training.models.mlp import MLP
from training.models.standardise import Standardise


class DLRM(nn.Module):
    """Predicts the logit of a click from dense and categorical features.

    The bottom MLP turns the dense features into one vector of D, the embeddings turn each
    categorical feature into one, the interaction combines all these vectors, and the top MLP makes
    the logit.

    Args:
        embeddings: Turns ids (B, F) into vectors (B, F, D).
        bottom: N -> D, with a ReLU after the last layer; None if there are no dense features.
        interaction: Turns the vectors into (B, interaction.num_outputs).
        top: interaction.num_outputs -> 1.
    """

    def __init__(
        self, embeddings: Embeddings, bottom: MLP | None, interaction: Interaction, top: MLP
    ) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.bottom = bottom
        self.interaction = interaction
        self.top = top
        self.standardise = Standardise(bottom.num_inputs if bottom is not None else 0)

    def forward(self, dense_BN: Tensor, ids_BF: Tensor, bags: Sequence[Bag] = ()) -> Tensor:
        """Return the logits of a batch; the click probability is their sigmoid.

        Args:
            dense_BN: Dense features, float32.
            ids_BF: Ids of the categorical features with one value, (B, F1), int32 or int64, from 0
                in each feature's table.
            bags: The lists of each other categorical feature.

        Returns:
            Logits (B,), float32.
        """
        vectors_BFD = self.categorical_vectors(ids_BF, bags)
        return self.combine(self.bottom_vector(dense_BN), vectors_BFD)

    def logits(self, dense_BN: Tensor, rows: Sequence[Tensor], bags: Sequence[Bag] = ()) -> Tensor:
        """Return the logits (B,) for rows that `embeddings.lookup` has returned.

        A training step calls this instead of `forward`, because it needs the gradients of the rows.
        """
        vectors_BFD = self.embeddings.vectors(rows, bags)
        return self.combine(self.bottom_vector(dense_BN), vectors_BFD)

    def categorical_vectors(self, ids_BF: Tensor, bags: Sequence[Bag] = ()) -> Tensor:
        """Return the vectors (B, F, D) of the categorical features; arguments as of `forward`."""
        rows = self.embeddings.lookup(self.embeddings.selections(ids_BF, bags))
        return self.embeddings.vectors(rows, bags)

    def bottom_vector(self, dense_BN: Tensor) -> Tensor | None:
        """Return the vector (B, D) of the dense features; None if there are none."""
        return None if self.bottom is None else self.bottom(self.standardise(dense_BN))

    def combine(self, bottom_BD: Tensor | None, vectors_BFD: Tensor) -> Tensor:
        """Return the logits (B,) for the vectors of the dense and of the categorical features."""
        logits_B1: Tensor = self.top(self.interaction(bottom_BD, vectors_BFD))
        return logits_B1.squeeze(1)
