"""Odd contents of a compressed bundle: refused in one line, or used; never a crash.

The hashes of what is changed are made right again, so that the contents are looked at.
"""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from common.bundle_layout import MANIFEST, MODEL, WEIGHTS
from common.files import DataError, sha256_file
from tests.factories.models import log_lines, make_bundle, make_project, read_split
from tests.fault.test_fuzz_bundle import mutated, relist, write_bundle_manifest
from training.compression.compress_model import Steps
from training.compression.stage import compress
from training.inference.bundle import load_bundle
from training.inference.score import score

NUM_MUTATIONS = 120


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a compressed bundle in `small`."""
    folder = tmp_path_factory.mktemp("fuzz")
    make_bundle(folder, make_project(folder, log_lines(1400, 1)))
    compress(folder / MODEL, folder / "small", Steps(4, rows=0.5, units=0.25), folder)
    return folder


@pytest.fixture
def small(root: Path, tmp_path: Path) -> Path:
    """Return a copy that a test may damage."""
    return Path(shutil.copytree(root / "small", tmp_path / "small"))


def refusal(small: Path, root: Path, what: object) -> str | None:
    """Return the message if the bundle is refused, None if it gives scores."""
    try:
        scores = score(load_bundle(small), read_split(root, "test"))
    except DataError as error:
        message = str(error)
        assert message.isprintable(), (what, message)
        assert len(message) < 3000, what
        return message
    except BaseException as error:
        raise AssertionError(what) from error
    assert ((scores >= 0) & (scores <= 1)).all(), what
    return None


def test_every_value_of_the_compression(root: Path, small: Path) -> None:
    original = json.loads((small / MANIFEST).read_text())
    rng = random.Random(21)
    messages = set()
    for _ in range(NUM_MUTATIONS):
        value: dict[str, Any] = original | {"compression": mutated(original["compression"], rng)}
        write_bundle_manifest(small, value)
        messages.add(refusal(small, root, value["compression"]))
    assert len(messages) > NUM_MUTATIONS / 4


def test_every_byte_range_of_the_weights(root: Path, small: Path) -> None:
    original = (small / WEIGHTS).read_bytes()
    (header,) = np.frombuffer(original[:8], np.uint64).tolist()
    rng = random.Random(22)
    num_refused = 0
    for k in range(NUM_MUTATIONS):
        damaged = bytearray(original)
        last = 8 + header if k % 2 else len(original)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(last)] = rng.randrange(256)
        (small / WEIGHTS).write_bytes(bytes(damaged[: rng.choice([None, None, -1, 20])]))
        relist(small, WEIGHTS)
        num_refused += refusal(small, root, bytes(damaged[:1000])) is not None
    assert num_refused > NUM_MUTATIONS / 4


def test_every_tensor_with_other_shapes_and_types(root: Path, small: Path) -> None:
    tensors = load_file(small / WEIGHTS)
    assert {f"embeddings.tables.0.{name}" for name in ("codes", "scale", "kept")} < set(tensors)
    for name, tensor in tensors.items():
        odd = [
            tensor.flatten()[:-1],
            tensor.unsqueeze(0),
            tensor[:0],
            tensor.double(),
            tensor.bool(),
        ]
        for other in odd:
            save_file(tensors | {name: other.contiguous()}, small / WEIGHTS)
            relist(small, WEIGHTS)
            message = refusal(small, root, (name, other.shape, other.dtype))
            assert message is not None
            assert name.rpartition(".")[0] in message
    assert sha256_file(root / "small" / WEIGHTS) != sha256_file(small / WEIGHTS)
