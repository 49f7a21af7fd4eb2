"""Safetensors files of models that may be larger than the memory of the machine.

The safetensors library writes whole tensors only; here a tensor can be made block by block. The
library also maps a file in such a way that Linux reserves memory for all of it, because every page
might be changed. Linux therefore refuses to map a file that is larger than the memory. Here no
memory is reserved.
"""

import json
import math
import mmap
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

BLOCK_BYTES = 64 << 20  # of a tensor that is in memory at once while it is made or written
FLOAT32_BYTES = 4
LENGTH_BYTES = 8  # before the header
ALIGNMENT = 8  # of the first tensor
METADATA = "__metadata__"
DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I8": torch.int8,
    "U8": torch.uint8,
}
MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0  # Python's mmap has no name for it


class Rows(NamedTuple):
    """A tensor that is made while it is written.

    Attributes:
        shape: Its shape.
        blocks: Its rows, float32, in blocks of consecutive ones.
    """

    shape: tuple[int, ...]
    blocks: Iterable[Tensor]


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor | Rows], check: Callable[[str, Tensor], None]
) -> None:
    """Write float32 tensors; the bytes are those of `safetensors.torch.save_file`.

    Beside the tensors, a block of 64 MiB is in memory.

    Args:
        path: The file.
        tensors: The tensors, on any device.
        check: Gets the name of a tensor and a block of it before the block is written. What it
            raises ends the writing, and the file is left unfinished.
    """
    header, end = {}, 0
    for name in sorted(tensors):
        shape = list(tensors[name].shape)
        start, end = end, end + FLOAT32_BYTES * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(LENGTH_BYTES, "little"))
        file.write(text)
        for name in header:
            for block in _blocks_of(tensors[name]):
                assert block.dtype == torch.float32, name
                check(name, block)
                file.write(block.contiguous().numpy().data)
        assert file.tell() == LENGTH_BYTES + len(text) + end


def map_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file without reading them.

    A page of the file is read when a number on it is needed, and Linux can drop it again. A number
    that is changed is changed in this process alone.

    Args:
        path: The file, which `weights_file.read_stored` or a checksum has found to be whole.
    """
    with path.open("rb") as file:
        header = _header_of(file)
        first = file.tell()
        pages = mmap.mmap(
            file.fileno(),
            0,
            flags=mmap.MAP_PRIVATE | MAP_NORESERVE,
            prot=mmap.PROT_READ | mmap.PROT_WRITE,
        )
    header.pop(METADATA, None)
    return {
        name: _mapped(
            pages, DTYPES[stored["dtype"]], stored["shape"], first + stored["data_offsets"][0]
        )
        for name, stored in header.items()
    }


def read_header(path: Path) -> dict[str, Any]:
    """Return the header of a file: what it says of each tensor, and METADATA if it has any."""
    with path.open("rb") as file:
        return _header_of(file)


def _header_of(file: IO[bytes]) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(
        file.read(int.from_bytes(file.read(LENGTH_BYTES), "little"))
    )
    return header


def _blocks_of(tensor: Tensor | Rows) -> Iterable[Tensor]:
    if isinstance(tensor, Rows):
        return tensor.blocks
    blocks = torch.split(tensor.detach().reshape(-1), BLOCK_BYTES // FLOAT32_BYTES)
    return (block.cpu() for block in blocks)


def _mapped(pages: mmap.mmap, dtype: torch.dtype, shape: list[int], offset: int) -> Tensor:
    count = math.prod(shape)
    if not count:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(pages, dtype=dtype, count=count, offset=offset).view(shape)
