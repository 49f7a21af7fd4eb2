"""Scores by an AOTInductor package: machine code that PyTorch has compiled from a model.

The code in a package is executed, unlike anything else in a bundle. Load only packages of your own.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from common.files import DataError
from common.printable import first_line
from serving.runtime import DENSE, IDS


def load_package(
    path: Path,
) -> Callable[[NDArray[np.float32], NDArray[np.int32]], NDArray[np.float32]]:
    """Load a package, which computes (B, N) float32 and (B, F) int32 -> scores (B,) float32.

    It has no number of threads of its own: it uses those of PyTorch.

    Raises:
        DataError: PyTorch cannot load it.
    """
    try:
        package = torch._inductor.aoti_load_package(str(path))
    except RuntimeError as error:
        raise DataError(
            f"{path}: PyTorch {torch.__version__} cannot load it ({first_line(error)}); export the"
            " model again on this machine and with this version of PyTorch"
        ) from None

    @torch.inference_mode()
    def scores(dense_BN: NDArray[np.float32], ids_BF: NDArray[np.int32]) -> NDArray[np.float32]:
        given = {DENSE: torch.from_numpy(dense_BN), IDS: torch.from_numpy(ids_BF)}
        found: torch.Tensor = package({name: one for name, one in given.items() if one.shape[1]})
        scores_B: NDArray[np.float32] = found.numpy()
        return scores_B

    return scores
