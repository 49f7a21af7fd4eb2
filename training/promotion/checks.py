"""The checks that a challenger has to pass. It is promoted only if it passes every one of them.

check               passes if
data                no value of the data profile is above its `block_promotion` threshold in the
                    section gate of params.yaml
skill               the normalised entropy of the test rows is below 1: the model is better than
                    always predicting their click rate
calibration         the 95 % interval of predicted / observed clicks of the test rows overlaps the
                    range promote.calibration
calibration error   the expected calibration error of the test rows, minus the error that even
                    calibrated scores would have by chance, is at most promote.max_ece
smoke test          a fresh process that loads the bundle gives the same scores, bit for bit
                    (training/promotion/smoke_test.py)
comparison          the champion can score the test rows and was not trained on them
                    (training/promotion/comparable.py); listed only if it fails
logloss, auc        the paired bootstrap does not say, at promote.significance_level, that the
                    challenger is worse than the champion on the same test rows
                    (training/promotion/paired_bootstrap.py)

comparison, logloss and auc need a champion. training/promotion/decide.py runs them all.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from common.config.params import Promote
from training.promotion.paired_bootstrap import Difference

# A normally distributed value is this many standard deviations above its mean in 2.5 % of cases.
NEARLY_CERTAIN = 1.96


@dataclass(frozen=True)
class Check:
    """The result of a check.

    Attributes:
        name: Name of the check, as in the table above.
        passed: Whether the challenger passed it.
        message: The values that decided, in one line.
    """

    name: str
    passed: bool
    message: str


def data_gate_checks(blocking: list[str]) -> list[Check]:
    """Check that the data gate does not block promotion.

    Args:
        blocking: The key `blocks_promotion` of data.json: a line for each value that is above its
            threshold.

    Returns:
        A failed check for each line, or one passed check if there is none.
    """
    if blocking:
        return [Check("data", False, line) for line in blocking]
    return [Check("data", True, "no value is above its block_promotion threshold")]


def skill_check(metrics: dict[str, Any]) -> Check:
    """Check that the model is better than a constant score.

    Args:
        metrics: The metrics of the test rows.
    """
    entropy = metrics["normalized_entropy"]
    if entropy is None:
        return Check("skill", False, "the test rows have one label only, so skill has no measure")
    return Check(
        "skill", entropy < 1, f"normalised entropy {entropy:.4f}, where a constant score has 1"
    )


def calibration_checks(metrics: dict[str, Any], bins: pl.DataFrame, params: Promote) -> list[Check]:
    """Check the mean of the scores, and the scores bin by bin.

    What chance alone explains does not fail a check, however few rows a day has.

    Args:
        metrics: The metrics of the test rows.
        bins: calibration.csv of the test rows.
        params: The section promote.
    """
    ratio, allowed = metrics["calibration_ratio"], params.calibration
    low, high = metrics["calibration_ratio_low"], metrics["calibration_ratio_high"]
    if ratio is None or low is None or high is None:
        ratio_check = Check("calibration", False, "no test row was clicked, so there is no ratio")
    else:
        ratio_check = Check(
            "calibration",
            low <= allowed.high and high >= allowed.low,
            f"predicted / observed clicks {ratio:.3f} (95% interval {low:.3f} to {high:.3f}); "
            f"{allowed.low:g} to {allowed.high:g} allowed",
        )
    # Independent errors add up in squares.
    error = math.sqrt(max(0.0, metrics["ece"] ** 2 - error_by_chance(bins) ** 2))
    error_check = Check(
        "calibration error",
        error <= params.max_ece,
        f"ECE {metrics['ece']:.4f}, of which {error:.4f} is not explained by chance; "
        f"at most {params.max_ece:g} allowed",
    )
    return [ratio_check, error_check]


def error_by_chance(bins: pl.DataFrame) -> float:
    """Compute the calibration error that calibrated scores exceed in 2.5 % of cases.

    The click rate of a bin with n rows and mean score p differs from p by about a normal deviate
    with the standard deviation s = sqrt(p (1 - p) / n). Its absolute value has the mean
    sqrt(2 / pi) s and the variance (1 - 2 / pi) s^2 (the half-normal distribution). The calibration
    error is the mean over the bins, weighted by their rows. The result is NEARLY_CERTAIN standard
    deviations above its expected value.

    Args:
        bins: calibration.csv, with the columns mean_score and num_rows.
    """
    p_K, n_K = bins["mean_score"].to_numpy(), bins["num_rows"].to_numpy()
    weighted_s_K = np.sqrt(p_K * (1 - p_K) / n_K) * n_K / n_K.sum()
    return float(
        math.sqrt(2 / math.pi) * weighted_s_K.sum()
        + NEARLY_CERTAIN * math.sqrt((1 - 2 / math.pi) * (weighted_s_K**2).sum())
    )


def not_worse_check(name: str, difference: Difference, significance_level: float) -> Check:
    """Check that the challenger is not significantly worse than the champion.

    Args:
        name: The metric, logloss or auc.
        difference: The challenger's metric minus the champion's.
        significance_level: The level of the one-sided test.
    """
    limit = 1 - significance_level
    return Check(
        name,
        difference.worse < limit,
        f"{difference.value:+.5f} compared with the champion "
        f"(95% interval {difference.low:+.5f} to {difference.high:+.5f}); "
        f"worse in {difference.worse:.1%} of resamples, less than {limit:.1%} allowed",
    )
