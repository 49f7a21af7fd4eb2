"""Tables in a checkpoint: as one tensor where they are whole, else a directory into which each rank writes what it has.

The directory is torch.distributed.checkpoint's, in its safetensors form: its other form has a pickle in it. Rows are found by table and
row number, so that any number of ranks, one included, reads what any other number wrote. Nothing here needs TorchRec.
"""

import re
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from common.files import CHUNK_BYTES, DataError
from training.distributed.sharding.row_permutation import gather_up
from training.loop.weight_averaging import EpochMean
from training.models.dlrm import DLRM
from training.models.embedding_tables import EmbeddingTables, Tables
from training.optim.embedding_optimizers import EmbeddingOptimizer

# names of a group's parts in a state that has all tables in one place
WHOLE = {
    "weight": "model.embeddings.tables.{}.weight",
    "sums": "embedding_optimizers.{}.sums",
    "mean": "epoch_mean.rows.{}",
}
OF_TABLES = re.compile(r"(.*\.)?embeddings\.tables\.|embedding_optimizers\.|epoch_mean\.rows\.")
Parts = dict[str, Any]  # of each table: its rows, and what its optimizer keeps for each


def parts_of(
    model: DLRM, optimizers: nn.ModuleList | None = None, mean: EpochMean | None = None
) -> Parts:
    """As group.table.name; tensors of this rank's, not copied. mean: of a twin of the model's."""
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
    """The CRC-32 of each file. Collective; on return the files of all ranks are on the disk."""
    save(
        dict(parts), storage_writer=HuggingFaceStorageWriter(str(directory), save_distributed=True)
    )
    return _checksums(directory, sorted(path.name for path in directory.iterdir()), alone=False)


class Saved(NamedTuple):
    """Tables that ranks wrote: the directory, and the CRC-32 of each file in it."""

    directory: Path
    checksums: dict[str, int]


def read_parts(saved: Saved, parts: Parts, *, alone: bool, whole: bool) -> None:
    """In place, each rank its own. Collective, or alone. whole: each part is a table with its rows in their order. Raises DataError for
    files that are not as they were written."""
    directory, checksums = saved
    try:
        found = _checksums(directory, sorted(checksums), alone=alone)
        if damaged := sorted(name for name in checksums if found[name] != checksums[name]):
            raise DataError(f"{damaged[0]} is damaged")
        load(dict(parts), storage_reader=HuggingFaceStorageReader(str(directory)), no_dist=alone)
        for name, part in parts.items() if whole else ():
            gather_up(int(name.split(".")[1]), part)
    except (OSError, DataError) as error:
        raise DataError(
            f"{directory}: not whole ({error}); remove {directory.parent} to train from the start"
        ) from None


def _checksums(directory: Path, names: list[str], *, alone: bool) -> dict[str, int]:
    """Each rank takes its share of the files. Raises OSError, on every rank, for one that is not there."""
    rank, num_ranks = (0, 1) if alone else (dist.get_rank(), dist.get_world_size())
    for name in names:
        (directory / name).stat()
    mine = {name: _crc32(directory / name) for name in names[rank::num_ranks]}
    found = [mine] * num_ranks
    if not alone:
        dist.all_gather_object(found, mine)
    return {name: checksum for of_rank in found for name, checksum in of_rank.items()}


def _crc32(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def saved_tables(content: dict[str, Any]) -> Saved | None:
    """Return the sharded tables that a checkpoint's content names, or None if its weights have all tables.

    Args:
        content: What `Checkpoints.load_checkpoint` returned: the directory of the tables is an absolute path.
    """
    tables = content.get("tables")
    return Saved(Path(tables["directory"]), tables["checksums"]) if tables else None


def restore(
    model: DLRM,
    optimizers: nn.ModuleList,
    mean: EpochMean | None,
    weights: dict[str, Tensor],
    saved: Saved | None,
) -> None:
    """Restore the embedding tables of a run on any number of ranks from the checkpoint of a run on any other number. Collective.

    Args:
        model: The model; its tables are whole or sharded.
        optimizers: The sparse optimizer of each group of tables.
        mean: The mean over epochs of the averaged weights, which has tables too.
        weights: The state of the LightningModule in the checkpoint; it has the tables only if `saved` is None.
        saved: The tables that several ranks wrote.
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
            tables.put(int(table), part, weights[WHOLE[kind].format(group)][start:end])


def is_of_tables(name: str) -> bool:
    """Return whether an entry of a state dict belongs to the embedding tables or their sparse optimizers."""
    return OF_TABLES.match(name) is not None


def load_weights(module: nn.Module, weights: dict[str, Tensor], *, without_tables: bool) -> None:
    """without_tables: those of either side may lack on the other."""
    missing, unexpected = module.load_state_dict(weights, strict=not without_tables)
    strangers = [name for name in (*missing, *unexpected) if not is_of_tables(name)]
    assert not strangers, strangers
