"""Memory of the ranks of a training with sharded tables, at each of its moments.

    python benchmarks/rank_memory.py [--rows 4000000] [--dim 32] [--ranks 2]

torchrun starts gloo ranks on this machine, which train a few steps with `train.parallel: hybrid`.
Two of the model's tables have --rows rows, the others are small. The table has, for the first rank
and for the last one, the largest resident memory (VmHWM of Linux) in each moment without what the
process had before the model was made, in MiB and as a multiple of the rank's share of the tables.

    start         the model is made: initial values are drawn
    step          training, without checkpoints
    checkpoint    a checkpoint is written
    bundle        the first rank writes the best weights

Linux counts the pages of mapped files as well, which it can drop when memory is needed.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from common.artifact import write_manifest
from common.config.params import Params, load_params
from common.files import write_json
from common.layout import FEATURES
from features.encode.feature_state import NUM_RESERVED, FeatureState
from features.schema.schema import load_schema

SCHEMA = "criteo"
NUM_LARGE = 2  # tables with --rows rows
SMALL = 10  # values of each other table
BATCH_SIZE = 64
STEPS = 10
MIB = 1 << 20
KIB_OF_MIB = 1 << 10


def make_params(options: argparse.Namespace) -> Params:
    """Return the shipped parameters for one model and one epoch on several ranks."""
    params = load_params()
    train = {
        "devices": options.ranks,
        "parallel": "hybrid",
        "accelerator": "cpu",
        "batch_size": BATCH_SIZE,
        "epochs": 1,
        "ensemble_size": 1,
        "validations": 1,
        "logger": "none",
    }
    return params.model_copy(
        update={
            "model": params.model.model_copy(update={"embedding_dim": options.dim}),
            "train": params.train.model_copy(update=train),
        }
    )


def write_features(root: Path, num_rows: int) -> None:
    """Write artifacts/features: few rows, and a state with two large vocabularies."""
    schema, random, folder = load_schema(SCHEMA), np.random.default_rng(0), root / FEATURES
    sizes = dict.fromkeys(schema.categorical, SMALL)
    sizes |= dict.fromkeys(schema.categorical[:NUM_LARGE], num_rows - NUM_RESERVED)
    values = {
        name: pl.Series("value", np.arange(size, dtype=np.uint32)) for name, size in sizes.items()
    }
    FeatureState(schema, "frequency", values, {}).save(folder / "state")
    splits = {}
    for split in ("train", "valid"):
        (folder / split).mkdir()
        n = STEPS * BATCH_SIZE
        labels = np.arange(n, dtype=np.uint8) % 2
        dense = {name: random.random(n, np.float32) for name in schema.dense_features}
        ids = {
            name: random.integers(0, sizes[name], n, dtype=np.int32)
            for name in schema.categorical_features
        }
        frame = pl.DataFrame({schema.label: labels, **dense, **ids})
        frame.write_parquet(folder / split / "day_000.parquet")
        splits[split] = {"num_rows": n, "label_rate": 0.5, "days": [0]}
    split_rows = dict.fromkeys(splits, STEPS * BATCH_SIZE)
    write_json(
        folder / "data.json",
        {"splits": splits, "days": [{"name": "day 0", "split_rows": split_rows}]},
    )
    write_manifest(folder, {})


class Peaks:
    """The largest resident memory of this process in each moment, in MiB.

    Attributes:
        of_moments: The peaks, without what the process had before the first watched function.
    """

    def __init__(self) -> None:
        self.before = 0.0
        self.of_moments: dict[str, float] = {}

    def watch(self, module: Any, name: str, moment: str) -> None:
        """Record a moment that lasts as long as each call of a function."""
        function: Callable[..., Any] = getattr(module, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            self.record("step")
            if not self.before:
                self.before = _mib("VmRSS")
            try:
                return function(*arguments, **options)
            finally:
                self.record(moment)

        setattr(module, name, watched)

    def record(self, moment: str) -> None:
        """Record the moment that ends now."""
        if self.before:
            peak = _mib("VmHWM") - self.before
            self.of_moments[moment] = max(peak, self.of_moments.get(moment, 0))
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM


def _mib(name: str) -> float:
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / KIB_OF_MIB


def run_rank(options: argparse.Namespace) -> None:
    """Train as a worker of torchrun, and write the peaks to a file."""
    from training import stage
    from training.loop import checkpoint

    peaks, params, root = Peaks(), make_params(options), Path(options.rank)
    peaks.watch(stage, "make_model", "start")
    peaks.watch(checkpoint.Checkpoints, "write_tables", "checkpoint")
    peaks.watch(checkpoint.Checkpoints, "save_checkpoint", "checkpoint")
    peaks.watch(stage, "export", "bundle")
    run = stage.prepare(params, root, "cpu", checkpoint.checkpoints_of(params, "cpu", root))
    stage.run_trainer(run)
    peaks.record("step")
    if stage.first_rank():
        stage.export(run)
    (root / f"{os.environ['RANK']}.json").write_text(json.dumps(peaks.of_moments))


def print_peaks(options: argparse.Namespace, root: Path) -> None:
    """Print the table."""
    weights = NUM_LARGE * options.rows * 4 * options.dim / MIB
    share = NUM_LARGE * options.rows * 4 * (options.dim + 1) / options.ranks / MIB
    print(
        f"share of a rank {share:,.0f} MiB, weights of all tables {weights:,.0f} MiB,"
        f" largest table {weights / NUM_LARGE:,.0f} MiB"
    )
    print("| moment | first rank, MiB | in shares | last rank, MiB | in shares |")
    print("|---|---|---|---|---|")
    first, last = (
        json.loads((root / f"{rank}.json").read_text()) for rank in (0, options.ranks - 1)
    )
    for moment in first:
        peaks = [of_rank[moment] for of_rank in (first, last) if moment in of_rank]
        cells = [f"{peak:,.0f} | {peak / share:.2f}" for peak in peaks]
        print(f"| {moment} | {' | '.join(cells)} |")


def main() -> None:
    """Start the ranks and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=4_000_000, help="rows of each large table")
    parser.add_argument("--dim", type=int, default=32, help="embedding dim")
    parser.add_argument("--ranks", type=int, default=2, help="ranks; 1 is a training on one device")
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        run_rank(options)
        return
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_features(root, options.rows)
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        script = [str(Path(__file__).resolve()), "--rank", scratch]
        sizes = [f"--{name}={getattr(options, name)}" for name in ("rows", "dim", "ranks")]
        subprocess.run(
            [*torchrun, f"--nproc-per-node={options.ranks}", *script, *sizes],
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
        )
        print_peaks(options, root)


if __name__ == "__main__":
    main()
