"""Tests of the lazy import of torch._dynamo, each in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from common.bundle_layout import MODEL
from tests.factories.features import training_params, write_features

SETUP = """
import sys
import torch
from training.adapters.torch_dynamo import import_dynamo_on_first_use
import_dynamo_on_first_use()
import pytorch_lightning
from pytorch_lightning.utilities.compile import OptimizedModule

def imported():
    return "torch._dynamo.eval_frame" in sys.modules

def train_a_step():
    optimizer.zero_grad()
    layer(torch.ones(2, 3)).sum().backward()
    optimizer.step()

layer = torch.nn.Linear(3, 3)
optimizer = torch.optim.Adam(layer.parameters())
train_a_step()
assert not isinstance(layer, OptimizedModule)
assert not imported()
"""
# Code that uses torch._dynamo. It must get the real module, not the stand-in.
USES = {
    "compile": """
compiled = torch.compile(layer, backend="eager")
compiled(torch.ones(2, 3))
assert isinstance(compiled, OptimizedModule)
assert not isinstance(layer, OptimizedModule)
""",
    "import of a module": """
import torch._dynamo.utils
from torch._dynamo import exc
assert torch._dynamo.utils is sys.modules["torch._dynamo.utils"]
assert torch._dynamo.utils.counters is exc.counters
""",
    "import of a name in a module": """
from torch._dynamo.eval_frame import OptimizedModule as Real
assert torch._dynamo.OptimizedModule is Real
""",
}


@pytest.mark.parametrize("use", USES)
def test_dynamo_is_imported_on_first_use(use: str) -> None:
    code = SETUP + USES[use] + "assert imported()\ntrain_a_step()\n"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_dynamo_that_is_imported_already_is_left_alone() -> None:
    code = """
import sys
import torch._dynamo
from training.adapters.torch_dynamo import import_dynamo_on_first_use
real = torch._dynamo.OptimizedModule
import_dynamo_on_first_use()
assert torch._dynamo.OptimizedModule is real
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_train_stage_does_without(tmp_path: Path) -> None:
    """Neither torch._dynamo nor pandas is imported, each of which takes long."""
    write_features(tmp_path, {"train": [40], "valid": [20], "test": [10]})
    params = training_params(epochs=1)
    code = """
import sys
from pathlib import Path
from common.config.params import Params
from training.adapters.torch_dynamo import import_dynamo_on_first_use
import_dynamo_on_first_use()
from training.stage import train
train(Params.model_validate_json(sys.argv[1]), Path(sys.argv[2]))
assert "torch._dynamo.eval_frame" not in sys.modules
assert "pandas" not in sys.modules
"""
    command = [sys.executable, "-c", code, params.model_dump_json(by_alias=True), str(tmp_path)]
    subprocess.run(command, check=True)
    assert (tmp_path / MODEL).is_dir()
