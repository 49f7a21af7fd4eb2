"""Embedding tables in a checkpoint.

Tables of one device are part of the checkpoint file. Sharded tables are a directory into which each
rank writes the rows that it has (table_files.py). Rows are found by table and position, so any
number of ranks, also a single one, can read what any other number has written.

Nothing here needs TorchRec.
"""

import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch.distributed as dist
from torch import Tensor, nn

from common.files import DataError, crc32_file, other_kind
from common.full_disk import find_full_disk
from training.distributed.sharding.row_permutation import is_sharded, shards_of, unpermute
from training.distributed.sharding.saved_rows import whole_tables
from training.distributed.sharding.table_files import Blocks, read_blocks, write_blocks
from training.models.dlrm import DLRM
from training.models.embedding_tables import EmbeddingTables, Tables
from training.optim.embedding_optimizers import EmbeddingOptimizer
from training.tensor_files import Rows

# the names that the parts of a group have in the state dict of a LightningModule of one device
WHOLE = {
    "weight": "model.embeddings.tables.{}.weight",
    "sums": "embedding_optimizers.{}.sums",
    "mean": "epoch_mean.rows.{}",
}
OF_TABLES = re.compile(r"(.*\.)?embeddings\.tables\.|embedding_optimizers\.|epoch_mean\.rows\.")
Parts = dict[str, Any]  # GROUP.TABLE.NAME: the rows of a table, or what is kept for each row


class TableMeans(Protocol):
    """The means of embedding tables over epochs (`loop.weight_averaging.EpochMean`)."""

    def parts(self, model: DLRM) -> list[dict[str, Any]]:
        """Return the mean of each part of each group of tables, named like the part."""


def parts_of(
    model: DLRM, optimizers: nn.ModuleList | None = None, mean: TableMeans | None = None
) -> Parts:
    """Return what this rank has of each table, as GROUP.TABLE.NAME, without a copy.

    Args:
        model: Its tables have the NAME `weight`.
        optimizers: The optimizer of each group of tables, whose state has the NAME `sums`.
        mean: The mean of the tables over epochs, with the NAME `mean`.
    """
    parts: Parts = {}
    for g, tables in enumerate(model.embeddings.tables):
        assert isinstance(tables, Tables)
        parts |= {f"{g}.{name}": part for name, part in tables.parts().items()}
        if optimizers is not None:
            optimizer = optimizers[g]
            assert isinstance(optimizer, EmbeddingOptimizer)
            parts |= {f"{g}.{name}": part for name, part in optimizer.parts(tables).items()}
    for g, means in enumerate(mean.parts(model) if mean is not None else []):
        parts |= {f"{g}.{name.replace('weight', 'mean')}": part for name, part in means.items()}
    return parts


def write_parts(directory: Path, parts: Parts) -> dict[str, int]:
    """Write the parts of all ranks into a directory. Collective.

    Returns:
        The CRC-32 of each file. The files of all ranks are on the disk then.

    Raises:
        FullDiskError: The disk of a rank is full.
    """
    rank, end = dist.get_rank(), End({}, None)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # A table that is on every rank is written by the first one.
        own = {name: part for name, part in parts.items() if rank == 0 or is_sharded(part)}
        end = End(write_blocks(directory, rank, own_blocks(own)), None)
    except Exception as error:  # all ranks raise it
        full = find_full_disk(error, directory, directory / "scratch")
        end = End({}, full or RuntimeError(f"{directory}: {error}"))
    ends = [end] * dist.get_world_size()
    dist.all_gather_object(ends, end)
    for each in ends:
        if each.error is not None:
            raise each.error
    return {name: checksum for each in ends for name, checksum in each.checksums.items()}


class End(NamedTuple):
    """How a rank has ended its part of a checkpoint.

    Attributes:
        checksums: The CRC-32 of each file that it has written.
        error: Why it could not.
    """

    checksums: dict[str, int]
    error: Exception | None


class Saved(NamedTuple):
    """Sharded tables that `write_parts` has written.

    Attributes:
        directory: The directory.
        checksums: The CRC-32 of each file in it.
    """

    directory: Path
    checksums: dict[str, int]


def read_parts(saved: Saved, parts: Parts, *, alone: bool, whole: bool) -> None:
    """Read parts in place. Collective, unless this process is alone.

    Args:
        saved: The tables.
        parts: What this rank has of each table.
        alone: Whether this process reads without other ranks.
        whole: Whether each part is a whole table of one device, whose rows are not permuted.

    Raises:
        DataError: A file is missing or has changed.
    """
    directory, checksums = saved
    with _named(directory):
        _check(saved, _checksums(directory, sorted(checksums), alone=alone))
        read_blocks(directory, own_blocks(parts))
        if whole:
            for name, part in parts.items():
                _, table, _ = name.split(".")
                unpermute(int(table), part)


