"""Ids for a benchmark: uniform ones, and traces with the locality of a real log.

A trace follows the synthetic mode of the DLRM paper (Naumov et al. 2019, section 5; after Hassan et
al. 2007, "Synthetic Trace-Driven Simulation of Cache Memory"): measure the stack distances of a
log, then draw accesses from an LRU stack at distances of that distribution. facebookresearch/dlrm
draws each distance at random, and changes the distribution while the stack is too small. Here the
measured distances themselves are used in another order, so the trace has exactly the measured
distribution.

Shapes: R rows of a log, F categorical fields, T accesses of one column.
"""

from collections.abc import Sequence
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from training.bench.stack_distance import FIRST, Ints, stack_distances

Ids = NDArray[np.integer]


def random_ids(num_rows: int, cardinalities: Sequence[int], random: np.random.Generator) -> Ids:
    """Draw ids, with equal probability for every id of a column.

    Args:
        num_rows: Number of rows R.
        cardinalities: Number of ids of each of F columns.
        random: The random generator.

    Returns:
        Ids, int64 (R, F).
    """
    return np.column_stack([random.integers(0, size, num_rows) for size in cardinalities])


def trace_ids(log_ids_RF: Ids, random: np.random.Generator) -> Ids:
    """Draw ids with the locality of a log.

    Args:
        log_ids_RF: Ids of the log, (R, F).
        random: The random generator.

    Returns:
        Ids, (R, F). Each column has the ids and the stack distances of the log's column, in another
        order.
    """
    return np.column_stack(
        [trace_column(stack_distances(ids_T), first_ids(ids_T), random) for ids_T in log_ids_RF.T]
    )


def first_ids(ids_T: Ids) -> Ids:
    """Return the distinct ids in the order of their first access."""
    _, first_positions = np.unique(ids_T, return_index=True)
    return np.asarray(ids_T[np.sort(first_positions)])


def trace_column(distances_T: Ints, ids: Ids, random: np.random.Generator) -> Ids:
    """Make an access for each of the stack distances, in random order.

    A distance larger than the stack waits until the stack is large enough. This always ends: after
    all first accesses, the stack is large enough for every distance. list.pop moves the elements
    above the row, so an access takes time proportional to its distance.

    Args:
        distances_T: The stack distances, (T,).
        ids: The distinct ids, which the first accesses take in this order.
        random: The random generator.

    Returns:
        The id of each access, (T,).
    """
    stack: list[int] = []  # the most recently used row is the last
    new_ids = iter(ids.tolist())
    waiting: list[int] = []
    trace: list[int] = []
    for distance in random.permutation(distances_T).tolist():
        if distance > len(stack):
            heappush(waiting, distance)
            continue
        row = next(new_ids) if distance == FIRST else stack.pop(-distance)
        stack.append(row)
        trace.append(row)
        while waiting and waiting[0] <= len(stack):
            row = stack.pop(-heappop(waiting))
            stack.append(row)
            trace.append(row)
    return np.array(trace, distances_T.dtype)
