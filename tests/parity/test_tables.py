"""The embedding optimizers equal their definition for each row, with the same bytes every time."""

import numpy as np
import pytest
import torch

from training.models import embedding_tables
from training.models.embedding_tables import EmbeddingTables
from training.optim.embedding_optimizers import RowwiseAdagrad, make_embedding_optimizer

CARDINALITIES, DIM = [5, 1, 300], 16


def make_tables(dtype: torch.dtype = torch.float64) -> EmbeddingTables:
    return EmbeddingTables(CARDINALITIES, DIM, torch.Generator().manual_seed(1)).to(dtype)


def make_batch(
    num_rows: int, seed: int, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = (
        torch.rand(num_rows, len(CARDINALITIES), generator=generator) ** 3
        * torch.tensor(CARDINALITIES)
    ).int()
    return ids, torch.randn(num_rows, len(CARDINALITIES), DIM, generator=generator, dtype=dtype)


def test_each_column_is_looked_up_in_its_own_table() -> None:
    tables = make_tables()
    rows = tables(torch.tensor([[4, 0, 299], [0, 0, 0]]))
    assert torch.equal(rows, tables.weight[torch.tensor([[4, 5, 305], [0, 5, 6]])])


@pytest.mark.parametrize("name", ["sgd", "rowwise_adagrad"])
def test_steps_follow_the_definition(name: str) -> None:
    tables = make_tables()
    tested = make_embedding_optimizer(name, tables)
    weight, squares = tables.weight.numpy().copy(), np.zeros(sum(CARDINALITIES))
    starts = np.cumsum([0, *CARDINALITIES[:-1]])
    for seed in range(3):
        ids, grad = make_batch(200, seed)
        tested.step(tables, ids, grad, lr=0.1)
        for row in range(len(weight)):
            row_grads = grad.numpy()[(ids.numpy() + starts) == row]
            if len(row_grads):
                total = row_grads.sum(axis=0)
                squares[row] += (total**2).mean()
                scale = 1.0 if name == "sgd" else np.sqrt(squares[row]) + 1e-10
                weight[row] -= 0.1 * total / scale
    np.testing.assert_allclose(tables.weight, weight, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["sgd", "rowwise_adagrad"])
def test_two_threads_give_the_same_bytes_every_time(name: str) -> None:
    """The sum of a row's gradients has rounding errors that depend on its order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        ids, grad = make_batch(20_000, 0, torch.float32)
        results = []
        for _ in range(8):
            tables = make_tables(torch.float32)
            make_embedding_optimizer(name, tables).step(tables, ids, grad, lr=0.1)
            results.append(tables.weight.numpy().tobytes())
    finally:
        torch.set_num_threads(threads)
    assert len(set(results)) == 1


def test_an_optimizer_resumes_from_its_saved_state() -> None:
    tables, resumed_tables = make_tables(), make_tables()
    optimizer, resumed = RowwiseAdagrad(tables), RowwiseAdagrad(resumed_tables)
    optimizer.step(tables, *make_batch(50, 0), lr=0.1)
    resumed.load_state_dict(optimizer.state_dict())
    resumed_tables.load_state_dict(tables.state_dict())
    optimizer.step(tables, *make_batch(50, 1), lr=0.1)
    resumed.step(resumed_tables, *make_batch(50, 1), lr=0.1)
    assert torch.equal(tables.weight, resumed_tables.weight)


@pytest.mark.parametrize("dim", [1, 3, 16])
def test_values_drawn_in_blocks_are_those_of_the_whole_table(
    dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_tables, "rows_of_block", lambda dim: 7)
    whole = torch.empty(100, dim).uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    blocks = list(embedding_tables.drawn_blocks(100, dim, 0.5, generator))
    assert [first for first, _ in blocks] == list(range(0, 100, 7))
    assert torch.equal(torch.cat([values for _, values in blocks]), whole)
