"""Gradient clipping."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from training.models.dlrm import DLRM
from training.models.embedding_tables import Tables
from training.optim.embedding_optimizers import sum_repeats


@torch.no_grad()
def clip_gradients(
    max_norm: float,
    model: DLRM,
    ids: Sequence[Tensor],
    grads: Sequence[Tensor],
    of_all_ranks: Callable[[Tensor], Tensor] = lambda mine: mine,
) -> None:
    """Scale all gradients, in place, by min(1, max_norm / (norm + 1e-6)), where norm is the Euclidean norm of all of them as one vector.

    ids and grads: of each tables, (B, its columns) and (B, its columns, its dim). of_all_ranks: where B is this rank's rows alone, gives
    the other ranks' as well; only the norm needs them. A row that repeats counts once, by the sum of its
    gradients: the same as torch.nn.utils.clip_grad_norm_ on a model whose tables are nn.Embedding(sparse=False).
    """
    dense = [weight.grad for weight in model.parameters() if weight.grad is not None]
    summed = [
        sum_repeats(
            of_all_ranks(tables.row_numbers(ids_k)).flatten(), of_all_ranks(grad_k).flatten(0, 1)
        )[1]
        for tables, ids_k, grad_k in zip(model.embeddings.tables, ids, grads, strict=True)
        if isinstance(tables, Tables)
    ]
    norm = torch.nn.utils.get_total_norm([*dense, *summed])
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for grad in (*dense, *grads):
        grad *= scale
