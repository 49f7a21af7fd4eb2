"""Evolutionary search for the dim of each embedding table within a budget of numbers.

Shapes: T tables.
"""

from collections.abc import Callable, Sequence

import numpy as np

from common.config.loading import ConfigError

POPULATION = 24
PARENTS = 8
GENERATIONS = 12
MUTATION_RATE = 0.1  # of each table of a child

Dims = tuple[int, ...]  # of each table, (T,)


class Evolution:
    """Chooses dims with a low loss, of those whose tables have at most a number of numbers.

    The best dims of a generation are the parents of the next one: a child has the dim of each table
    from one of two parents, and some dims are drawn again. A child that is too large loses dims of
    random tables until it fits.

    Args:
        num_rows: The number of rows of each table, (T,).
        choices: The dims to choose from, ascending; the first is 0.
        budget: The largest number of numbers in all tables.
        seed: The seed of all random choices.
    """

    def __init__(
        self, num_rows: Sequence[int], choices: Sequence[int], budget: float, seed: int
    ) -> None:
        self.num_rows, self.choices, self.budget = np.array(num_rows), np.array(choices), budget
        smallest = min(num_rows) * choices[1]
        if budget < smallest:
            raise ConfigError(
                f"the budget is {budget:,.0f} numbers, and the smallest table alone has"
                f" {smallest:,} with dim {choices[1]}; raise --budget"
            )
        self.random = np.random.default_rng(seed)

    def search(self, loss: Callable[[Dims], float]) -> Dims:
        """Return the dims with the lowest loss of all that were tried.

        Args:
            loss: Returns the loss of dims; it is called once for each.
        """
        losses: dict[Dims, float] = {}

        def rank(dims: Dims) -> tuple[float, Dims]:
            if dims not in losses:
                losses[dims] = loss(dims)
            return losses[dims], dims

        population = [self._uniform(), *(self._random_dims() for _ in range(POPULATION - 1))]
        for _ in range(GENERATIONS):
            parents = sorted(population, key=rank)[:PARENTS]
            children = [self._child(parents) for _ in range(POPULATION - PARENTS)]
            population = parents + children
        return min(population, key=rank)

    def _uniform(self) -> Dims:
        """Return the largest dim that all tables can have; tables lose some if it is none."""
        fitting = [dim for dim in self.choices if dim * self.num_rows.sum() <= self.budget]
        level = max(np.searchsorted(self.choices, fitting[-1]), 1)
        return self._fitted(np.full(len(self.num_rows), level))

    def _random_dims(self) -> Dims:
        return self._fitted(self.random.integers(len(self.choices), size=len(self.num_rows)))

    def _child(self, parents: Sequence[Dims]) -> Dims:
        numbers = self.random.integers(len(parents), size=2)
        one, other = (np.searchsorted(self.choices, parents[number]) for number in numbers)
        num_tables = len(self.num_rows)
        levels = np.where(self.random.random(num_tables) < 0.5, one, other)
        changes = self.random.random(num_tables) < MUTATION_RATE
        levels[changes] = self.random.integers(len(self.choices), size=changes.sum())
        return self._fitted(levels)

    def _fitted(self, levels: np.ndarray) -> Dims:
        """Return the dims of levels (positions in `choices`), lowered until they fit."""
        levels = levels.copy()
        while self.num_rows @ self.choices[levels] > self.budget:
            levels[self.random.choice(np.flatnonzero(levels))] -= 1
        if not levels.any():
            levels[self.num_rows.argmin()] = 1
        return tuple(self.choices[levels].tolist())
