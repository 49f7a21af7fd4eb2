"""Mixed-dimension embeddings against their definition, and their rule for dims against facebookresearch/dlrm's own output."""

import numpy as np
import pytest
import torch

from tests.parity.composed import PlainTable, arrays, draw_ids, optimizers_of, train_step
from training.models.mixed_dim import MixedDimTables, column_dim

KAGGLE = [
    1460,
    583,
    10131227,
    2202608,
    305,
    24,
    12517,
    633,
    3,
    93145,
    5683,
    8351593,
    3194,
    27,
    14992,
    5461306,
    10,
    5652,
    2173,
    4,
]
KAGGLE += [7046547, 18, 15, 286181, 105, 142572]
# tricks/md_embedding_bag.py: md_solver(KAGGLE, alpha, d0=D)
PUBLISHED = {
    (0.3, 16): [4, 4, 1, 1, 4, 8, 1, 4, 16, 1, 2, 1, 2, 8, 1, 1, 8, 2, 2, 16, 1, 8, 8, 1, 8, 1],
    (0.3, 64): [
        8,
        16,
        1,
        1,
        16,
        32,
        4,
        16,
        64,
        4,
        8,
        1,
        8,
        32,
        4,
        1,
        32,
        8,
        8,
        64,
        1,
        32,
        32,
        2,
        16,
        4,
    ],
    (0.1, 16): [
        8,
        8,
        4,
        4,
        8,
        16,
        8,
        8,
        16,
        8,
        8,
        4,
        8,
        16,
        8,
        4,
        16,
        8,
        8,
        16,
        4,
        16,
        16,
        4,
        8,
        4,
    ],
    (0.6, 64): [
        2,
        4,
        1,
        1,
        4,
        16,
        1,
        4,
        64,
        1,
        1,
        1,
        1,
        16,
        1,
        1,
        32,
        1,
        1,
        64,
        1,
        16,
        32,
        1,
        8,
        1,
    ],
}
CARDINALITIES, D, ALPHA, THRESHOLD = [500, 3, 64, 8, 128, 70, 9], 8, 0.5, 8
DIMS = [
    1,
    8,
    4,
    8,
    2,
    4,
    8,
]  # 8 (n / 8)^-0.5 is 1.01, full, 2.8, full, 2, 2.7, 7.5; 2.8 is 3, and that nearer to 4 than to 2 by its logarithm


def make(dtype: torch.dtype = torch.float64) -> MixedDimTables:
    return MixedDimTables(
        CARDINALITIES, D, torch.Generator().manual_seed(1), alpha=ALPHA, threshold=THRESHOLD
    ).to(dtype)


def parts_of(tested: MixedDimTables, column: int) -> tuple[np.ndarray, np.ndarray]:
    """A column's table (n, d), and its projection (d, D)."""
    k = sorted(set(DIMS), reverse=True).index(DIMS[column])
    place = DIMS[:column].count(DIMS[column])
    table = arrays(tested.tables[k])[place]
    return table, np.eye(D) if DIMS[column] == D else tested.projections[k].weight[
        place
    ].detach().numpy()


@pytest.mark.parametrize(("alpha", "embedding_dim"), list(PUBLISHED))
def test_dims_are_the_reference_s_where_the_rule_starts_from_the_smallest_column(
    alpha: float, embedding_dim: int
) -> None:
    found = [column_dim(values, embedding_dim, alpha, min(KAGGLE)) for values in KAGGLE]
    assert found == PUBLISHED[alpha, embedding_dim]


def test_a_vector_is_the_projection_of_its_row() -> None:
    tested = make()
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
    """The rows' gradient is the vectors' times P^T, that of P the rows times the vectors' gradient, summed over the batch."""
    tested, rng, lr = make(), np.random.default_rng(2), 0.1
    optimizers = optimizers_of(tested, optimizer)
    parts = [parts_of(tested, column) for column in range(len(DIMS))]
    expected = [(PlainTable(table, optimizer), projection.copy()) for table, projection in parts]
    for seed in range(3):
        ids, upstream = draw_ids(CARDINALITIES, 40, seed), rng.normal(size=(40, len(DIMS), D))
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


def test_vectors_start_with_a_full_tables_variance() -> None:
    """1 / (3 n); 300 columns of 16 times the threshold, whose dim is 2 of 8."""
    values = 16 * THRESHOLD
    tested = MixedDimTables(
        [values] * 300, D, torch.Generator().manual_seed(1), alpha=ALPHA, threshold=THRESHOLD
    )
    assert [tuple(projections.weight.shape) for projections in tested.projections] == [(300, 2, D)]
    vectors = tested.combine(
        tested.lookup(tested.ids(torch.arange(values).unsqueeze(1).expand(-1, 300)))
    )
    assert abs(vectors.var().item() * 3 * values - 1) < 0.05
