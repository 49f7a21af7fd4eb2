"""Gradient clipping."""

from collections.abc import Sequence

import torch
from torch import Tensor

from training.models.dlrm import DLRM
from training.models.tables import EmbeddingTables
from training.optim.tables import sum_repeats


@torch.no_grad()
def clip_gradients(max_norm: float, model: DLRM, ids: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
    """Scale all gradients, in place, by min(1, max_norm / (norm + 1e-6)), where norm is the Euclidean norm of all of them as one vector.

    ids and grads: of each tables, (B, its columns) and (B, its columns, its dim). A row that repeats counts once, by the sum of its
    gradients: the same as torch.nn.utils.clip_grad_norm_ on a model whose tables are nn.Embedding(sparse=False).
    """
    dense = [weight.grad for weight in model.parameters() if weight.grad is not None]
    summed = [
        sum_repeats(tables.row_numbers(ids_k).flatten(), grad_k.flatten(0, 1))[1]
        for tables, ids_k, grad_k in zip(model.embeddings.tables, ids, grads, strict=True)
        if isinstance(tables, EmbeddingTables)
    ]
    norm = torch.nn.utils.get_total_norm([*dense, *summed])
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for grad in (*dense, *grads):
        grad *= scale
