"""Training curves: loss, accuracy and AUC of a run, and their file history.csv."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl
import torch
from polars.exceptions import PolarsError
from torch import Tensor

from common.files import DataError
from common.printable import first_line
from training.distributed.collectives import all_gather, min_over_ranks, sum_over_ranks
from training.loop.metric_parts import MetricParts

TOP_OPERATORS = Path("runs/profile/top_operators.csv")  # of the last profiled run
# bins of equal width over the logits -MAX_LOGIT .. MAX_LOGIT; the outermost ones have the rest
AUC_BINS = 1 << 16
MAX_LOGIT = 16.0
DTYPES = {
    "member": pl.Int64,  # only in an ensemble: the number of the model, from 1
    "step": pl.Int64,
    "split": pl.String,
    "loss": pl.Float64,
    "accuracy": pl.Float64,
    "auc": pl.Float64,
}


class Point(NamedTuple):
    """A point of the training curve: one line of history.csv.

    Attributes:
        step: The number of training steps done.
        split: `train`, for the rows since the last point, or `valid`, for all validation rows.
        loss: The mean logloss of the rows; like the others, weighted by the sample weights.
        accuracy: The share of rows whose label is predicted.
        auc: The AUC of the validation rows; None for `train`, or if there is one class only.
    """

    step: int
    split: str
    loss: float
    accuracy: float
    auc: float | None


class RunningMetrics:
    """Sums of loss, accuracy and AUC over batches, kept on the device, so that no step waits.

    Args:
        with_auc: Whether to keep the histograms of the AUC.
    """

    def __init__(self, *, with_auc: bool = False) -> None:
        self.with_auc = with_auc
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self.loss_sums: list[Tensor] = []
        self.num_correct: list[Tensor] = []
        self.num_rows = 0
        self.rows_2K: Tensor | None = None  # the number of rows in each bin, of label 0, then of 1
        self.weight_sums: list[Tensor] = []  # with sample weights; then numbers of rows are sums

    def update(
        self,
        loss_sum: Tensor,
        logits_B: Tensor,
        labels_B: Tensor,
        weights_B: Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            loss_sum: The weighted logloss summed over the rows, a scalar.
            logits_B: The logits.
            labels_B: The labels, 0 or 1.
            weights_B: The sample weights; None if all are 1.
        """
        is_correct_B = (logits_B > 0) == (labels_B > 0)
        self.loss_sums.append(loss_sum.detach())
        if weights_B is None:
            self.num_correct.append(is_correct_B.sum())
        else:
            weights_B = weights_B.double()
            self.num_correct.append((is_correct_B * weights_B).sum())
            self.weight_sums.append(weights_B.sum())
        self.num_rows += len(labels_B)
        if self.with_auc:
            count_B = torch.ones_like(is_correct_B, dtype=torch.int64)
            count_B = count_B if weights_B is None else weights_B
            if self.rows_2K is None:
                self.rows_2K = torch.zeros(
                    2 * AUC_BINS, dtype=count_B.dtype, device=logits_B.device
                )
            bins_B = (
                ((logits_B.detach().float() / MAX_LOGIT + 1) * (AUC_BINS // 2))
                .clamp(0, AUC_BINS - 1)
                .nan_to_num()
                .long()
            )
            places_B = bins_B + AUC_BINS * (labels_B > 0)
            self.rows_2K.index_add_(0, places_B, count_B)

    def parts(self) -> MetricParts:
        """Return the sums of the updates, without the histograms, as plain numbers."""
        return MetricParts(
            [part.item() for part in self.loss_sums],
            [part.item() for part in self.num_correct],
            [part.item() for part in self.weight_sums],
            self.num_rows,
        )

    def add(self, parts: MetricParts) -> None:
        """Add the updates of another process."""
        self.loss_sums += map(torch.tensor, parts.loss_sums)
        dtype = torch.float64 if parts.weight_sums else torch.int64
        self.num_correct += (torch.tensor(count, dtype=dtype) for count in parts.num_correct)
        self.weight_sums += (torch.tensor(w, dtype=torch.float64) for w in parts.weight_sums)
        self.num_rows += parts.num_rows

    def compute(self) -> tuple[float, float, float | None]:
        """Compute the metrics of all ranks' batches. Collective.

        All ranks call it after the same number of updates. The result is the same for any
        distribution of the batches over the ranks: losses are added exactly (math.fsum), and the
        rest are whole numbers. Rows of one bin count as ties, so the AUC is off by at most half the
        share of (clicked, other) pairs in one bin: below 1e-4 where the logits' standard deviation
        is 1 or more, and measured below 1e-6 (tests/unit/training/loop/). With sample weights all
        sums are float64, and those of the AUC depend on the number of ranks by their rounding.

        Returns:
            The loss per row, the accuracy, and the AUC (None without `with_auc`, or if there is one
            class only).
        """
        assert self.loss_sums, "update has not been called"
        loss_sum = math.fsum(all_gather(torch.stack(self.loss_sums)).tolist())
        num_correct, num_rows = self._counts()
        auc = None
        if self.rows_2K is not None:
            rows_2K = sum_over_ranks(self.rows_2K.clone())
            auc = binned_auc(*rows_2K.cpu().double().chunk(2))
        return loss_sum / num_rows, num_correct / num_rows, auc

    def _counts(self) -> tuple[float, float]:
        """Return the numbers of correct rows and of all rows, or the sums of their weights."""
        if self.weight_sums:
            sums = [torch.stack(self.num_correct), torch.stack(self.weight_sums)]
            num_correct, total = (math.fsum(all_gather(of_updates).tolist()) for of_updates in sums)
            return num_correct, total or 1.0  # if it is 0, all sums are
        own_correct = torch.stack(self.num_correct).sum()
        num_correct, num_rows = sum_over_ranks(
            torch.stack([own_correct, torch.full_like(own_correct, self.num_rows)])
        ).tolist()
        return num_correct, num_rows

    def first_not_finite(self) -> int:
        """Return the number, from 0, of the first update with no finite loss. Collective."""
        num_finite = torch.stack(self.loss_sums).isfinite().long().cumprod(0).sum()
        return min_over_ranks(num_finite)


def binned_auc(others_K: Tensor, clicks_K: Tensor) -> float | None:
    """Return the AUC of rows in K bins of ascending score, with ties in a bin; None for one class.

    Args:
        others_K: The number of rows without a click in each bin, float64.
        clicks_K: The number of clicked rows in each bin, float64.
    """
    pairs = (others_K.sum() * clicks_K.sum()).item()
    below_K = others_K.cumsum(0) - others_K / 2
    return (clicks_K * below_K).sum().item() / pairs if pairs else None


def write_history(path: Path, points: list[Point]) -> None:
    """Write points as CSV, with six decimals, and nothing for None."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Point._fields)
        for point in points:
            metrics = ["" if number is None else f"{number:.6f}" for number in point[2:]]
            writer.writerow([point.step, point.split, *metrics])


def join_histories(path: Path, paths: Sequence[Path]) -> None:
    """Write the training curves of an ensemble: those of each member, after its number, from 1.

    Args:
        path: The file to write.
        paths: What `write_history` wrote for each member.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(",".join(DTYPES) + "\n")
        for number, of_member in enumerate(paths, start=1):
            lines = of_member.read_text(encoding="utf-8").splitlines()
            file.writelines(f"{number},{line}\n" for line in lines[1:])


def read_history(path: Path) -> pl.DataFrame:
    """Read what write_history or join_histories wrote.

    Returns:
        The points, with the columns DTYPES; the member of a single model is 1.

    Raises:
        DataError: The file is missing or has other contents.
    """
    try:
        with path.open("rb") as file:
            has_members = file.readline().startswith(b"member,")
            file.seek(0)
            columns = {name: dtype for name, dtype in DTYPES.items() if name != "member"}
            schema = pl.Schema(DTYPES if has_members else columns)
            history = pl.read_csv(file, schema=schema, glob=False)
    except (OSError, PolarsError) as error:
        raise DataError(
            f"{path} has no training curves ({first_line(error)}); run the train stage again"
        ) from None
    if has_members:
        return history
    return history.select(pl.lit(1, pl.Int64).alias("member"), pl.all())
