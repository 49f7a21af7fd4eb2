"""Ids for a benchmark: uniform ones, and traces with the locality of a real log.

The synthetic mode of the DLRM paper (Naumov et al. 2019, section 5; after Hassan et al. 2007, "Synthetic Trace-Driven Simulation of
Cache Memory"): measure the stack distances of a trace, then draw accesses from an LRU stack at distances of that distribution.
facebookresearch/dlrm draws each distance anew and shrinks the distribution where the stack is still too small; here the measured
distances themselves are dealt out in another order, so that the generated trace has exactly the measured profile.

Shapes: R rows of a log, F categorical fields, T accesses of one column.
"""

from collections.abc import Sequence
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from training.bench.stack_distance import FIRST, Ints, stack_distances

Ids = NDArray[np.integer]


def random_ids(num_rows: int, cardinalities: Sequence[int], random: np.random.Generator) -> Ids:
    """Every id of a column is as likely as any other: int64 (R, F)."""
    return np.column_stack([random.integers(0, size, num_rows) for size in cardinalities])


def trace_ids(log_ids_RF: Ids, random: np.random.Generator) -> Ids:
    """Another trace of the same rows, each column with exactly the stack distances it has in the log, in random order."""
    return np.column_stack(
        [trace_column(stack_distances(ids_T), first_ids(ids_T), random) for ids_T in log_ids_RF.T]
    )


def first_ids(ids_T: Ids) -> Ids:
    """The distinct ids in order of first appearance: what the trace's first accesses are to."""
    _, where = np.unique(ids_T, return_index=True)
    return np.asarray(ids_T[np.sort(where)])


def trace_column(distances_T: Ints, ids: Ids, random: np.random.Generator) -> Ids:
    """An access for each distance; first accesses take the ids in their order.

    A distance that the stack cannot give yet waits until it can. Some order always works: after all first accesses, every distance can
    be given. list.pop moves what lies above the row, so an access costs as much as its distance, at memory speed.
    """
    stack: list[int] = []  # the most recently used row last
    fresh = iter(ids.tolist())
    waiting: list[int] = []
    trace: list[int] = []
    for distance in random.permutation(distances_T).tolist():
        if distance > len(stack):
            heappush(waiting, distance)
            continue
        row = next(fresh) if distance == FIRST else stack.pop(-distance)
        stack.append(row)
        trace.append(row)
        while waiting and waiting[0] <= len(stack):
            row = stack.pop(-heappop(waiting))
            stack.append(row)
            trace.append(row)
    return np.array(trace, distances_T.dtype)
