"""Files of weights that may be larger than the memory of the machine."""

import json
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.factories.models import small_params
from training import tensor_files
from training.inference.weights_file import read_stored
from training.models.factory import build_model
from training.tensor_files import Rows, map_tensors, write_tensors

CARDINALITIES = [7, 40, 3, 150]
QR = {"name": "quotient_remainder", "operation": "concat", "collisions": 4, "threshold": 8}
MIXED_DIM = {"name": "mixed_dim", "alpha": 0.5, "threshold": 8}
MODELS: list[dict[str, Any]] = [
    {},
    {"tables": QR, "embedding_dim": 8},
    {"tables": MIXED_DIM, "embedding_dim": 8},
    {"interaction": {"name": "cross", "layers": 2, "rank": 2}},
]


def check_nothing(name: str, block: torch.Tensor) -> None:
    """Find nothing wrong."""


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_files, "BLOCK_BYTES", 100)


@pytest.mark.parametrize("num_dense", [0, 5])
@pytest.mark.parametrize("parts", MODELS, ids=lambda parts: "-".join(parts) or "full")
def test_the_bytes_are_those_of_safetensors(
    tmp_path: Path, parts: dict[str, Any], num_dense: int
) -> None:
    params = small_params(tmp_path / "log.tsv", **parts).model
    model = build_model(params, CARDINALITIES, num_dense, torch.Generator().manual_seed(1))
    tensors = model.state_dict()
    save_file(tensors, tmp_path / "expected")
    write_tensors(tmp_path / "found", tensors, check_nothing)
    assert (tmp_path / "found").read_bytes() == (tmp_path / "expected").read_bytes()
    blocks = {
        name: Rows(tuple(tensor.shape), [tensor[k : k + 3] for k in range(0, len(tensor), 3)])
        for name, tensor in tensors.items()
    }
    write_tensors(tmp_path / "in blocks", blocks, check_nothing)
    assert (tmp_path / "in blocks").read_bytes() == (tmp_path / "expected").read_bytes()


def test_any_shape_and_layout_is_written_as_safetensors_does(tmp_path: Path) -> None:
    tensors = {
        "é.z": torch.rand(3, 50).T,
        "scalar": torch.tensor(2.5),
        "B": torch.empty(4, 0),
        "a": torch.rand(1, 2, 3),
    }
    save_file({k: tensor.contiguous() for k, tensor in tensors.items()}, tmp_path / "expected")
    write_tensors(tmp_path / "found", tensors, check_nothing)
    assert (tmp_path / "found").read_bytes() == (tmp_path / "expected").read_bytes()


def test_every_block_is_checked_before_it_is_written(tmp_path: Path) -> None:
    checked = []
    write_tensors(
        tmp_path / "file",
        {"a": torch.arange(60.0), "b": Rows((2,), [torch.zeros(1), torch.ones(1)])},
        lambda name, block: checked.append((name, block.flatten().tolist())),
    )
    assert [name for name, _ in checked] == ["a", "a", "a", "b", "b"]
    assert [value for _, block in checked for value in block] == [*range(60), 0, 1]


def test_mapped_tensors_are_those_of_safetensors(tmp_path: Path) -> None:
    tensors = {
        "float32": torch.rand(3, 5),
        "bfloat16": torch.rand(7).to(torch.bfloat16),
        "float16": torch.rand(7).to(torch.float16),
        "int8": torch.arange(-5, 5, dtype=torch.int8),
        "uint8": torch.arange(9, dtype=torch.uint8).view(3, 3),
        "empty": torch.empty(0, 4),
        "scalar": torch.tensor(1.5),
    }
    path = tmp_path / "file"
    save_file(tensors, path, {"metadata": "of the file"})
    contents = path.read_bytes()
    found = map_tensors(path)
    assert found.keys() == tensors.keys()
    for name, tensor in load_file(path).items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    found["float32"][1] = 7  # in this process alone
    assert path.read_bytes() == contents
    assert torch.equal(map_tensors(path)["float32"], tensors["float32"])


def test_a_file_larger_than_the_memory_can_be_mapped(tmp_path: Path) -> None:
    num_rows, dim = 2 * (psutil.virtual_memory().total + psutil.swap_memory().total) >> 7, 32
    num_bytes = 4 * dim * num_rows
    stored = {"dtype": "F32", "shape": [num_rows, dim], "data_offsets": [0, num_bytes]}
    header = json.dumps({"large": stored}).encode()
    path = tmp_path / "file"
    with path.open("wb") as file:  # it takes a few bytes of the disk
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + num_bytes)
    assert read_stored(path)["large"].shape == (num_rows, dim)
    assert map_tensors(path)["large"][[0, num_rows // 2, -1]].tolist() == [[0.0] * dim] * 3
