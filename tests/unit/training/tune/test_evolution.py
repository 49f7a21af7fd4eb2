"""Evolution over dims: they fit the budget, follow the seed, and are better than uniform ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config.loading import ConfigError
from training.tune.evolution import GENERATIONS, PARENTS, POPULATION, Dims, Evolution
from training.tune.supernet import dim_choices

CHOICES = [0, 2, 4, 8, 16]
NUM_ROWS = [10, 1000, 300, 20, 5000, 40]
# A table of importance w loses w / (1 + dim).
IMPORTANCE = np.array([5.0, 0.1, 3.0, 2.0, 0.2, 1.0])


def loss(dims: Dims) -> float:
    return float((IMPORTANCE / (1 + np.array(dims))).sum())


def numbers_of(dims: Dims, num_rows: list[int]) -> int:
    return sum(rows * dim for rows, dim in zip(num_rows, dims, strict=True))


@pytest.mark.parametrize(
    ("embedding_dim", "choices"),
    [(1, [0, 1]), (2, [0, 2]), (13, [0, 2, 4, 8, 13]), (16, CHOICES), (17, [*CHOICES, 17])],
)
def test_choices_are_powers_of_two_and_the_embedding_dim(
    embedding_dim: int, choices: list[int]
) -> None:
    assert dim_choices(embedding_dim) == choices


def test_what_is_found_is_better_than_uniform_dims_of_the_same_budget() -> None:
    budget = 4 * sum(NUM_ROWS)
    found = Evolution(NUM_ROWS, CHOICES, budget, 1).search(loss)
    assert numbers_of(found, NUM_ROWS) <= budget
    assert loss(found) < 0.6 * loss((4,) * 6)
    assert found[0] == found[2] == found[3] == 16  # small and important
    assert found[4] < 4  # large and unimportant


@settings(max_examples=60, deadline=None)
@given(
    num_rows=st.lists(st.integers(1, 10_000), min_size=1, max_size=30),
    embedding_dim=st.integers(1, 64),
    share=st.floats(0.05, 1),
    seed=st.integers(0, 5),
)
def test_all_dims_fit_the_budget_and_keep_a_table(
    num_rows: list[int], embedding_dim: int, share: float, seed: int
) -> None:
    choices = dim_choices(embedding_dim)
    budget = max(share * embedding_dim * sum(num_rows), min(num_rows) * choices[1])
    tried: list[Dims] = []

    def recorded_loss(dims: Dims) -> float:
        tried.append(dims)
        return float(np.random.default_rng(abs(hash(dims))).random())

    found = Evolution(num_rows, choices, budget, seed).search(recorded_loss)
    assert found in tried
    assert len(set(tried)) == len(tried) <= POPULATION + GENERATIONS * (POPULATION - PARENTS)
    for dims in tried:
        assert numbers_of(dims, num_rows) <= budget
        assert any(dims)
        assert {*dims} <= {*choices}
    again = Evolution(num_rows, choices, budget, seed).search(recorded_loss)
    assert again == found


def test_uniform_dims_are_tried() -> None:
    """So what is found has no higher loss with the shared weights than the uniform model."""
    tried: list[Dims] = []
    Evolution(NUM_ROWS, CHOICES, 8 * sum(NUM_ROWS), 1).search(
        lambda dims: float(len(tried)) if tried.append(dims) else loss(dims)
    )
    assert (8,) * 6 in tried


def test_a_budget_below_the_smallest_table_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the budget is 19 numbers, .* has 20 with dim 2; raise"):
        Evolution(NUM_ROWS, CHOICES, 19, 1)
