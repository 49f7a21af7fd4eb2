"""Our models give the losses that the reference's README publishes for its debug run.

The run has a bottom MLP 4-3-2, tables of 4, 3 and 2 rows of dim 2, squared error, SGD with rate
0.01, and three batches of 2 rows. All its numbers come from one NumPy generator with seed 123. This
module draws them in the same order: the batches (dense features and bags of ids), their targets,
the tables, and the MLPs. Only in this run, the weights of the MLPs are uniform random numbers. The
vector of a bag of ids is the sum of their rows.
"""

import numpy as np
import pytest
import torch

from common.config.model import Model
from tests.factories.support import plain_model
from tests.parity.numpy_dlrm import NumpyDLRM, sigmoid
from training.models.factory import build_model
from training.optim.embedding_optimizers import SparseSGD

CARDINALITIES, NUM_DENSE, DIM, BATCH, LR, MAX_IDS = [4, 3, 2], 4, 2, 2, 0.01, 10
LOSSES = [0.451893, 0.402002, 0.275460]


class DebugRun:
    """The random numbers of the debug run.

    Attributes:
        batches: Dense features, bags and targets of each batch; bags[f][b] is a list of ids.
        tables: The weights of each embedding table.
        bottom: Weight and bias of each layer of the bottom MLP.
        top: Weight and bias of each layer of the top MLP.
    """

    def __init__(self) -> None:
        self.rng = np.random.RandomState(123)
        inputs = [self.inputs() for _ in LOSSES]
        self.batches = [
            (dense, bags, self.rng.rand(BATCH).astype(np.float32)) for dense, bags in inputs
        ]
        self.tables = [
            self.rng.uniform(-(n**-0.5), n**-0.5, (n, DIM)).astype(np.float32)
            for n in CARDINALITIES
        ]
        self.bottom = [self.layer(4, 3), self.layer(3, 2)]
        self.top = [self.layer(8, 4), self.layer(4, 2), self.layer(2, 1)]

    def inputs(self) -> tuple[np.ndarray, list[list[list[int]]]]:
        dense = self.rng.rand(BATCH, NUM_DENSE).astype(np.float32)
        return dense, [[self.bag(n) for _ in range(BATCH)] for n in CARDINALITIES]

    def bag(self, cardinality: int) -> list[int]:
        num_ids = round(max(1.0, self.rng.random_sample() * min(cardinality, MAX_IDS)))
        return sorted(
            set(np.round(self.rng.random_sample(num_ids) * (cardinality - 1)).astype(int).tolist())
        )

    def layer(self, num_in: int, num_out: int) -> tuple[np.ndarray, np.ndarray]:
        return self.rng.rand(num_out, num_in).astype(np.float32), self.rng.rand(num_out).astype(
            np.float32
        )


def test_the_random_numbers_are_the_published_ones() -> None:
    debug = DebugRun()
    np.testing.assert_allclose(
        debug.batches[0][0][0], [0.69647, 0.28614, 0.22685, 0.55131], atol=6e-6
    )
    assert [bags for _, bags, _ in debug.batches] == [
        [[[1], [0, 1]], [[0], [1]], [[1], [0]]],
        [[[1], [0, 2, 3]], [[1], [1, 2]], [[1], [1]]],
        [[[2], [0, 1, 2]], [[1], [2]], [[1], [1]]],
    ]
    np.testing.assert_allclose(debug.tables[0][0], [0.05438, -0.11105], atol=6e-6)
    np.testing.assert_allclose(debug.top[-1][1], [0.07915], atol=6e-6)


def test_our_model_gives_the_published_losses() -> None:
    debug = DebugRun()
    params = Model.model_validate(plain_model(embedding_dim=DIM, bottom_mlp=[3], top_mlp=[4, 2]))
    model = build_model(params, CARDINALITIES, NUM_DENSE, torch.Generator())
    tables = model.embeddings.tables[0]
    with torch.no_grad():
        tables.weight.copy_(torch.tensor(np.concatenate(debug.tables)))
        linears = [
            layer
            for stack in (model.bottom, model.top)
            for layer in stack
            if isinstance(layer, torch.nn.Linear)
        ]
        for linear, (weight, bias) in zip(linears, debug.bottom + debug.top, strict=True):
            linear.weight.copy_(torch.tensor(weight))
            linear.bias.copy_(torch.tensor(bias))
    mlps = torch.optim.SGD([*model.bottom.parameters(), *model.top.parameters()], lr=LR)
    losses = []
    for dense, bags, targets in debug.batches:
        ids_KF, bag_KF, used_KF = padded(bags)
        rows_KFD = tables(ids_KF) * used_KF.unsqueeze(2)
        index_KFD = bag_KF.unsqueeze(2).expand_as(rows_KFD)
        pooled_BFD = (
            torch.zeros(BATCH, len(CARDINALITIES), DIM)
            .scatter_add_(0, index_KFD, rows_KFD)
            .requires_grad_()
        )
        loss = (
            (model.logits(torch.tensor(dense), [pooled_BFD]).sigmoid() - torch.tensor(targets))
            .square()
            .mean()
        )
        mlps.zero_grad()
        loss.backward()
        mlps.step()
        SparseSGD().step(
            tables, ids_KF, pooled_BFD.grad.gather(0, index_KFD) * used_KF.unsqueeze(2), LR
        )
        losses.append(loss.item())
    assert losses == pytest.approx(LOSSES, abs=1e-6)
    assert tables.weight[2].tolist() == pytest.approx(
        [-0.14283, -0.45679], abs=6e-6
    )  # published, after the last step


def test_the_numpy_model_gives_the_published_losses() -> None:
    debug = DebugRun()
    model = NumpyDLRM(debug.tables, debug.bottom, debug.top)
    losses = []
    for dense, bags, targets in debug.batches:
        pooled = np.stack(
            [[model.tables[f][ids].sum(axis=0) for ids in bags[f]] for f in range(len(bags))],
            axis=1,
        )
        scores = sigmoid(model.forward(dense, pooled))
        grad_rows, bottom, top = model.backward(
            2 * (scores - targets) / BATCH * scores * (1 - scores)
        )
        model.update_mlps(bottom, top, LR)
        for f, bag in enumerate(bags):
            for b, ids in enumerate(bag):
                model.tables[f][ids] -= np.float32(LR) * grad_rows[b, f]
        losses.append(((scores - targets) ** 2).mean())
    assert losses == pytest.approx(LOSSES, abs=1e-6)


def padded(bags: list[list[list[int]]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pad the bags of each feature to K ids.

    Returns:
        Three tensors (K, F): the ids, the row of the batch that each id belongs to, and 1 for an id
        or 0 for padding.
    """
    columns = [[(i, b, 1) for b, ids in enumerate(bag) for i in ids] for bag in bags]
    height = max(map(len, columns))
    ids, bag, used = torch.tensor(
        [column + [(0, 0, 0)] * (height - len(column)) for column in columns]
    ).permute(2, 1, 0)
    return ids, bag, used