def read_tables(saved: Saved, model: DLRM, scratch: Path) -> dict[str, Rows]:
    """Return the weight of each group of tables, under its name in a bundle, to be written.

    This process alone reads the rows, and no table is in memory as a whole.

    Args:
        saved: The tables.
        model: The model; its tables need not have rows.
        scratch: A folder for a file without a name, which needs as much space as the largest table.

    Raises:
        DataError: A file is missing or has changed.
    """
    directory, checksums = saved
    with _named(directory):
        _check(saved, _checksums(directory, sorted(checksums), alone=True))
        return whole_tables(directory, model, scratch)


@contextmanager
def _named(directory: Path) -> Iterator[None]:
    """Name the directory and the remedy, if sharded tables cannot be read."""
    try:
        yield
    except (OSError, DataError) as error:
        raise DataError(
            f"{directory}: not whole ({error}); remove {directory.parent} to train from the start"
        ) from None


def find_fault(saved: Saved) -> str | None:
    """Return what is wrong with sharded tables, None if every byte is right.

    This process alone reads them.
    """
    directory, checksums = saved
    try:
        _check(saved, _checksums(directory, sorted(checksums), alone=True))
    except (OSError, DataError) as error:
        return f"{directory}: not whole ({error})"
    return None


def own_blocks(parts: Parts) -> Blocks:
    """Return the first position and the values of each part that this rank has, without a copy."""
    return {name: shard for name, part in parts.items() for shard in shards_of(part)}


def _check(saved: Saved, found: dict[str, int]) -> None:
    damaged = sorted(name for name, checksum in saved.checksums.items() if found[name] != checksum)
    if damaged:
        raise DataError(f"{damaged[0]} is damaged")


def _checksums(directory: Path, names: list[str], *, alone: bool) -> dict[str, int]:
    """Return the CRC-32 of each file; each rank reads a share of the files.

    Raises:
        OSError: A file is missing; every rank raises it.
        DataError: A file is a link, a pipe or a device; every rank raises it.
    """
    rank, num_ranks = (0, 1) if alone else (dist.get_rank(), dist.get_world_size())
    if not stat.S_ISDIR(directory.lstat().st_mode):
        raise DataError("it is not a folder")
    for name in names:
        if kind := other_kind(directory / name):
            raise DataError(f"{name} is {kind}, not a file")
    own = {name: crc32_file(directory / name) for name in names[rank::num_ranks]}
    of_ranks = [own] * num_ranks
    if not alone:
        dist.all_gather_object(of_ranks, own)
    return {name: checksum for of_rank in of_ranks for name, checksum in of_rank.items()}


def saved_tables(content: dict[str, Any]) -> Saved | None:
    """Return the sharded tables that a checkpoint names, or None if its weights include the tables.

    Args:
        content: The checkpoint, as `Checkpoints.load_checkpoint` returns it: with the absolute path
            of the directory of the tables.
    """
    tables = content.get("tables")
    return Saved(Path(tables["directory"]), tables["checksums"]) if tables else None


def restore(
    model: DLRM,
    optimizers: nn.ModuleList,
    mean: TableMeans | None,
    weights: dict[str, Tensor],
    saved: Saved | None,
) -> None:
    """Restore the embedding tables from a checkpoint of any number of ranks. Collective.

    Args:
        model: The model; its tables are whole or sharded.
        optimizers: The sparse optimizer of each group of tables.
        mean: The mean over epochs of the averaged weights, which includes the tables.
        weights: The state dict of the LightningModule in the checkpoint. It includes the tables
            only if `saved` is None.
        saved: The sharded tables of the checkpoint.
    """
    sharded = not all(isinstance(tables, EmbeddingTables) for tables in model.embeddings.tables)
    parts = parts_of(model, optimizers, mean)
    if saved is not None:
        read_parts(saved, parts, alone=not dist.is_initialized(), whole=not sharded)
    elif sharded:
        for name, part in parts.items():
            group, table, kind = name.split(".")
            tables = model.embeddings.tables[int(group)]
            assert isinstance(tables, Tables)
            start, end = tables.spans[int(table)]
            tables.load_rows(int(table), part, weights[WHOLE[kind].format(group)][start:end])


def is_of_tables(name: str) -> bool:
    """Return whether an entry of a state dict belongs to the tables or their optimizers."""
    return OF_TABLES.match(name) is not None
