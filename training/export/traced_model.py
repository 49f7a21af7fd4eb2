"""The operators that a model consists of: PyTorch's, from encoded rows to click probabilities.

Shapes: B rows of a batch, N dense features, F categorical features.
"""

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from serving.runtime import DENSE, IDS
from training.kernels import choice
from training.models.dlrm import DLRM
from training.models.ensemble import Ensemble

BATCH = Dim("batch", min=1, max=1 << 20)
EXAMPLE_ROWS = 3  # any number but 1, which would become a constant
PLAIN_PYTORCH = choice.Implementations("pytorch", "pytorch")


class Scorer(nn.Module):
    """Computes click probabilities (B,), float32; NaN where the model's output is NaN or infinite.

    Args:
        model: The model, in eval mode.
    """

    def __init__(self, model: DLRM | Ensemble) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Score rows.

        Args:
            inputs: `dense` (B, N) float32 unless N is 0, and `ids` (B, F) int32 unless F is 0.
        """
        (any_input, *_) = inputs.values()
        dense_BN = inputs.get(DENSE, any_input.new_empty(any_input.shape[0], 0))
        ids_BF = inputs.get(IDS, any_input.new_empty(any_input.shape[0], 0))
        logits_B: Tensor = self.model(dense_BN, ids_BF)
        # The sigmoid of an infinite output is 0 or 1, a score that looks right.
        return torch.sigmoid(logits_B) + 0 * logits_B


def trace(model: DLRM | Ensemble, num_dense: int, num_ids: int) -> ExportedProgram:
    """Record the operators of a model for batches of any number of rows.

    Args:
        model: The model, in eval mode on the CPU, without lists.
        num_dense: N.
        num_ids: F.
    """
    inputs = {}
    if num_dense:
        inputs[DENSE] = torch.zeros(EXAMPLE_ROWS, num_dense)
    if num_ids:
        inputs[IDS] = torch.zeros(EXAMPLE_ROWS, num_ids, dtype=torch.int32)
    # The compiled kernels read memory, and operators are all that can be recorded.
    with choice.forced(PLAIN_PYTORCH), torch.no_grad():
        return torch.export.export(
            Scorer(model).eval(), (inputs,), dynamic_shapes=({name: {0: BATCH} for name in inputs},)
        )


def input_names(program: ExportedProgram) -> list[str]:
    """Return the names of the inputs of a traced model, in order."""
    names = program.graph_signature.user_inputs
    return [str(name).removeprefix("inputs_") for name in names]
