"""The sums of which the loss and the accuracy of a training curve are made.

A module of its own without torch, because the coordinator of the parameter servers passes them on
and needs nothing else.
"""

from typing import NamedTuple


class MetricParts(NamedTuple):
    """The sums that updates have added to a RunningMetrics.

    Attributes:
        loss_sums: The sum of the losses of each update.
        num_correct: The number of correct rows of each update, or the sum of their weights.
        weight_sums: The sum of the sample weights of each update; empty if all are 1.
        num_rows: The number of rows.
    """

    loss_sums: list[float]
    num_correct: list[float]
    weight_sums: list[float]
    num_rows: int
