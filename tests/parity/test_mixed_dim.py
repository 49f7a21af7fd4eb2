"""Mixed-dimension embeddings equal their definition, and their dims equal the reference's."""

import numpy as np
import pytest
import torch

from tests.parity.composed import PlainTable, arrays, draw_ids, optimizers_of, train_step
from training.models.mixed_dim import MixedDimTables, column_dim

# fmt: off
KAGGLE = [
    1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194, 27, 14992,
    5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572,
]
# The result of md_solver(KAGGLE, alpha, d0=D) for each (alpha, D). md_solver is in
# tricks/md_embedding_bag.py of facebookresearch/dlrm.
PUBLISHED = {
    (0.3, 16): [
        4, 4, 1, 1, 4, 8, 1, 4, 16, 1, 2, 1, 2, 8, 1, 1, 8, 2, 2, 16, 1, 8, 8, 1, 8, 1,
    ],
    (0.3, 64): [
        8, 16, 1, 1, 16, 32, 4, 16, 64, 4, 8, 1, 8, 32, 4, 1, 32, 8, 8, 64, 1, 32, 32, 2,
        16, 4,
    ],
    (0.1, 16): [
        8, 8, 4, 4, 8, 16, 8, 8, 16, 8, 8, 4, 8, 16, 8, 4, 16, 8, 8, 16, 4, 16, 16, 4, 8, 4,
    ],
    (0.6, 64): [
        2, 4, 1, 1, 4, 16, 1, 4, 64, 1, 1, 1, 1, 16, 1, 1, 32, 1, 1, 64, 1, 16, 32, 1, 8, 1,
    ],
}
# fmt: on
CARDINALITIES, D, ALPHA, THRESHOLD = [500, 3, 64, 8, 128, 70, 9], 8, 0.5, 8
# 8 (n / 8)^-0.5 is 1.01, -, 2.8, -, 2, 2.7, 7.5, where - is a column with at most THRESHOLD values.
# 2.8 and 2.7 are rounded to 3, whose logarithm is nearer to that of 4 than to that of 2.
DIMS = [1, 8, 4, 8, 2, 4, 8]


def make_embeddings(dtype: torch.dtype = torch.float64) -> MixedDimTables:
    return MixedDimTables(
        CARDINALITIES, D, torch.Generator().manual_seed(1), alpha=ALPHA, threshold=THRESHOLD
    ).to(dtype)


def parts_of(tested: MixedDimTables, column: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the table (n, d) of a column, and its projection (d, D)."""
    k = sorted(set(DIMS), reverse=True).index(DIMS[column])
    position = DIMS[:column].count(DIMS[column])
    table = arrays(tested.tables[k])[position]
    if DIMS[column] == D:
        return table, np.eye(D)
    return table, tested.projections[k].weight[position].detach().numpy()


@pytest.mark.parametrize(("alpha", "embedding_dim"), list(PUBLISHED))
def test_dims_equal_those_of_the_reference(alpha: float, embedding_dim: int) -> None:
    """The rule of the reference starts at the smallest column, so that is the threshold here."""
    found = [column_dim(values, embedding_dim, alpha, min(KAGGLE)) for values in KAGGLE]
    assert found == PUBLISHED[alpha, embedding_dim]


def test_a_vector_is_the_projection_of_its_row() -> None:
    tested = make_embeddings()
    ids = draw_ids(CARDINALITIES, 40, 1)
    vectors = tested.combine(tested.lookup(tested.ids(ids))).detach()
    assert vectors.shape == (40, len(CARDINALITIES), D)
    for column, dim in enumerate(DIMS):
        table, projection = parts_of(tested, column)
        assert (table.shape, projection.shape) == ((CARDINALITIES[column], dim), (dim, D))
        for row, value in enumerate(ids[:, column].tolist()):
            np.testing.assert_allclose(vectors[row, column], table[value] @ projection, rtol=1e-12)


@pytest.mark.parametrize("optimizer", ["sgd", "rowwise_adagrad"])
def test_three_steps_of_tables_and_projections(optimizer: str) -> None:
    """If the vectors have the gradient G, the rows have G P^T and the projection P has rows^T G."""
    tested, rng, lr = make_embeddings(), np.random.default_rng(2), 0.1
    optimizers = optimizers_of(tested, optimizer)
    parts = [parts_of(tested, column) for column in range(len(DIMS))]
    expected = [(PlainTable(table, optimizer), projection.copy()) for table, projection in parts]
    for seed in range(3):
        ids = draw_ids(CARDINALITIES, 40, seed)
        upstream = rng.normal(size=(40, len(DIMS), D))
        tested.zero_grad()
        train_step(tested, optimizers, ids, upstream, lr)
        torch.optim.SGD(tested.projections.parameters(), lr=lr).step()
        for column, (table, projection) in enumerate(expected):
            values, grad = ids[:, column].numpy(), upstream[:, column]
            grad_rows, grad_projection = grad @ projection.T, table.weight[values].T @ grad
            table.step(values, grad_rows, lr)
            if DIMS[column] < D:
                projection -= lr * grad_projection
    for column, (table, projection) in enumerate(expected):
        for found, wanted in zip(parts_of(tested, column), (table.weight, projection), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


def test_initial_vectors_have_the_variance_of_a_full_table() -> None:
    """The variance is 1 / (3 n). The columns have 16 times THRESHOLD values, so their dim is 2."""
    values = 16 * THRESHOLD
    tested = MixedDimTables(
        [values] * 300, D, torch.Generator().manual_seed(1), alpha=ALPHA, threshold=THRESHOLD
    )
    assert [tuple(projections.weight.shape) for projections in tested.projections] == [(300, 2, D)]
    vectors = tested.combine(
        tested.lookup(tested.ids(torch.arange(values).unsqueeze(1).expand(-1, 300)))
    )
    assert abs(vectors.var().item() * 3 * values - 1) < 0.05
