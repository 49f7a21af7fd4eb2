"""The placement of the embedding tables as it is reported: in the log, the bundle and the page.

Nothing here needs TorchRec.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from training.models.factory import Group

PLACEMENT_FILE = "plan.csv"
# The kind of all tables with train.parallel: data. Each rank has them, and gathers all ranks'
# gradients.
GATHERED = "gathered"
FLOAT_BYTES = 4
MIB = 1 << 20


class TablePlacement(NamedTuple):
    """Where the rows of a table are.

    Attributes:
        table: Name of its categorical feature, or GROUP.TABLE by number.
        num_rows: Rows of the table.
        dim: Floats of a row.
        kind: See planner.py; with `, cached` the rows are in the host's memory, with a cache on the
            device.
        rank_bytes: Bytes of the rows and of the optimizer's state on each rank.
    """

    table: str
    num_rows: int
    dim: int
    kind: str
    rank_bytes: list[int]


def row_bytes(dim: int, optimizer: str) -> int:
    """Return the bytes of a row of `dim` floats and of its optimizer state."""
    state_floats = 0 if optimizer == "sgd" else 1
    return FLOAT_BYTES * (dim + state_floats)


def data_parallel_placement(
    groups: Sequence[Group], optimizer: str, num_ranks: int
) -> list[TablePlacement]:
    """Return the placement of train.parallel: data, where every rank has all of each table.

    Args:
        groups: The groups of tables of the model.
        optimizer: Name of the embedding optimizer.
        num_ranks: Number of ranks.
    """
    return [
        TablePlacement(
            f"{g}.{k}",
            num_rows,
            group.embedding_dim,
            GATHERED,
            [num_rows * row_bytes(group.embedding_dim, optimizer)] * num_ranks,
        )
        for g, group in enumerate(groups)
        for k, num_rows in enumerate(group.cardinalities)
    ]


def rank_totals(placement: Sequence[TablePlacement]) -> list[int]:
    """Return the bytes of all tables on each rank."""
    all_rank_bytes = [table.rank_bytes for table in placement]
    return [sum(table_bytes) for table_bytes in zip(*all_rank_bytes, strict=True)]


def imbalance(placement: Sequence[TablePlacement]) -> float:
    """Return the bytes of the fullest rank, divided by the mean of all ranks; 1 is even."""
    totals = rank_totals(placement)
    return max(totals) * len(totals) / sum(totals)


def ranks_of(table: TablePlacement) -> str:
    """Return the ranks that have rows of a table, such as `all`, `3` or `0-2`."""
    ranks = [rank for rank, num_bytes in enumerate(table.rank_bytes) if num_bytes]
    if len(ranks) == len(table.rank_bytes):
        return "all"
    return f"{ranks[0]}-{ranks[-1]}" if len(ranks) > 1 else str(ranks[0])


def format_placement(placement: Sequence[TablePlacement]) -> list[str]:
    """Return a text table: a header, a line per table, the largest first, and a line for all."""
    width = max(len("table"), *(len(table.table) for table in placement))
    kind_width = max(len(table.kind) for table in placement)
    header = (
        f"{'table':<{width}}  {'rows':>13}  {'dim':>4}  {'kind':<{kind_width}}  {'ranks':<7}"
        "  MiB, fullest rank"
    )
    largest_first = sorted(placement, key=lambda table: -table.num_rows * table.dim)
    lines = [
        f"{table.table:<{width}}  {table.num_rows:>13,}  {table.dim:>4}"
        f"  {table.kind:<{kind_width}}  {ranks_of(table):<7}  {max(table.rank_bytes) / MIB:.3f}"
        for table in largest_first
    ]
    totals = rank_totals(placement)
    total = (
        f"{'all':<{width}}  {sum(table.num_rows for table in placement):>13,}"
        f"  {min(totals) / MIB:.3f} to {max(totals) / MIB:.3f} MiB on a rank,"
        f" imbalance {imbalance(placement):.2f}"
    )
    return [header, *lines, total]


def write_placement(path: Path, placement: Sequence[TablePlacement]) -> None:
    """Write a CSV file with the columns table, num_rows, dim, kind, rank_0, rank_1, ... (bytes)."""
    num_ranks = len(placement[0].rank_bytes)
    header = [*TablePlacement._fields[:-1], *(f"rank_{rank}" for rank in range(num_ranks))]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([*table[:-1], *table.rank_bytes] for table in placement)


def read_placement(path: Path) -> list[TablePlacement]:
    """Read what `write_placement` wrote; an empty list if there is no such file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        _, *rows = csv.reader(file)
    return [
        TablePlacement(table, int(num_rows), int(dim), kind, list(map(int, rank_bytes)))
        for table, num_rows, dim, kind, *rank_bytes in rows
    ]
