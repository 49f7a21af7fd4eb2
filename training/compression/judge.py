"""The quality, size and speed of compressed models, beside the original, on the validation rows.

Test rows are not looked at: they judge the model that is deployed in the end.

Shapes: N validation rows, B rows of a batch.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from common.artifact import Artifact
from common.files import DataError
from features.schema.schema import Schema
from training.compression.recalibrate import Calibration, fit_calibration, probabilities
from training.compression.statistics import batches_of
from training.evaluation.metrics import Metrics, metrics_of_rows
from training.loop.batches import Rows
from training.models.footprint import Footprint, footprint_of

ROUNDS = 5  # of the forward passes that are timed

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Judged:
    """A model that was judged.

    Attributes:
        name: What was done to the original.
        metrics: Its metrics, recalibrated.
        metrics_before: Those before the recalibration.
        footprint: Its footprint.
        speed: Its rows per second, divided by those of the original; None for the original.
        is_chosen: Whether it is the model of the bundle.
    """

    name: str
    metrics: Metrics
    metrics_before: Metrics
    footprint: Footprint
    speed: float | None = None
    is_chosen: bool = False


class Judge:
    """Scores the validation rows with models, and compares these with the original.

    Args:
        original: The original model; it is run here.
        features: artifacts/features.
        schema: The columns of the features.
        advance: Receives the number of rows that were scored.

    Attributes:
        labels: (N,) uint8.
        weights: Sample weights (N,); None if all are 1.
        original_logits: The logits of the original model (N,).
    """

    def __init__(
        self,
        original: nn.Module,
        features: Artifact,
        schema: Schema,
        advance: Callable[[int], None],
    ) -> None:
        self.original, self.features, self.schema = original, features, schema
        self.advance = advance
        labels, weights = [], []
        for rows in batches_of(features, schema, "valid"):
            labels.append(rows.labels.numpy().astype(np.uint8))
            if rows.weights is not None:
                weights.append(rows.weights.numpy())
        self.labels = np.concatenate(labels)
        self.weights = np.concatenate(weights) if weights else None
        self.first_rows = next(iter(batches_of(features, schema, "valid")))
        self.original_logits = self.logits(original)

    def logits(self, model: nn.Module) -> Logits:
        """Compute the logits of the validation rows (N,).

        Raises:
            DataError: One is NaN or infinite.
        """
        logits = []
        for rows in batches_of(self.features, self.schema, "valid"):
            logits.append(forward(model, rows))
            self.advance(len(rows.labels))
        logits_N = np.concatenate(logits)
        if not np.isfinite(logits_N).all():
            row = int(np.argmin(np.isfinite(logits_N)))
            raise DataError(
                f"{self.features.folder / 'valid'}: row {row}: a model computes {logits_N[row]},"
                " which gives no score; check the row's dense values, or train the model again"
            )
        return logits_N

    def calibration(self, logits_N: Logits) -> Calibration:
        """Fit the recalibration of a model that has these logits."""
        return fit_calibration(logits_N, self.original_logits, self.weights)

    def judge(
        self, name: str, model: nn.Module, logits_N: Logits, *, is_chosen: bool = False
    ) -> Judged:
        """Judge a model.

        Args:
            name: What was done to it.
            model: The model.
            logits_N: Its logits before the recalibration.
            is_chosen: Whether it is the model of the bundle.
        """
        recalibrated_N = self.calibration(logits_N).apply(logits_N)
        return Judged(
            name,
            self._metrics(recalibrated_N),
            self._metrics(logits_N),
            footprint_of(model),
            relative_speed(model, self.original, self.first_rows),
            is_chosen,
        )

    def judge_original(self, name: str) -> Judged:
        """Judge the original model."""
        metrics = self._metrics(self.original_logits)
        return Judged(name, metrics, metrics, footprint_of(self.original))

    def _metrics(self, logits_N: Logits) -> Metrics:
        scores_N = probabilities(logits_N).astype(np.float32)
        return metrics_of_rows(self.labels, scores_N, self.weights)


def forward(model: nn.Module, rows: Rows) -> Logits:
    """Compute the logits of some rows, (B,)."""
    with torch.inference_mode():
        logits_B: NDArray[Any] = model(rows.dense, rows.ids, rows.bags).numpy()
        return logits_B


def relative_speed(model: nn.Module, original: nn.Module, rows: Rows) -> float:
    """Measure how many rows a model scores in the time in which the original scores one.

    Both score the same rows in turn on one thread. The time is that of the CPU, so that other work
    on the machine counts little.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds: list[list[float]] = [[], []]
        for _ in range(ROUNDS + 1):
            for of_model, each in zip(seconds, (original, model), strict=True):
                started = time.process_time()
                forward(each, rows)
                of_model.append(time.process_time() - started)
        # the first round warms the caches
        median_s = [statistics.median(times[1:]) for times in seconds]
        return median_s[0] / median_s[1]
    finally:
        torch.set_num_threads(num_threads)
