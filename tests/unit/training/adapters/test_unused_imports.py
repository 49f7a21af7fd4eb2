"""Tests of the delayed imports, each in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from common.bundle_layout import MODEL
from tests.factories.features import training_params, write_features

SETUP = """
import sys
import torch
from training.adapters.unused_imports import delay_unused_imports
delay_unused_imports()
import pytorch_lightning
from pytorch_lightning.utilities.compile import OptimizedModule

def imported():
    return "torch._dynamo.eval_frame" in sys.modules

def imported_scipy():
    return "scipy.signal.windows" in sys.modules

def train_a_step():
    optimizer.zero_grad()
    layer(torch.ones(2, 3)).sum().backward()
    optimizer.step()

layer = torch.nn.Linear(3, 3)
optimizer = torch.optim.Adam(layer.parameters())
train_a_step()
assert not isinstance(layer, OptimizedModule)
assert not imported()
assert not imported_scipy()
"""
# Code that uses scipy.signal, and code that uses torch._dynamo. Each must get the real module, not
# the stand-in.
USES = {
    "attribute": (
        """
import scipy
assert scipy.signal.convolve([1, 2], [1]).tolist() == [1, 2]
""",
        """
compiled = torch.compile(layer, backend="eager")
compiled(torch.ones(2, 3))
assert isinstance(compiled, OptimizedModule)
assert not isinstance(layer, OptimizedModule)
""",
    ),
    "import of a module": (
        """
import scipy.signal.windows
assert scipy.signal.windows.boxcar(2).tolist() == [1, 1]
""",
        """
import torch._dynamo.utils
from torch._dynamo import exc
assert torch._dynamo.utils is sys.modules["torch._dynamo.utils"]
assert torch._dynamo.utils.counters is exc.counters
""",
    ),
    "import of a name": (
        """
from scipy.signal import convolve
assert convolve([1, 2], [1]).tolist() == [1, 2]
""",
        """
from torch._dynamo.eval_frame import OptimizedModule as Real
assert torch._dynamo.OptimizedModule is Real
""",
    ),
}


@pytest.mark.parametrize("use", USES)
def test_modules_are_imported_on_first_use(use: str) -> None:
    of_scipy, of_dynamo = USES[use]
    code = (
        f"{SETUP}{of_scipy}assert imported_scipy()\nassert not imported()\n"
        f"{of_dynamo}assert imported()\ntrain_a_step()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_scipy_nothing_is_delayed() -> None:
    code = """
import sys

class NoSciPy:
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "scipy":
            raise ModuleNotFoundError(name=name)

sys.meta_path.insert(0, NoSciPy())
from training.adapters.unused_imports import delay_unused_imports
delay_unused_imports()
assert not [name for name in sys.modules if name.startswith("scipy")]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_dynamo_that_is_imported_already_is_left_alone() -> None:
    code = """
import sys
import torch._dynamo
from training.adapters.unused_imports import delay_unused_imports
real = torch._dynamo.OptimizedModule
delay_unused_imports()
assert torch._dynamo.OptimizedModule is real
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_train_stage_does_without(tmp_path: Path) -> None:
    """Neither torch._dynamo nor SciPy nor pandas is imported, each of which takes long."""
    write_features(tmp_path, {"train": [40], "valid": [20], "test": [10]})
    params = training_params(epochs=1)
    code = """
import sys
from pathlib import Path
from common.config.params import Params
from training.adapters.unused_imports import delay_unused_imports
delay_unused_imports()
from training.stage import train
train(Params.model_validate_json(sys.argv[1]), Path(sys.argv[2]))
assert "torch._dynamo.eval_frame" not in sys.modules
assert "scipy.signal.windows" not in sys.modules
assert "pandas" not in sys.modules
"""
    command = [sys.executable, "-c", code, params.model_dump_json(by_alias=True), str(tmp_path)]
    subprocess.run(command, check=True)
    assert (tmp_path / MODEL).is_dir()
