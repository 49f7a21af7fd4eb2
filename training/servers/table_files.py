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
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint._hf_utils import CUSTOM_METADATA_KEY, SAVED_OFFSETS_KEY

from common.files import DataError, crc32_file

Blocks = Mapping[str, tuple[int, Tensor]]  # GROUP.TABLE.KIND: the first position, and the values


def write_blocks(directory: Path, server: int, blocks: Blocks) -> dict[str, int]:
    """Write each block to a new file, which is on the disk afterwards.

    A file is made in memory first, so one with all blocks would need as much memory as they do.

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
        offsets = {name: {SAVED_OFFSETS_KEY: [start, *[0] * (block.dim() - 1)]}}
        path = directory / file_name
        save_file({name: block}, path, {CUSTOM_METADATA_KEY: json.dumps(offsets)})
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
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            offsets = json.loads((file.metadata() or {}).get(CUSTOM_METADATA_KEY, "{}"))
            for name in blocks.keys() & set(file.keys()):
                start, block = blocks[name]
                saved = file.get_slice(name)
                saved_start = offsets[name][SAVED_OFFSETS_KEY][0] if name in offsets else 0
                first = max(start, saved_start)
                end = min(start + len(block), saved_start + saved.get_shape()[0])
                if first < end:
                    values = saved[first - saved_start : end - saved_start]
                    with torch.no_grad():
                        block[first - start : end - start] = values
                    missing[name] -= end - first
    if incomplete := sorted(name for name, count in missing.items() if count > 0):
        raise DataError(f"{directory}: rows of {incomplete[0]} are missing")
