"""Gradient clipping against torch.nn.utils.clip_grad_norm_.

The expected gradients are those of a copy of the model whose tables have dense gradients, as with
nn.Embedding(sparse=False).
"""

from copy import deepcopy

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from tests.factories.features import training_params
from training.models.factory import build_model
from training.optim.embedding_optimizers import sum_repeats
from training.optim.gradient_clipping import clip_gradients

CARDINALITIES, NUM_DENSE, NUM_ROWS = [3, 1, 50], 4, 64


@pytest.mark.parametrize("max_norm", [1e-3, 0.05, 1e3])
def test_sparse_clipping_equals_dense_clipping(max_norm: float) -> None:
    generator = torch.Generator().manual_seed(1)
    model = build_model(training_params().model, CARDINALITIES, NUM_DENSE, generator).double()
    reference = deepcopy(model)
    reference.embeddings.tables[0].weight.requires_grad_(True)
    dense_BN = torch.randn(NUM_ROWS, NUM_DENSE, generator=generator, dtype=torch.float64)
    ids_BF = (
        torch.rand(NUM_ROWS, len(CARDINALITIES), generator=generator) * torch.tensor(CARDINALITIES)
    ).int()
    labels_B = torch.randint(2, (NUM_ROWS,), generator=generator).double()

    binary_cross_entropy_with_logits(reference(dense_BN, ids_BF), labels_B).backward()
    norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), max_norm)
    assert (norm > max_norm) == (max_norm < 1)

    ids = model.embeddings.ids(ids_BF)
    rows = [rows_k.requires_grad_() for rows_k in model.embeddings.lookup(ids)]
    binary_cross_entropy_with_logits(model.logits(dense_BN, rows), labels_B).backward()
    grads = [rows_k.grad for rows_k in rows]
    clip_gradients(max_norm, model, ids, grads)
    for (name, weight), (_, expected) in zip(
        model.named_parameters(), reference.named_parameters(), strict=True
    ):
        if weight.requires_grad:
            torch.testing.assert_close(weight.grad, expected.grad, rtol=1e-10, atol=1e-15, msg=name)
    tables = model.embeddings.tables[0]
    rows_U, summed = sum_repeats(tables.row_numbers(ids[0]).flatten(), grads[0].flatten(0, 1))
    torch.testing.assert_close(
        summed, reference.embeddings.tables[0].weight.grad[rows_U], rtol=1e-10, atol=1e-15
    )
