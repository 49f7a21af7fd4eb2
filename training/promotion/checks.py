"""What a model has to pass before it is promoted. Every check says what it found, passed or not; one that did not pass keeps the champion.

data                no figure of the data above its `block_promotion` in params.yaml's section gate
skill               normalised entropy below 1: better than the click rate alone
calibration         clicks predicted over clicks observed, within promote.calibration, beyond chance
calibration error   at most promote.max_ece, beyond chance
probe               a fresh process scores the same bits (training/promotion/smoke_test.py)
comparison          the champion can read the rows, and was not trained on them
logloss, auc        not worse than the champion on the same rows, at promote.significance_level (training/promotion/paired_bootstrap.py)
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from common.config.params import Promote
from training.promotion.paired_bootstrap import Difference

SURE = 1.96  # standard deviations: what is as far off is so by chance in one case of forty


@dataclass(frozen=True)
class Check:
    name: str
    passed: bool
    found: str


def check_data(blocking: list[str]) -> list[Check]:
    """blocking: the list `blocks_promotion` of data.json."""
    return [Check("data", False, line) for line in blocking] or [
        Check("data", True, "no figure is above its block_promotion threshold")
    ]


def check_skill(figures: dict[str, Any]) -> Check:
    entropy = figures["normalized_entropy"]
    if entropy is None:
        return Check(
            "skill", False, "the test rows have one label only: nothing can be told from them"
        )
    return Check("skill", entropy < 1, f"normalised entropy {entropy:.4f}; a constant has 1")


def check_calibration(
    figures: dict[str, Any], bins: pl.DataFrame, params: Promote
) -> Iterator[Check]:
    """bins: calibration.csv of the test rows. What chance explains refuses no day; of the ratio its 95 % interval counts."""
    ratio, bounds = figures["calibration_ratio"], params.calibration
    low, high = figures["calibration_ratio_low"], figures["calibration_ratio_high"]
    found = "no click to predict"
    if ratio is not None:
        found = f"predicts {ratio:.3f} times the clicks there were ({low:.3f} to {high:.3f}); {bounds.low:g} to {bounds.high:g} may be"
    yield Check(
        "calibration", ratio is not None and low <= bounds.high and high >= bounds.low, found
    )
    error = math.sqrt(
        max(0.0, figures["ece"] ** 2 - error_by_chance(bins) ** 2)
    )  # in squares, as independent errors add up
    found = f"{error:.4f} of {figures['ece']:.4f} beyond chance; {params.max_ece:g} may be"
    yield Check("calibration error", error <= params.max_ece, found)


def error_by_chance(bins: pl.DataFrame) -> float:
    """The calibration error that calibrated scores would hardly exceed on so many rows.

    The click rate of a bin of n rows and mean score p strays from p by about a normal deviate of s = sqrt(p (1 - p) / n), whose absolute
    value has the mean sqrt(2 / pi) s and the variance (1 - 2 / pi) s^2. The error is the mean over bins, by their rows.
    """
    p_K, n_K = bins["mean_score"].to_numpy(), bins["num_rows"].to_numpy()
    strays_K = np.sqrt(p_K * (1 - p_K) / n_K) * n_K / n_K.sum()
    return float(
        math.sqrt(2 / math.pi) * strays_K.sum()
        + SURE * math.sqrt((1 - 2 / math.pi) * (strays_K**2).sum())
    )


def check_not_worse(name: str, difference: Difference, level: float) -> Check:
    interval = f"{difference.low:+.5f} to {difference.high:+.5f}"
    found = f"{difference.value:+.5f} to the champion ({interval}), worse in {difference.worse:.1%} of resamples"
    return Check(name, difference.worse < 1 - level, f"{found}; below {1 - level:.1%} may be")
