"""Quotient-remainder embeddings equal their definition: the vectors, and steps of the tables."""

import numpy as np
import pytest
import torch

from common.config.model import Model
from tests.factories.support import plain_model
from tests.parity.composed import PlainTable, arrays, draw_ids, optimizers_of, train_step
from training.models.embeddings import FullTables
from training.models.factory import build_model
from training.models.quotient_remainder import QuotientRemainderTables

OPERATIONS = ["mult", "add", "concat"]
CARDINALITIES, D, COLLISIONS, THRESHOLD = [23, 4, 50, 10, 11], 6, 4, 10
LARGE = [0, 2, 4]  # the columns above the threshold
ALL_LARGE = [23, 50]


def make_embeddings(
    operation: str, cardinalities: list[int] = CARDINALITIES, **changes: int
) -> QuotientRemainderTables:
    sizes = {"collisions": COLLISIONS, "threshold": THRESHOLD, **changes}
    return QuotientRemainderTables(
        cardinalities, D, torch.Generator().manual_seed(1), operation=operation, **sizes
    ).double()


def parts_of(tested: QuotientRemainderTables, column: int) -> list[np.ndarray]:
    """Return the table of a column, or its two tables of quotients and of remainders."""
    full, composed = (arrays(tables) for tables in tested.tables)
    if column in LARGE:
        k = LARGE.index(column)
        return [composed[k], composed[len(LARGE) + k]]
    small = [f for f in range(len(CARDINALITIES)) if f not in LARGE]
    return [full[small.index(column)]]


def compose(operation: str, quotient: np.ndarray, remainder: np.ndarray) -> np.ndarray:
    """Return the vector of two rows."""
    if operation == "concat":
        return np.array([*quotient, *remainder])
    return quotient * remainder if operation == "mult" else quotient + remainder


def split_grad(
    operation: str, grad: np.ndarray, quotients: np.ndarray, remainders: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradients of both rows for the gradient `grad` (B, D) of the vectors."""
    if operation == "concat":
        return grad[:, : D // 2], grad[:, D // 2 :]
    return (grad * remainders, grad * quotients) if operation == "mult" else (grad, grad)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_vector_is_composed_of_its_two_rows(operation: str) -> None:
    tested = make_embeddings(operation)
    ids = draw_ids(CARDINALITIES, 40, 1)
    vectors = tested.combine(tested.lookup(tested.ids(ids)))
    assert vectors.shape == (40, len(CARDINALITIES), D)
    for column in range(len(CARDINALITIES)):
        tables = parts_of(tested, column)
        for row, value in enumerate(ids[:, column].tolist()):
            if column in LARGE:
                expected = compose(
                    operation, tables[0][value // COLLISIONS], tables[1][value % COLLISIONS]
                )
            else:
                expected = tables[0][value]
            np.testing.assert_array_equal(vectors[row, column], expected)


@pytest.mark.parametrize("optimizer", ["sgd", "rowwise_adagrad"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_three_steps_of_the_tables(operation: str, optimizer: str) -> None:
    tested, rng = make_embeddings(operation), np.random.default_rng(2)
    optimizers = optimizers_of(tested, optimizer)
    expected = {
        column: [PlainTable(table, optimizer) for table in parts_of(tested, column)]
        for column in range(len(CARDINALITIES))
    }
    for seed in range(3):
        ids = draw_ids(CARDINALITIES, 40, seed)
        upstream = rng.normal(size=(40, len(CARDINALITIES), D))
        train_step(tested, optimizers, ids, upstream, lr=0.1)
        for column, tables in expected.items():
            values, grad = ids[:, column].numpy(), upstream[:, column]
            if column in LARGE:
                rows = [values // COLLISIONS, values % COLLISIONS]
                grads = split_grad(
                    operation,
                    grad,
                    *(table.weight[rows_k] for table, rows_k in zip(tables, rows, strict=True)),
                )
            else:
                rows, grads = [values], (grad,)
            for table, rows_k, grad_k in zip(tables, rows, grads, strict=True):
                table.step(rows_k, grad_k, lr=0.1)
    for column, tables in expected.items():
        for found, table in zip(parts_of(tested, column), tables, strict=True):
            np.testing.assert_allclose(found, table.weight, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_no_two_values_share_a_vector(operation: str) -> None:
    tested = make_embeddings(operation, ALL_LARGE)
    assert len(tested.tables) == 1  # no column is small
    for column, values in enumerate(ALL_LARGE):
        ids = torch.zeros(values, len(ALL_LARGE), dtype=torch.int64)
        ids[:, column] = torch.arange(values)
        vectors = tested.combine(tested.lookup(tested.ids(ids)))[:, column]
        assert len(vectors.unique(dim=0)) == values


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("values", [1000, 200_000])
def test_initial_composed_vectors_have_the_variance_of_a_full_table(
    operation: str, values: int
) -> None:
    """The variance is 1 / (3 n) and the mean is 0; 40 columns give enough values to measure it."""
    cardinalities = [values] * 40
    tested = make_embeddings(operation, cardinalities, collisions=100)
    ids = torch.randint(values, (500, 40), generator=torch.Generator().manual_seed(2))
    vectors = tested.combine(tested.lookup(tested.ids(ids)))
    assert abs(vectors.var().item() * 3 * values - 1) < 0.05
    assert abs(vectors.mean().item()) < 0.02 * vectors.std().item()
    assert all(tables.weight.abs().max() < 1 for tables in tested.tables)


def test_a_model_of_small_columns_has_full_tables() -> None:
    params = plain_model(embedding_dim=4, bottom_mlp=[3], top_mlp=[3])
    composed = params | {
        "tables": {
            "name": "quotient_remainder",
            "operation": "mult",
            "collisions": 4,
            "threshold": 10,
        }
    }
    full, small, large = (
        build_model(
            Model.model_validate(values), cardinalities, 2, torch.Generator().manual_seed(1)
        )
        for values, cardinalities in ((params, [10, 3]), (composed, [10, 3]), (composed, [11, 3]))
    )
    assert isinstance(small.embeddings, FullTables)
    assert all(
        torch.equal(a, b)
        for a, b in zip(full.state_dict().values(), small.state_dict().values(), strict=True)
    )
    assert [len(tables.weight) for tables in large.embeddings.tables] == [3, 3 + 4]
