"""The model of `clickmill predict`: a bundle in PyTorch, or a serving bundle in its runtime."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from common.files import DataError
from common.threads import usable_cpus
from features.encode.feature_state import FeatureState
from features.encode.matrices import dense_matrix, id_matrix
from serving.serving_bundle import (
    SERVING_MANIFEST,
    ServingBundle,
    load_serving_bundle,
    reason_not_exported,
)

BATCH_ROWS = 8192  # rows that the runtime scores at once; the scores do not depend on it


class LoadedModel(Protocol):
    """A model that scores encoded rows.

    Attributes:
        state: The feature state that encodes its rows.
        version: Its version.
        short_rows: The parameter `ingest.short_rows` that it was trained with.
    """

    state: FeatureState
    version: str
    short_rows: str

    def score(self, rows: pl.DataFrame, name_row: Callable[[int], str]) -> NDArray[np.float32]:
        """Compute click probabilities, float32 (N,).

        Args:
            rows: N encoded rows.
            name_row: Says in an error which row of which file the row of a number, from 0, is.

        Raises:
            DataError: The model's output for a row is NaN or infinite, and so no probability.
        """
        ...


class BundleModel:
    """A bundle, which PyTorch scores with.

    Args:
        directory: Its folder.

    Raises:
        DataError: It is damaged.
    """

    def __init__(self, directory: Path) -> None:
        # A serving bundle is scored without PyTorch, whose import takes a second.
        from training.inference.bundle import load_bundle

        self.bundle = load_bundle(directory)
        self.state, self.version = self.bundle.state, self.bundle.version
        self.short_rows: str = self.bundle.manifest.params["ingest"]["short_rows"]

    def score(self, rows: pl.DataFrame, name_row: Callable[[int], str]) -> NDArray[np.float32]:
        """Compute click probabilities; see `LoadedModel`."""
        from training.inference.score import score

        return score(self.bundle, rows, name_row)


class ServingModel:
    """A serving bundle. With ONNX Runtime the scores have the bits of those of `clickmill serve`.

    Args:
        directory: Its folder.

    Raises:
        DataError: It is damaged.
    """

    def __init__(self, directory: Path) -> None:
        bundle = load_serving_bundle(directory)
        self.state, self.version = bundle.state, bundle.manifest.version
        self.short_rows: str = bundle.manifest.short_rows
        self._compute = _runtime_of(bundle)

    def score(self, rows: pl.DataFrame, name_row: Callable[[int], str]) -> NDArray[np.float32]:
        """Compute click probabilities; see `LoadedModel`."""
        schema = self.state.schema
        dense_NN, ids_NF = dense_matrix(rows, schema), id_matrix(rows, schema)
        scores_N = np.empty(rows.height, np.float32)
        for start in range(0, rows.height, BATCH_ROWS):
            part = slice(start, start + BATCH_ROWS)
            scores_N[part] = self._compute(dense_NN[part], ids_NF[part])
        if (is_nan_N := np.isnan(scores_N)).any():
            raise DataError(
                f"{name_row(int(is_nan_N.argmax()))}: model {self.version} computes no number,"
                " which gives no score; check the row's dense values, or train the model again"
            )
        return scores_N


def load_model(directory: Path) -> LoadedModel:
    """Check and load a bundle or a serving bundle.

    Raises:
        DataError: It is damaged, or the folder has neither.
    """
    if reason := reason_not_exported(directory):
        raise DataError(f"{directory}: no serving bundle here: {reason}")
    is_serving = (directory / SERVING_MANIFEST).is_file()
    return ServingModel(directory) if is_serving else BundleModel(directory)


def _runtime_of(
    bundle: ServingBundle,
) -> Callable[[NDArray[np.float32], NDArray[np.int32]], NDArray[np.float32]]:
    if bundle.manifest.runtime == "aoti":
        from training.inference.aoti_package import load_package

        return load_package(bundle.model_path)
    from serving.runtime import Runtime

    return Runtime(bundle.model_path, usable_cpus()).scores
