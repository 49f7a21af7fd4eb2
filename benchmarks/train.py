r"""Training speed against facebookresearch/dlrm (PyTorch) and other libraries.

    python benchmarks/train.py --reference CHECKOUT [--batch 128 256 2048 8192] [--rounds 9] \\
        [--isa avx2] [--fuxictr CHECKOUT] [--json FILE]
    python benchmarks/train.py --reference CHECKOUT --device cuda \\
        --batch 2048 8192 32768 131072 --dim 16 128

All contenders train on the same rows, with the same architecture, optimizer and number of threads:
Kaggle's architecture and full cardinalities (33.8 M rows), SGD 0.1 for everything. Each one is a
process that works for a window of steps when it is its turn, and waits otherwise; the figures are
medians of the rounds. A ratio in brackets compares with the first contender of the same rounds: the
reference, or our own step for the peers. Contenders that need an option that is not given are left
out. With `--isa avx2` all of them use AVX2 only, as on a CPU without AVX-512.

    step    forward pass, BCE, backward pass and optimizers, on batches that are made before. The
            reference's DLRM_Net and torch.optim.SGD by the calls of its run(); ours without
            Lightning, and with Lightning as in the train stage
    loop    with reading. The reference's run() by its command line on its .npz, without its
            reading and permuting at the start; ours from Parquet through Lightning, whole epochs,
            with all reading and shuffling
    loader  our Parquet -> batches, without training
    peers   TorchRec's and FuxiCTR's own DLRM, step only
"""

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from peers import with_fuxictr, with_reference, with_torchrec
from speed import isa, machine, ours
from speed.rounds import Contender, Windows, interleave
from speed.tables import Measured, print_tables
from speed.work import ROW_GROUP_ROWS, Work, write_rows

from common.subprocess_tree import die_with_parent
from training.kernels.choice import Precision

Run = Callable[[Work, Windows], None]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def by_precision(name: str, run: Callable[[Work, Windows, Precision], None]) -> dict[str, Run]:
    """Return a contender for each precision that this machine supports."""
    return {
        f"{name} {precision}": partial(run, precision=precision) for precision in ours.PRECISIONS
    }


STEPS = by_precision("our step", ours.step) | {
    "our step without a compiler": ours.step_without_compiler
}
LIGHTNING = by_precision("our step in Lightning", ours.lightning_step)
LOOPS = by_precision("our loop", ours.loop) | {"our loader": ours.loader}
PEERS = {"TorchRec step": with_torchrec, "FuxiCTR step": with_fuxictr}
ALL: dict[str, Run] = {
    "reference step": with_reference.step,
    **STEPS,
    **LIGHTNING,
    "reference loop": with_reference.loop,
    **LOOPS,
    **{name: peer.step for name, peer in PEERS.items()},
}


def groups(work: Work) -> Iterator[list[str]]:
    """Yield groups of contenders to interleave. The others are compared with the first of a group.

    Not all contenders run at once, because each one has its own tables.
    """
    reference_step = ["reference step"] if work.reference else []
    reference_loop = ["reference loop"] if work.reference else []
    yield [*reference_step, *STEPS]
    yield [*reference_step, *LIGHTNING]
    if work.device == "cpu":
        yield [*reference_loop, *LOOPS]
    if peers := [name for name, peer in PEERS.items() if not peer.why_absent(work)]:
        yield ["our step fp32", *peers]


def measure(work: Work, rounds: int, only: list[str]) -> Measured:
    """Return the figures of each contender; one that is in two groups has those of the first."""
    measured: Measured = {}
    for group in groups(work):
        contenders = [
            Contender(name, work, name.startswith("our")) for name in group if name in only
        ]
        if not contenders:
            continue
        interleave(contenders, rounds)
        rows = {
            one.name: statistics.median(
                w["steps"] * work.batch_size / w["seconds"] for w in one.windows
            )
            for one in contenders
        }
        for one in contenders:
            figures = {
                "rows_per_s": rows[one.name],
                "beside": contenders[0].name,
                "ratio": rows[one.name] / rows[contenders[0].name],
                "to_first_step_s": one.first["to_first_step"],
                "peak_mib": one.windows[-1]["peak_mib"],
                "share_of_others": statistics.median(one.others),
                "windows": one.windows,
            }
            measured.setdefault(one.name, figures)
            print(
                f"B={work.batch_size} D={work.dim} {one.name:28}{rows[one.name]:12,.0f} rows/s"
                f"; meanwhile other processes had {figures['share_of_others']:.2f} CPUs",
                flush=True,
            )
    return measured


