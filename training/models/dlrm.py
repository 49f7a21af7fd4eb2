"""DLRM (Naumov et al. 2019), single-device maths with facebookresearch/dlrm's semantics.

Shapes: B batch, N dense columns, F categorical fields, D embedding dim.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from training.models.embeddings import Embeddings
from training.models.interaction import Interaction
from training.models.mlp import MLP
from training.models.standardise import Standardise


class DLRM(nn.Module):
    """A click's logit from dense columns and categorical ids: bottom MLP and table rows, their interaction, top MLP.

    bottom: N -> D with a ReLU behind it; None where there are no dense columns. top: interaction.num_outputs -> 1.
    """

    def __init__(
        self, embeddings: Embeddings, bottom: MLP | None, interaction: Interaction, top: MLP
    ) -> None:
        super().__init__()
        self.embeddings, self.bottom, self.interaction, self.top = (
            embeddings,
            bottom,
            interaction,
            top,
        )
        self.standardise = Standardise(bottom.num_inputs if bottom is not None else 0)

    def forward(self, dense_BN: Tensor, ids_BF: Tensor) -> Tensor:
        """Logits, shape (B,); the click probability is their sigmoid. dense_BN float, ids_BF int32 or int64, local to each column."""
        return self.logits(dense_BN, self.embeddings.look_up(self.embeddings.ids(ids_BF)))

    def logits(self, dense_BN: Tensor, rows: Sequence[Tensor]) -> Tensor:
        """The same from table rows already looked up, so that a training step can take their gradient."""
        rows_BFD = self.embeddings.combine(rows)
        bottom_BD = self.bottom(self.standardise(dense_BN)) if self.bottom is not None else None
        logits_B1: Tensor = self.top(self.interaction(bottom_BD, rows_BFD))
        return logits_B1.squeeze(1)
