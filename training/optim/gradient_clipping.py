"""Gradient clipping by the norm of all gradients, those of embedding rows included."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from training.models.dlrm import DLRM
from training.models.embedding_tables import Tables
from training.models.reads import Reads
from training.optim.embedding_optimizers import sum_repeats


@torch.no_grad()
def clip_gradients(
    max_norm: float,
    model: DLRM,
    selections: Sequence[Tensor | Reads],
    grads: Sequence[Tensor],
    all_gather: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> None:
    """Scale all gradients, in place, by min(1, max_norm / (norm + 1e-6)).

    norm is the Euclidean norm of all gradients as one vector. A row that repeats in the batch
    counts once, by the sum of its gradients. The result is that of torch.nn.utils.clip_grad_norm_
    on a model whose tables are nn.Embedding(sparse=False).

    Args:
        max_norm: The largest norm that stays as it is.
        model: Its dense layers have their gradients in `grad`.
        selections: What `Embeddings.selections` returned.
        grads: The gradients of what `Embeddings.lookup` returned.
        all_gather: Concatenates a tensor of this rank with those of the other ranks; needed when
            selections and grads are those of one rank's share of the batch.
    """
    dense_grads = [weight.grad for weight in model.parameters() if weight.grad is not None]
    row_grads = []
    for tables, selection, of_group in zip(
        model.embeddings.tables, selections, model.embeddings.of_groups(grads), strict=True
    ):
        assert isinstance(tables, Tables)
        if isinstance(selection, Tensor):
            rows_K = all_gather(tables.row_numbers(selection)).flatten()
            grad_KD = all_gather(of_group[0]).flatten(0, 1)
        else:
            rows_K, grad_KD = map(all_gather, tables.value_gradients(selection, of_group))
        row_grads.append(sum_repeats(rows_K, grad_KD)[1])
    norm = torch.nn.utils.get_total_norm([*dense_grads, *row_grads])
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for grad in (*dense_grads, *grads):
        grad *= scale
