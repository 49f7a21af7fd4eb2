"""The runtime: it computes the scores of encoded rows from a model file, with ONNX Runtime.

A row's score has the same bits in every batch: ONNX Runtime adds up a row's products in the same
order whatever the number of rows. That is a property of its kernels, and not a promise, so
`clickmill export` checks it for each model.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.files import DataError
from common.printable import first_line
from serving.serving_bundle import PACKAGE_FILE

# From version 1.32 on, ONNX Runtime reports its use to its makers unless this is set when it is
# imported, and keeps an identifier of the machine in the folder for temporary files.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime

DENSE, IDS, SCORE = "dense", "ids", "score"  # the inputs and the output of a model file
ONLY_ERRORS = 3  # the level of ONNX Runtime's log


class Runtime:
    """A model file that is loaded. Threads may share it.

    Args:
        path: The model file.
        num_threads: The number of threads for each call.

    Raises:
        DataError: ONNX Runtime cannot load the file, or it is one for AOTInductor.
    """

    def __init__(self, path: Path, num_threads: int = 1) -> None:
        if path.name == PACKAGE_FILE:
            raise DataError(
                f"{path}: exported for AOTInductor, which only PyTorch can run; export the model"
                " again with --runtime onnx"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.inter_op_num_threads = 1
        options.log_severity_level = ONLY_ERRORS
        # A thread that waits would use its core fully, which other processes need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # it has many types of its own, without a common one
            raise DataError(
                f"{path}: ONNX Runtime cannot load it ({first_line(error)}); export the model again"
            ) from None
        self._names = {one.name for one in self._session.get_inputs()}

    def scores(
        self, dense_BN: NDArray[np.float32], ids_BF: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        """Compute click probabilities (B,).

        Args:
            dense_BN: The dense inputs, which may have no columns.
            ids_BF: The ids of the categorical features.
        """
        values: dict[str, NDArray[Any]] = {DENSE: dense_BN, IDS: ids_BF}
        inputs = {name: value for name, value in values.items() if name in self._names}
        (scores,) = self._session.run([SCORE], inputs)
        flat: NDArray[np.float32] = np.asarray(scores).reshape(-1)
        return flat
