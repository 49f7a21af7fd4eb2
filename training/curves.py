"""Loss and accuracy of a run, measured without slowing it and kept as rows of history.csv."""

import csv
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from training.replicas import sum_over_ranks


class Point(NamedTuple):
    """A line of history.csv: step is the number of training steps done; loss and accuracy are means over the rows since the last point
    (split train) or over the validation rows (split valid)."""

    step: int
    split: str
    loss: float
    accuracy: float


class Meter:
    """Sums on the device, so that a step waits for nothing; mean() collects them from all ranks and starts anew."""

    def __init__(self) -> None:
        self.sums: Tensor | None = None

    def add(self, loss_sum: Tensor, logits_B: Tensor, labels_B: Tensor) -> None:
        """loss_sum: the summed loss of these B rows."""
        num_correct = ((logits_B > 0) == (labels_B > 0)).sum()
        sums = torch.stack([loss_sum.detach().double(), num_correct.double(), num_correct.new_tensor(len(labels_B)).double()])
        self.sums = sums if self.sums is None else self.sums + sums

    def mean(self) -> tuple[float, float]:
        """(loss, accuracy) per row. Collective: every rank calls it."""
        assert self.sums is not None, "nothing was added"
        loss_sum, num_correct, num_rows = sum_over_ranks(self.sums).tolist()
        self.sums = None
        return loss_sum / num_rows, num_correct / num_rows


def write_history(path: Path, points: list[Point]) -> None:
    """step,split,loss,accuracy in the order they were measured."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Point._fields)
        writer.writerows((point.step, point.split, f"{point.loss:.6f}", f"{point.accuracy:.6f}") for point in points)
