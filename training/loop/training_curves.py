"""Loss, accuracy and AUC of a run, measured without slowing it and kept as rows of history.csv."""

import csv
import math
from pathlib import Path
from typing import NamedTuple

import polars as pl
import torch
from torch import Tensor

from training.distributed.collectives import all_gather, sum_over_ranks

TOP_OPERATORS = Path("runs/profile/top_operators.csv")  # of the last profiled run
AUC_BINS = (
    1 << 16
)  # equally wide, over logits of -MAX_LOGIT .. MAX_LOGIT; what lies beyond is in the outermost
MAX_LOGIT = 16.0
DTYPES = {
    "step": pl.Int64,
    "split": pl.String,
    "loss": pl.Float64,
    "accuracy": pl.Float64,
    "auc": pl.Float64,
}


class Point(NamedTuple):
    """A line of history.csv: step is the number of training steps done; loss and accuracy are means over the rows since the last point
    (split train) or over the validation rows (split valid), and auc is that of the validation rows (None for train, or one class only)."""

    step: int
    split: str
    loss: float
    accuracy: float
    auc: float | None


class Meter:
    """Keeps sums on the device, so that a step waits for nothing; mean() collects them from all ranks and starts anew."""

    def __init__(self, *, with_auc: bool = False) -> None:
        self.with_auc = with_auc
        self.loss_sums: list[Tensor] = []
        self.num_correct: list[Tensor] = []
        self.num_rows = 0
        self.rows_2K: Tensor | None = None  # of either label, by logit

    def add(self, loss_sum: Tensor, logits_B: Tensor, labels_B: Tensor) -> None:
        """loss_sum: the summed loss of these B rows."""
        self.loss_sums.append(loss_sum.detach())
        self.num_correct.append(((logits_B > 0) == (labels_B > 0)).sum())
        self.num_rows += len(labels_B)
        if self.with_auc:
            if self.rows_2K is None:
                self.rows_2K = torch.zeros(2 * AUC_BINS, dtype=torch.int64, device=logits_B.device)
            bins_B = (
                ((logits_B.detach().float() / MAX_LOGIT + 1) * (AUC_BINS // 2))
                .clamp(0, AUC_BINS - 1)
                .nan_to_num()
                .long()
            )
            places_B = bins_B + AUC_BINS * (labels_B > 0)
            self.rows_2K.index_add_(0, places_B, torch.ones_like(places_B))

    def mean(self) -> tuple[float, float, float | None]:
        """(loss per row, accuracy, AUC if asked for and there are two classes). Collective: every rank calls it, each having added as
        many times. Batches may be dealt out to ranks in any way: their losses are added exactly (math.fsum), the rest are whole numbers.

        Rows of one bin count as ties, so the AUC is off by at most half the share of (clicked, other) pairs in one bin: below 1e-4 where
        the logits' standard deviation is one or more. Measured it is below 1e-6 there (tests/unit/test_curves.py).
        """
        assert self.loss_sums, "nothing was added"
        loss_sum = math.fsum(all_gather(torch.stack(self.loss_sums)).tolist())
        num_correct = torch.stack(self.num_correct).sum()
        num_correct, num_rows = sum_over_ranks(
            torch.stack([num_correct, torch.full_like(num_correct, self.num_rows)])
        ).tolist()
        area = (
            None
            if self.rows_2K is None
            else binned_auc(*sum_over_ranks(self.rows_2K).cpu().double().chunk(2))
        )
        self.loss_sums, self.num_correct, self.num_rows, self.rows_2K = [], [], 0, None
        return loss_sum / num_rows, num_correct / num_rows, area


def binned_auc(others_K: Tensor, clicks_K: Tensor) -> float | None:
    """AUC of rows in K bins of ascending score, those of a bin as ties; float64 counts (K,), a whole number of rows each."""
    pairs = (others_K.sum() * clicks_K.sum()).item()
    below_K = others_K.cumsum(0) - others_K / 2
    return (clicks_K * below_K).sum().item() / pairs if pairs else None


def write_history(path: Path, points: list[Point]) -> None:
    """step,split,loss,accuracy,auc in the order they were measured; six decimals, nothing for None."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Point._fields)
        for point in points:
            writer.writerow(
                [
                    point.step,
                    point.split,
                    *("" if number is None else f"{number:.6f}" for number in point[2:]),
                ]
            )


def read_history(path: Path) -> pl.DataFrame:
    """What write_history wrote."""
    return pl.read_csv(path, schema=pl.Schema(DTYPES))
