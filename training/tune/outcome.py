"""The outcome of a trial, as it stands in the study's journal."""

from pydantic import Field

from common.config.base import Fraction, NotNegative, Positive, Strict


class CurvePoint(Strict):
    """A validation of a trial.

    Attributes:
        share: The share of the run's steps that are done.
        logloss: The logloss of the validation rows.
        auc: Their AUC; None if they have one class only.
    """

    share: Fraction
    logloss: float
    auc: float | None


class Result(Strict):
    """What a trial has reached.

    Attributes:
        logloss: The lowest logloss of its validations, which is that of the weights it would keep.
        auc: The AUC of the same validation.
        is_stopped: Whether it was stopped early.
        rows: The number of rows that it was trained on, counted in each epoch.
        curve: Its validations.
        macs, bytes, parameters, bytes_per_row: The costs of its model
            (training/models/footprint.py).
    """

    logloss: float
    auc: float | None
    is_stopped: bool
    rows: NotNegative
    curve: list[CurvePoint] = Field(min_length=1)
    macs: NotNegative
    bytes: Positive
    parameters: Positive
    bytes_per_row: NotNegative


class Outcome(Strict):
    """The result of a trial, or the reason why it has none.

    Attributes:
        result: The result; None if the trial failed.
        error: The reason, in one line; None if it did not fail.
    """

    result: Result | None
    error: str | None
