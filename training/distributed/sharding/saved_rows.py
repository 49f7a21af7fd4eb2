"""The rows of sharded tables in a checkpoint, in their own order and in little memory.

A checkpoint has the rows at their positions (row_permutation.py), so rows that are neighbours in
their own order are far from each other in it. If the memory cannot hold the table, to look each row
up would read a page of the disk for each row. Therefore a table is read and written twice, each
time from its beginning to its end. First its rows are read in the order of the checkpoint, and each
row is written to the block that it belongs to, in a file without a name; a block is 64 MiB of
consecutive rows. Then each block is read, and its rows are put in order.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import torch
from torch import Tensor

from common.files import DataError
from common.numbers import ceil_div
from training.distributed.sharding.row_permutation import positions_of, rows_at, stride_of
from training.distributed.sharding.table_files import SavedBlock, blocks_in
from training.models.dlrm import DLRM
from training.models.embedding_tables import Tables, rows_of_block
from training.tensor_files import FLOAT32_BYTES, Rows


def whole_tables(directory: Path, model: DLRM, scratch: Path) -> dict[str, Rows]:
    """Return the weight of each group of tables of a model, under its name in a bundle.

    Args:
        directory: The folder of the sharded tables.
        model: The model; its tables need not have rows.
        scratch: A folder for a file without a name, which needs as much space as the largest table.

    Raises:
        DataError: Rows are missing.
    """
    blocks, weights = blocks_in(directory), {}
    for g, tables in enumerate(model.embeddings.tables):
        assert isinstance(tables, Tables)
        of_tables = []
        for k, (start, end) in enumerate(tables.spans):
            name = f"{g}.{k}.weight"
            saved = blocks.get(name, [])
            starts, ends = [each.start for each in saved], [each.end for each in saved]
            if [*starts, end - start] != [0, *ends]:
                raise DataError(f"rows of {name} are missing")
            of_tables.append(in_order(k, saved, end - start, tables.embedding_dim, scratch))
        weights[f"embeddings.tables.{g}.weight"] = Rows(
            (tables.num_rows, tables.embedding_dim), chain.from_iterable(of_tables)
        )
    return weights


def in_order(
    k: int, saved: Sequence[SavedBlock], num_rows: int, dim: int, scratch: Path
) -> Iterator[Tensor]:
    """Yield the rows of table number k in their own order, in blocks.

    Args:
        k: The number of the table.
        saved: All of its rows, by position.
        num_rows: The number of them.
        dim: The floats of a row.
        scratch: A folder for a file without a name, which has as many bytes as the table.
    """
    block_rows = rows_of_block(dim)
    with TemporaryFile(dir=scratch) as file:
        _write_by_block(file, k, saved, num_rows, block_rows)
        file.seek(0)
        for first in range(0, num_rows, block_rows):
            rows = torch.arange(first, min(first + block_rows, num_rows))
            found = torch.empty(len(rows), dim)
            num_read = file.readinto(found.numpy().data)
            assert num_read == found.nbytes, num_read
            by_position = positions_of(rows, k, num_rows, stride_of(num_rows)).argsort()
            block = torch.empty_like(found)
            block[by_position] = found
            yield block


def _write_by_block(
    file: IO[bytes], k: int, saved: Sequence[SavedBlock], num_rows: int, block_rows: int
) -> None:
    """Write the rows of a table so that those of a block are together, by their positions."""
    ends = [block_rows * block for block in range(ceil_div(num_rows, block_rows))]
    for part in saved:
        for first in range(part.start, part.end, block_rows):
            positions = torch.arange(first, min(first + block_rows, part.end))
            blocks = rows_at(positions, k, num_rows) // block_rows
            values = part.values(first, first + len(positions))[blocks.argsort(stable=True)]
            of_blocks = torch.split(values, blocks.bincount(minlength=len(ends)).tolist())
            for block, rows in enumerate(of_blocks):
                if len(rows):
                    file.seek(ends[block] * FLOAT32_BYTES * rows.shape[1])
                    file.write(rows.numpy().data)
                    ends[block] += len(rows)
