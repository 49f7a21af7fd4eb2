"""Lists of ids: lookup, pooling and update of our tables beside torch.nn.EmbeddingBag.

    python benchmarks/bags.py [--rows 2048] [--dim 16 128] [--rounds 9]

Eight features have lists of ids, in tables of a million rows. A step looks up and pools all of
them, and updates the rows for a given gradient of the pooled vectors. The contenders take turns, on
the same ids. The figures are milliseconds of processor time, of all threads together, so that other
processes matter little: the medians of the rounds, in brackets the ratio to PyTorch.

    EmbeddingBag   nn.EmbeddingBag(mode="sum", sparse=True) for each table, and the optimizer:
                   torch.optim.SGD, or torch.optim.Adagrad, which keeps an accumulator per number
                   instead of one per row (PyTorch has no row-wise Adagrad)
    ours           one `EmbeddingTables` with the compiled kernels
    ours, PyTorch  the same without a C++ compiler
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from common.config.model import Full
from training.kernels import choice
from training.kernels.choice import Implementations
from training.kernels.memory_hints import keep_memory
from training.models.bags import Bag
from training.models.embedding_tables import EmbeddingTables
from training.models.factory import make_embeddings
from training.models.reads import CategoricalInputs
from training.optim.embedding_optimizers import make_embedding_optimizer, update_tables

NUM_FEATURES, TABLE_ROWS, LR = 8, 1_000_000, 0.01
LENGTHS = [3, 30]  # ids of a list
OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "rowwise_adagrad": torch.optim.Adagrad,
}
Step = Callable[[], object]


def draw_bags(num_rows: int, length: int) -> list[Bag]:
    """Return lists of `length` ids for each feature; small ids are frequent, as in a click log."""
    generator = torch.Generator().manual_seed(length)
    starts = torch.arange(num_rows + 1) * length
    return [
        Bag(
            (torch.rand(num_rows * length, generator=generator) ** 4 * TABLE_ROWS).int(),
            starts,
            None,
        )
        for _ in range(NUM_FEATURES)
    ]


def with_pytorch(bags: list[Bag], grad_BFD: Tensor, optimizer_name: str) -> Step:
    """Return a step of nn.EmbeddingBag."""
    dim = grad_BFD.shape[2]
    layers = [
        nn.EmbeddingBag(TABLE_ROWS, dim, mode="sum", sparse=True, include_last_offset=True)
        for _ in bags
    ]
    optimizer = OPTIMIZERS[optimizer_name]([layer.weight for layer in layers], lr=LR)
    values = [(bag.values.long(), bag.starts) for bag in bags]

    def step() -> None:
        optimizer.zero_grad()
        vectors = [layer(*ids) for layer, ids in zip(layers, values, strict=True)]
        torch.stack(vectors, dim=1).backward(grad_BFD)
        optimizer.step()

    return step


def with_ours(bags: list[Bag], grad_BFD: Tensor, optimizer_name: str) -> Step:
    """Return a step of our tables, by the implementation that is chosen when it is called."""
    num_rows, _, dim = grad_BFD.shape
    embeddings = make_embeddings(
        Full(name="full"),
        [TABLE_ROWS] * NUM_FEATURES,
        dim,
        torch.Generator().manual_seed(1),
        EmbeddingTables,
    )
    embeddings.read_by(CategoricalInputs(list(range(NUM_FEATURES)), ["sum"] * NUM_FEATURES))
    (tables,) = embeddings.tables
    optimizer = make_embedding_optimizer(optimizer_name, tables)
    no_ids = torch.empty(num_rows, 0, dtype=torch.int32)

    def step() -> None:
        (reads,) = embeddings.selections(no_ids, bags)
        rows = [rows_k.requires_grad_() for rows_k in embeddings.lookup([reads])]
        embeddings.vectors(rows, bags).backward(grad_BFD)
        grads = [rows_k.grad for rows_k in rows if rows_k.grad is not None]
        update_tables(optimizer, tables, reads, grads, LR)

    return step


def forced(step: Step, operators: choice.Operators) -> Step:
    """Return the step with a given implementation of the operators."""

    def forced_step() -> None:
        with choice.forced(Implementations(operators, "pytorch")):
            step()

    return forced_step


def measure(steps: dict[str, Step], num_rounds: int) -> dict[str, float]:
    """Return the median milliseconds of processor time of each step; all steps take turns."""
    taken_ms: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(num_rounds + 1):  # the first one warms up
        for name, step in steps.items():
            started_s = time.process_time()
            step()
            taken_ms[name].append(1000 * (time.process_time() - started_s))
    return {name: statistics.median(times[1:]) for name, times in taken_ms.items()}


def main() -> None:
    """Measure all cases and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2048, help="rows of a batch")
    parser.add_argument("--dim", type=int, nargs="+", default=[16, 128])
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    keep_memory()
    print("| optimizer, D, ids of a list | EmbeddingBag, ms | ours, ms | ours, PyTorch, ms |")
    print("|---|---|---|---|")
    for optimizer_name in OPTIMIZERS:
        for dim in arguments.dim:
            for length in LENGTHS:
                bags = draw_bags(arguments.rows, length)
                generator = torch.Generator().manual_seed(1)
                grad_BFD = torch.randn(arguments.rows, NUM_FEATURES, dim, generator=generator)
                ours = with_ours(bags, grad_BFD, optimizer_name)
                steps = {
                    "EmbeddingBag": with_pytorch(bags, grad_BFD, optimizer_name),
                    "ours": forced(ours, "compiled"),
                    "ours, PyTorch": forced(ours, "pytorch"),
                }
                found = measure(steps, arguments.rounds)
                first_ms = found.pop("EmbeddingBag")
                cells = [f"{ms:.1f} ({first_ms / ms:.1f} x)" for ms in found.values()]
                print(
                    f"| {optimizer_name}, {dim}, {length} | {first_ms:.1f} | {' | '.join(cells)} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
