"""facebookresearch/dlrm from an unchanged checkout: its model and step, and its whole run()."""

import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from speed.ours import RepeatedBatches
from speed.rounds import Windows
from speed.work import LR, Work


def why_absent(work: Work) -> str | None:
    """Return the reason why this contender cannot run, or None."""
    return None if work.reference else "no checkout given (--reference)"


def step(work: Work, windows: Windows) -> None:
    """Train its DLRM_Net by the calls that its run() makes for a batch, on batches made before."""
    reference = load(work)
    arguments = {
        "arch_interaction_op": "dot",
        "sigmoid_top": len(work.top_widths) - 2,
        "loss_function": "bce",
    }
    widths = [
        np.array(sizes) for sizes in (work.cardinalities, work.bottom_widths, work.top_widths)
    ]
    model = reference.DLRM_Net(work.dim, *widths, **arguments).to(work.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    batches = [convert_batch(batch.rows) for batch in RepeatedBatches(work).batches]
    while True:
        for dense_BN, offsets_FB, ids_FB, labels_B1 in batches:
            loss = model.loss_fn(model(dense_BN, offsets_FB, ids_FB), labels_B1)
            loss.detach().cpu().numpy()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            windows.tick()


def loop(work: Work, windows: Windows) -> None:
    """Run its run() by the command line of bench/dlrm_s_criteo_kaggle.sh, with its own loader.

    The batch size is ours. A hook of torch counts the steps of its optimizer. The time to read and
    permute its rows before the first step is not counted.
    """
    reference = load(work)
    windows.tick_after_optimizer()
    files = Path(work.root) / "reference"
    dashed = ["-".join(map(str, widths)) for widths in (work.bottom_widths, work.top_widths[1:])]
    options = {
        "arch-sparse-feature-size": work.dim,
        "arch-mlp-bot": dashed[0],
        "arch-mlp-top": dashed[1],
        "data-generation": "dataset",
        "data-set": "kaggle",
        "raw-data-file": files / "train.txt",
        "processed-data-file": files / "processed.npz",
        "loss-function": "bce",
        "round-targets": True,
        "learning-rate": LR,
        "mini-batch-size": work.batch_size,
        "print-freq": 1024,
        "test-mini-batch-size": 16384,
        "test-num-workers": 16,
        "nepochs": 1000,
    }
    sys.argv = [
        "dlrm_s_pytorch.py",
        "--print-time",
        *(f"--{name}={value}" for name, value in options.items()),
    ]
    # it writes TensorBoard files into the current folder
    with tempfile.TemporaryDirectory(dir=files) as scratch, contextlib.chdir(scratch):
        reference.run()


def load(work: Work) -> Any:
    """Import its main module, which imports its tricks/ and optim/."""
    assert work.reference is not None
    sys.path.insert(0, work.reference)
    sys.dont_write_bytecode = True  # leave the checkout as it is
    import dlrm_s_pytorch

    return dlrm_s_pytorch


def convert_batch(rows: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a batch as its collate_wrapper_criteo_offset does: int64 offsets and ids by column."""
    dense_BN, ids_BF, labels_B, *_ = rows
    offsets_FB = torch.arange(len(labels_B), device=labels_B.device).repeat(ids_BF.shape[1], 1)
    return dense_BN, offsets_FB, ids_BF.T.to(torch.int64).contiguous(), labels_B.unsqueeze(1)
