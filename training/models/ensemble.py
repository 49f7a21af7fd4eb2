"""An ensemble: several models that predict as one, by the mean of their logits.

Shapes: B batch, N dense features, F1 categorical features with one value.
"""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from training.models.bags import Bag
from training.models.dlrm import DLRM


class Ensemble(nn.Module):
    """Models of the same inputs; the logit of a row is the mean of their logits.

    Args:
        members: The models, at least one; each may be an ensemble itself.
    """

    def __init__(self, members: Iterable[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, dense_BN: Tensor, ids_BF: Tensor, bags: Sequence[Bag] = ()) -> Tensor:
        """Return the logits of a batch, (B,) float32; the arguments are those of `DLRM`."""
        return mean_logits(member(dense_BN, ids_BF, bags) for member in self.members)


def mean_logits(logits: Iterable[Tensor]) -> Tensor:
    """Return the mean of the logits (B,) of several models."""
    # One after another: a reduction may add up in an order that depends on the row's position.
    first_B, *others = logits
    total_B: Tensor = sum(others, first_B)
    return total_B / (1 + len(others))


def members_of(model: DLRM | Ensemble) -> list[DLRM]:
    """Return the models of an ensemble; a DLRM is its own only member."""
    if isinstance(model, DLRM):
        return [model]
    return [member for member in model.members if isinstance(member, DLRM)]