def run(work: Work, options: argparse.Namespace) -> None:
    """Write the rows, measure all contenders and print the tables."""
    absent = {
        name: peer.why_absent(work) for name, peer in {"reference": with_reference, **PEERS}.items()
    }
    print("\n".join(f"left out: {name}: {why}" for name, why in absent.items() if why))
    write_rows(work)
    peaks = {
        precision: machine.product_peak(DTYPES[precision], work.device)
        for precision in ours.PRECISIONS
    }
    bandwidth = machine.copy_bandwidth(work.device)
    works = [
        replace(work, batch_size=batch, dim=dim) for dim in options.dim for batch in options.batch
    ]
    results = [(one, measure(one, options.rounds, options.only)) for one in works]
    description = machine.describe(options.threads, options.device)
    print(f"\n{description}; medians of {options.rounds} rounds")
    print(f"instructions: {isa.instructions()}")
    products = ", ".join(f"{name} {peak / 1e9:,.0f} GFLOP/s" for name, peak in peaks.items())
    print(f"best product: {products}; copy {bandwidth / 1e9:.1f} GB/s")
    for one in works[:: len(options.batch)]:
        print(
            f"D={one.dim}: {one.flop_per_row / 1e6:.2f} MFLOP of matrix products and"
            f" {one.table_bytes_per_row:,} bytes of table rows a row"
        )
    print_tables(results, list(ALL), peaks, bandwidth)
    if options.json:
        raw = [{"work": asdict(one), "measured": measured} for one, measured in results]
        options.json.write_text(
            json.dumps(
                {"machine": description, "peaks": peaks, "copy": bandwidth, "results": raw},
                indent=1,
            )
        )


def main() -> None:
    """Run the benchmark, or one contender of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reference", type=Path, help="a checkout of facebookresearch/dlrm")
    parser.add_argument("--fuxictr", type=Path, help="a checkout of reczoo/FuxiCTR")
    parser.add_argument(
        "--batch", type=int, nargs="+", default=[128, 256, 2048, 8192], help="batch sizes"
    )
    parser.add_argument("--dim", type=int, nargs="+", default=[16], help="embedding dims")
    parser.add_argument("--rounds", type=int, default=9, help="windows of each contender")
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads"
    )
    parser.add_argument(
        "--rows", type=int, default=8 * ROW_GROUP_ROWS, help="rows of an epoch of our loop"
    )
    parser.add_argument(
        "--small", action="store_true", help="tables of at most 1,000 rows, to test this script"
    )
    parser.add_argument("--isa", choices=isa.ENVIRONMENTS, help="use these instructions only")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device")
    parser.add_argument(
        "--only", choices=ALL, nargs="+", default=list(ALL), help="run only these contenders"
    )
    parser.add_argument("--json", type=Path, help="write the figures of every window to this file")
    parser.add_argument("--contender", choices=ALL, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Work.from_json, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if uneven := [batch for batch in options.batch if options.rows % batch]:
        parser.error(
            f"--rows {options.rows} is no multiple of --batch {uneven[0]}:"
            " an epoch would end with a smaller batch"
        )
    isa.restart_with(options.isa)
    isa.check(options.isa)
    torch.set_num_threads(options.work.threads if options.work else options.threads)
    if options.contender:
        die_with_parent()
        return ALL[options.contender](options.work, Windows(options.work.window_steps))
    # an exit removes the temporary folder, a death by a signal does not
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory() as root:
        checkouts = {
            name: str(path.resolve())
            for name in ("reference", "fuxictr")
            if (path := getattr(options, name))
        }
        work = Work(
            root,
            options.rows,
            options.batch[0],
            options.threads,
            options.dim[0],
            options.small,
            options.device,
            **checkouts,
        )
        return run(work, options)


if __name__ == "__main__":
    main()
