"""The checkpoint files of table servers, in the format of `table_checkpoint.py`.

That is torch.distributed.checkpoint's safetensors format. A file has a block of a table, and its
header says at which position of the table the block begins. The ranks of hybrid parallelism, table
servers of any number and a single device read what any of them has written.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from common.files import DataError, crc32_file
from training.distributed.sharding.saved_rows import OFFSETS, OFFSETS_OF_FILE, blocks_in

Blocks = Mapping[str, tuple[int, Tensor]]  # GROUP.TABLE.KIND: the first position, and the values


def write_blocks(directory: Path, server: int, blocks: Blocks) -> dict[str, int]:
    """Write each block to a new file, which is on the disk afterwards.

    Args:
        directory: The folder of the files of all servers.
        server: The number of the server, from 0.
        blocks: The blocks; empty ones are left out.

    Returns:
        The CRC-32 of each file.
    """
    checksums = {}
    for number, (name, (start, block)) in enumerate(blocks.items(), start=1):
        if not len(block):
            continue
        file_name = f"shard-{server + 1:05}-model-{number:05}-of-{len(blocks):05}.safetensors"
        offsets = {name: {OFFSETS: [start, *[0] * (block.dim() - 1)]}}
        path = directory / file_name
        save_file({name: block}, path, {OFFSETS_OF_FILE: json.dumps(offsets)})
        with path.open("rb") as file:
            os.fsync(file.fileno())
        checksums[file_name] = crc32_file(path)
    return checksums


def read_blocks(directory: Path, blocks: Blocks) -> None:
    """Read blocks in place, from files that any number of servers or ranks has written.

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
