"""Training speed against facebookresearch/dlrm (PyTorch) on the same rows, architecture, optimizer and threads; interleaved.

    python benchmarks/train.py --reference CHECKOUT [--batch 128 2048 8192] [--rounds 9] [--fuxictr CHECKOUT] [--json FILE]
    python benchmarks/train.py --reference CHECKOUT --device cuda --batch 2048 8192 32768 131072 --dim 16 128

A contender is a process of its own, which works for a window of steps when it is its turn and waits otherwise; medians of the rounds.
Kaggle's architecture and full cardinalities (33.8 M rows), SGD 0.1 for everything. What needs an option that is not given is left out.
The times in brackets are medians of the same rounds as those of the first line of the group: reference, or our own step for the peers.

    step    forward, BCE, backward, optimizers on batches made before. The reference's DLRM_Net and torch.optim.SGD by the calls of
            its run(); ours without Lightning, and as the train stage has it, with
    loop    reading included. The reference's run() by its command line on its .npz (its reading and permuting at the start is not
            counted); ours from Parquet through Lightning, whole passes, so that all reading and shuffling is
    loader  our Parquet -> batches alone
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
from speed import machine, ours
from speed.rounds import Contender, Windows, interleave
from speed.tables import Measured, print_tables
from speed.work import ROW_GROUP_ROWS, Work, write_rows

from common.subprocess_tree import die_with_parent
from training.kernels.linear_layers import Precision

Run = Callable[[Work, Windows], None]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def by_precision(name: str, run: Callable[[Work, Windows, Precision], None]) -> dict[str, Run]:
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
    """Contenders to interleave, the first what the others are held against; not all at once, as each has tables of its own."""
    yield [*(["reference step"] if work.reference else []), *STEPS]
    yield [*(["reference step"] if work.reference else []), *LIGHTNING]
    if work.device == "cpu":
        yield [*(["reference loop"] if work.reference else []), *LOOPS]
    if peers := [name for name, peer in PEERS.items() if not peer.why_absent(work)]:
        yield ["our step fp32", *peers]


def measure(work: Work, rounds: int, only: list[str]) -> Measured:
    """By contender; of one in two groups, what it did in the first."""
    measured: Measured = {}
    for group in groups(work):
        contenders = [Contender(name, work) for name in group if name in only]
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
    print(
        f"best product: {', '.join(f'{name} {peak / 1e9:,.0f} GFLOP/s' for name, peak in peaks.items())}; copy {bandwidth / 1e9:.1f} GB/s"
    )
    for one in works[:: len(options.batch)]:
        print(
            f"D={one.dim}: {one.flop_per_row / 1e6:.2f} MFLOP of matrix products and {one.table_bytes_per_row:,} bytes of table rows a row"
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
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--reference", type=Path, help="a checkout of facebookresearch/dlrm")
    arguments.add_argument("--fuxictr", type=Path, help="a checkout of reczoo/FuxiCTR")
    arguments.add_argument("--batch", type=int, nargs="+", default=[128, 2048, 8192])
    arguments.add_argument("--dim", type=int, nargs="+", default=[16])
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments.add_argument(
        "--rows", type=int, default=8 * ROW_GROUP_ROWS, help="of a pass of our loop"
    )
    arguments.add_argument(
        "--small", action="store_true", help="tables of at most 1,000 rows, to try this script"
    )
    arguments.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments.add_argument(
        "--only", choices=ALL, nargs="+", default=list(ALL), help="these contenders"
    )
    arguments.add_argument("--json", type=Path, help="every window's figures go here")
    arguments.add_argument("--contender", choices=ALL, help=argparse.SUPPRESS)
    arguments.add_argument("--work", type=Work.from_json, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if uneven := [batch for batch in options.batch if options.rows % batch]:
        arguments.error(
            f"--rows {options.rows} is no multiple of --batch {uneven[0]}: a pass would end with a smaller batch"
        )
    torch.set_num_threads(options.work.threads if options.work else options.threads)
    if options.contender:
        die_with_parent()
        return ALL[options.contender](options.work, Windows(options.work.window_steps))
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
    )  # an exit removes the rows, a plain death does not
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
