"""Training curves: the means over rows, the AUC with its stated error, and the file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.nn.functional import binary_cross_entropy_with_logits

from common.files import DataError
from training.loop.training_curves import (
    AUC_BINS,
    MAX_LOGIT,
    Point,
    RunningMetrics,
    read_history,
    write_history,
)

HEADER = b"step,split,loss,accuracy,auc\n"


def measured(
    logits: torch.Tensor, labels: torch.Tensor, *, batch: int = 1000
) -> tuple[float, float, float | None]:
    metrics = RunningMetrics(with_auc=True)
    for logits_B, labels_B in zip(logits.split(batch), labels.split(batch), strict=True):
        metrics.update(
            binary_cross_entropy_with_logits(logits_B, labels_B, reduction="sum"),
            logits_B,
            labels_B,
        )
    return metrics.compute()


@pytest.mark.parametrize(("spread", "tolerance"), [(1.0, 1e-6), (0.05, 1e-5)])
def test_means_and_auc_of_many_batches(spread: float, tolerance: float) -> None:
    """If the logits are closer together, more rows share a bin and the error is larger."""
    torch.manual_seed(1)
    logits = spread * torch.randn(50_000) - 1
    labels = (torch.rand(50_000) < torch.sigmoid(logits)).float()
    loss, accuracy, area = measured(logits, labels)
    assert loss == pytest.approx(binary_cross_entropy_with_logits(logits, labels).item(), rel=1e-5)
    assert accuracy == ((logits > 0) == (labels > 0)).double().mean().item()
    assert area == pytest.approx(roc_auc_score(labels, logits), abs=tolerance)
    assert measured(logits, labels, batch=50_000) == pytest.approx((loss, accuracy, area), rel=1e-6)


def test_the_error_is_at_most_half_the_pairs_of_one_bin() -> None:
    """In the worst case, two rows share a bin, in the right or in the wrong order."""
    inside = torch.tensor([0.1, 0.9]) * 2 * MAX_LOGIT / AUC_BINS
    assert measured(inside, torch.tensor([0.0, 1.0]))[2] == 0.5
    assert measured(inside.flip(0), torch.tensor([0.0, 1.0]))[2] == 0.5
    beside = torch.tensor([-0.1, 0.1]) * 2 * MAX_LOGIT / AUC_BINS
    assert measured(beside, torch.tensor([0.0, 1.0]))[2] == 1


def test_logits_beyond_the_range_and_one_class() -> None:
    logits = torch.tensor([-100.0, -17, 3, 17, 100])
    assert measured(logits, torch.tensor([0.0, 0, 1, 1, 1]))[2] == 1
    assert (
        measured(logits, torch.tensor([0.0, 0, 0, 1, 0]))[2] == (3 + 0.5) / 4
    )  # the last two share the outermost bin
    assert measured(logits, torch.ones(5))[2] is None


def test_metrics_are_reset_and_have_no_auc_unless_asked_for() -> None:
    metrics = RunningMetrics()
    for loss in (3.0, 1.0):
        metrics.update(torch.tensor(loss), torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.0]))
        assert metrics.compute() == metrics.compute() == (loss / 2, 0.5, None)
        metrics.reset()


def test_the_history_that_is_read_equals_the_written_one(tmp_path: Path) -> None:
    """The types are right, although the first 300 lines have no AUC."""
    points = [Point(step, "train", 0.5, 0.75, None) for step in range(300)] + [
        Point(300, "valid", 0.25, 0.5, 0.875)
    ]
    write_history(tmp_path / "history.csv", points)
    assert (tmp_path / "history.csv").read_text().splitlines()[::300] == [
        "step,split,loss,accuracy,auc",
        "299,train,0.500000,0.750000,",
    ]
    found = read_history(tmp_path / "history.csv")
    assert found.drop("member").rows() == points
    assert np.isnan(found["auc"].to_numpy()).sum() == 300


@pytest.mark.parametrize("content", [None, b"", b"\xff", b"loss\n1\n", HEADER + b"1,train,a,b,c\n"])
def test_a_history_with_other_contents_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "history.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"history\.csv has no training curves .*train stage again"):
        read_history(tmp_path / "history.csv")
