"""The files of sharded tables in a checkpoint.

A file has a block of a table, or of what an optimizer keeps for its rows, and its header says at
which position of the table the block begins. The ranks of hybrid parallelism, table servers of any
number and a single device read what any of them has written. The format is the safetensors format
of torch.distributed.checkpoint, whose own writer copies each file in memory.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from common.files import DataError, crc32_file
from training.tensor_files import METADATA, map_tensors, read_header

# as torch.distributed.checkpoint's safetensors format calls them
OFFSETS_OF_FILE, OFFSETS = "DCP_SHARDING_INFO", "saved_offsets"
Blocks = Mapping[str, tuple[int, Tensor]]  # GROUP.TABLE.KIND: the first position, and the values


class SavedBlock(NamedTuple):
    """Values at consecutive positions of a table.

    Attributes:
        start: The first position.
        end: The last position + 1.
        path: The file that they are in.
        name: Their name in it.
    """

    start: int
    end: int
    path: Path
    name: str

    def values(self, start: int, end: int) -> Tensor:
        """Return the values at some of the positions, mapped from the file.

        The mapping ends, and with it the process's use of pages of the file, when nothing refers to
        the values any more.
        """
        return map_tensors(self.path)[self.name][start - self.start : end - self.start]


def blocks_in(directory: Path) -> dict[str, list[SavedBlock]]:
    """Return what a directory of sharded tables has of each GROUP.TABLE.KIND, in order."""
    blocks: dict[str, list[SavedBlock]] = {}
    for path in directory.glob("*.safetensors"):
        header = read_header(path)
        offsets = json.loads(header.pop(METADATA, {}).get(OFFSETS_OF_FILE, "{}"))
        for name, stored in header.items():
            start = offsets[name][OFFSETS][0] if name in offsets else 0
            end = start + stored["shape"][0]
            blocks.setdefault(name, []).append(SavedBlock(start, end, path, name))
    return {name: sorted(of_part) for name, of_part in blocks.items()}


def write_blocks(directory: Path, owner: int, blocks: Blocks) -> dict[str, int]:
    """Write each block to a new file, which is on the disk afterwards.

    Args:
        directory: The folder of the files of all owners.
        owner: The number of the rank or of the server that has the blocks, from 0.
        blocks: The blocks; empty ones are left out.

    Returns:
        The CRC-32 of each file.
    """
    checksums = {}
    for number, (name, (start, block)) in enumerate(blocks.items(), start=1):
        if not len(block):
            continue
        file_name = f"shard-{owner + 1:05}-model-{number:05}-of-{len(blocks):05}.safetensors"
        offsets = {name: {OFFSETS: [start, *[0] * (block.dim() - 1)]}}
        path = directory / file_name
        save_file({name: block}, path, {OFFSETS_OF_FILE: json.dumps(offsets)})
        with path.open("rb") as file:
            os.fsync(file.fileno())
        checksums[file_name] = crc32_file(path)
    return checksums


def read_blocks(directory: Path, blocks: Blocks) -> None:
    """Read blocks in place, from files that any number of ranks or servers has written.

    Raises:
        DataError: A row of a block is in no file.
    """
    missing = {name: len(block) for name, (_, block) in blocks.items()}
    all_saved = blocks_in(directory)
    for name, (start, block) in blocks.items():
        for saved in all_saved.get(name, []):
            first = max(start, saved.start)
            end = min(start + len(block), saved.end)
            if first < end:
                with torch.no_grad():
                    block[first - start : end - start] = saved.values(first, end)
                missing[name] -= end - first
    if incomplete := sorted(name for name, count in missing.items() if count > 0):
        raise DataError(f"{directory}: rows of {incomplete[0]} are missing")
