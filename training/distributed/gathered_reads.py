"""The lookups of all ranks in replicated embedding tables, in the order of the global batch.

Shapes: B rows of the global batch, K columns, V values of the lists of a feature, D embedding dim.
"""

from collections.abc import Sequence

from torch import Tensor

from training.distributed.collectives import gather_rows, gather_uneven
from training.kernels.read import Read
from training.models.bags import starts_of
from training.models.reads import Reads


def gather_reads(reads: Reads, num_rows: int) -> Reads:
    """Concatenate the lookups of all ranks. Collective.

    Args:
        reads: The lookups of this rank's share of the batch.
        num_rows: B.
    """
    return Reads(
        num_rows,
        [_gather(read, num_rows) for read in reads.columns],
        [read._replace(values=gather_uneven(read.values)) for read in reads.lists],
    )


def gather_gradients(grads: Sequence[Tensor], num_rows: int) -> list[Tensor]:
    """Concatenate each rank's gradients of one group of tables. Collective.

    Args:
        grads: The gradients of what `Tables.read` returned: (share of B, K, D), then (V, D) for
            each list.
        num_rows: B.
    """
    of_columns, *of_lists = grads
    return [gather_rows(of_columns, num_rows), *map(gather_uneven, of_lists)]


def _gather(read: Read, num_rows: int) -> Read:
    if read.starts is None:
        return read._replace(values=gather_rows(read.values.contiguous(), num_rows))
    lengths = gather_rows(read.starts.diff(), num_rows)
    weights = None if read.weights is None else gather_uneven(read.weights)
    return read._replace(
        values=gather_uneven(read.values), starts=starts_of(lengths), weights=weights
    )
