"""Bytes that each rank sends in a training step, counted and predicted, and a projection to GPUs.

    python benchmarks/scaling.py [--most-ranks 4] [--picture docs/scaling.png]

Measured: torchrun starts 1 to 4 gloo ranks on this machine. They train with the strategy, module
and loader of the train stage, in the three modes of train.parallel. The model has Kaggle's layers
and columns, and tables of a sixteenth of Kaggle's rows; a batch has 4,096 rows. The figures are
means of three steps. The bytes are counted twice: for every collective of torch.distributed the
bytes that gloo's algorithm sends, and the bytes that Linux sent on the TCP connections of the
process. Both are compared with the traffic model, which predicts them from the placement of the
tables.

Projected: seconds of a step = computing + sending. They follow from the placement of the full
tables, the bytes of the traffic model with NCCL's algorithms, and the speeds at the top of
benchmarks/traffic/projection.py.
"""

import argparse
import logging
from pathlib import Path
from statistics import mean

from speed.work import CARDINALITIES, Work
from traffic.counted import Measured, measure, run_rank
from traffic.picture import write_picture
from traffic.projection import BATCH_PER_GPU, MODES, Case, Projected, project

MIB, GB = 1 << 20, 1e9
NUM_GPUS = (1, 8, 64, 512)
LARGE = 6  # times Kaggle's rows, of 128 floats
CASES = (
    Case("Kaggle's tables, D = 16", CARDINALITIES, Work("", 1, 1, 1, dim=16)),
    Case(
        "six times Kaggle's rows, D = 128",
        [LARGE * rows for rows in CARDINALITIES],
        Work("", 1, 1, 1, dim=128),
    ),
)


def print_measured(measured: dict[int, list[Measured]]) -> None:
    """Print the bytes that were counted and predicted, by number of ranks and mode."""
    print("Measured: MiB that a rank sends in a step, mean of the ranks and most")
    print(
        "| ranks | mode | by the system | by collectives | by the plan | system / plan"
        " | collectives / plan | most: system | most: plan |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for num_ranks, of_modes in measured.items():
        for mode, system, called, planned, _ in of_modes:
            means = [mean(values) / MIB for values in (system, called, planned)]
            ratios = [value / means[2] if means[2] else 1 for value in means[:2]]
            cells = [*(f"{value:.3f}" for value in means), *(f"{ratio:.4f}" for ratio in ratios)]
            most = [f"{max(values) / MIB:.3f}" for values in (system, planned)]
            mode_name = mode if num_ranks > 1 else "any"
            print(f"| {num_ranks} | {mode_name} | {' | '.join([*cells, *most])} |")
    num_ranks, of_modes = max(measured.items())
    messages = {message: None for one in of_modes for message in one.messages}
    print(f"\nOf which on {num_ranks} ranks, KiB, mean of the ranks")
    print(f"| | {' | '.join(one.mode for one in of_modes)} |\n|---{'|---' * len(of_modes)}|")
    for message in messages:
        kib = [f"{one.messages[message] / 1024:,.1f}" for one in of_modes]
        print(f"| {message} | {' | '.join(kib)} |")


def print_projected(case: Case, projected: dict[str, list[Projected | None]]) -> None:
    """Print the projection of a case, by number of GPUs and mode."""
    print(f"\nProjected: {case.name}, {BATCH_PER_GPU:,} rows a GPU; of the GPU that has most")
    print(
        "| GPUs | mode | tables, GB | gathered, GB | MB to its node | MB to others | computing, ms"
        " | sending, ms | M rows/s | at best | x one GPU |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|"
    )
    alone = projected[MODES[0]][0]
    for of_size in zip(*projected.values(), strict=True):
        for mode, one in zip(projected, of_size, strict=True):
            if one is None:
                print(f"|  | {mode} | do not fit |")
            elif one.num_gpus > 1 or mode == MODES[0]:
                mode_name = mode if one.num_gpus > 1 else "any"
                print(f"| {one.num_gpus} | {mode_name} | {' | '.join(cells(one, alone))} |")
    for mode, of_mode in projected.items():
        kinds = [
            ", ".join(f"{count} {kind}" for kind, count in one.kinds.items())
            for one in of_mode
            if one and one.num_gpus > 1
        ]
        print(f"{mode}: {'; '.join(kinds)}")


def cells(one: Projected, alone: Projected | None) -> list[str]:
    """Format a line of the projection; alone: that of one GPU."""
    return [
        f"{one.tables / GB:.2f}",
        f"{one.gathered / GB:.2f}{'' if one.fits else ', does not fit'}",
        *(f"{sent / 1e6:,.1f}" for sent in (one.inside, one.between)),
        *(f"{1e3 * seconds:,.2f}" for seconds in (one.compute_s, one.sending_s)),
        *(f"{rows_s / 1e6:,.1f}" for rows_s in (one.rows_s, one.rows_s_overlapped)),
        f"{one.rows_s / alone.rows_s:,.1f}" if alone else "",
    ]


def main() -> None:
    """Project, measure and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--most-ranks", type=int, default=4, help="largest number of ranks")
    parser.add_argument("--picture", type=Path, help="a PNG to write")
    parser.add_argument("--rank", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        run_rank(options.rank)
        return
    logging.getLogger("torchrec").setLevel(logging.ERROR)
    projected = {
        case.name: {mode: [project(case, mode, n) for n in NUM_GPUS] for mode in MODES}
        for case in CASES
    }
    for case in CASES:
        print_projected(case, projected[case.name])
    measured = measure(Path(__file__).resolve(), options.most_ranks)
    print_measured(measured)
    if options.picture:
        write_picture(options.picture, measured, projected)


if __name__ == "__main__":
    main()
