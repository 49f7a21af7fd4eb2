r"""All implementations of the training step on this CPU, beside each other.

    python benchmarks/paths.py [--batch 128 256 2048 8192] [--rounds 9] [--isa avx2]

The exit status is 1 if the implementations that `training/kernels/choice.py` picks are more than
10 % slower than others. The model, the rows and the way of measuring are those of train.py.

    plain                   PyTorch's operators only
    onednn                  the linear layers by oneDNN
    compiled, onednn        the operators on embedding rows compiled, the layers by oneDNN
    compiled                both compiled
"""

import argparse
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from speed import isa, machine, ours
from speed.rounds import Contender, Windows, interleave
from speed.work import ROW_GROUP_ROWS, Work, write_rows

from common.subprocess_tree import die_with_parent
from training.kernels import choice
from training.kernels.choice import Implementations, Precision
from training.kernels.compiler import library

TOLERANCE = 1.10
PATHS = {
    "plain": Implementations("pytorch", "pytorch"),
    "onednn": Implementations("pytorch", "onednn"),
    "compiled, onednn": Implementations("compiled", "onednn"),
    "compiled": Implementations("compiled", "compiled"),
}


def step(
    work: Work, windows: Windows, implementations: Implementations, precision: Precision
) -> None:
    """Train with the given implementations."""
    with choice.forced(implementations):
        ours.step(work, windows, precision)


CONTENDERS: dict[str, Callable[[Work, Windows], None]] = {
    f"{name} {precision}": partial(step, implementations=implementations, precision=precision)
    for precision in ours.PRECISIONS
    for name, implementations in PATHS.items()
}


def chosen(num_rows: int, precision: Precision) -> str:
    """Return the contender that the rule picks."""
    pair = Implementations(choice.operators(), choice.layers(num_rows, precision))
    (name,) = (name for name, path in PATHS.items() if path == pair)
    return f"{name} {precision}"


def measure(work: Work, precision: Precision, rounds: int) -> bool:
    """Print the figures of all implementations; return whether the rule picks a fast one."""
    names = [name for name in CONTENDERS if name.endswith(precision)]
    if library() is None:
        names = [name for name in names if "compiled" not in name]
    contenders = [Contender(name, work, is_ours=True) for name in names]
    interleave(contenders, rounds)
    rows_per_s = {
        one.name: statistics.median(
            w["steps"] * work.batch_size / w["seconds"] for w in one.windows
        )
        for one in contenders
    }
    picked, fastest = chosen(work.batch_size, precision), max(rows_per_s.values())
    for name, value in rows_per_s.items():
        mark = "  <- chosen" if name == picked else ""
        ratio = value / rows_per_s[names[0]]
        print(
            f"B={work.batch_size:<6}{name:24}{value:10,.0f} rows/s {ratio:6.2f} x{mark}", flush=True
        )
    return rows_per_s[picked] * TOLERANCE >= fastest


def main() -> None:
    """Measure all implementations, or run one of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 256, 2048, 8192])
    parser.add_argument("--rounds", type=int, default=9, help="windows of each contender")
    parser.add_argument("--isa", choices=isa.ENVIRONMENTS, help="use these instructions only")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--small", action="store_true", help="small tables and few rows, to test this script"
    )
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Work.from_json, help=argparse.SUPPRESS)
    options = parser.parse_args()
    isa.restart_with(options.isa)
    isa.check(options.isa)
    torch.set_num_threads(options.work.threads if options.work else options.threads)
    if options.contender:
        die_with_parent()
        CONTENDERS[options.contender](options.work, Windows(options.work.window_steps))
        return
    # an exit removes the temporary folder, a death by a signal does not
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    print(machine.describe(options.threads, "cpu"))
    print(f"instructions: {isa.instructions()}")
    num_rows = 4 * max(options.batch) if options.small else ROW_GROUP_ROWS
    with tempfile.TemporaryDirectory() as root:
        work = Work(root, num_rows, options.batch[0], options.threads, small=options.small)
        write_rows(work)
        good = [
            measure(replace(work, batch_size=batch_size), precision, options.rounds)
            for precision in ours.PRECISIONS
            for batch_size in options.batch
        ]
    if not all(good):
        sys.exit(f"the chosen implementations are more than {TOLERANCE - 1:.0%} slower than others")


if __name__ == "__main__":
    main()
