"""The plan as it is told: in the log, in the bundle (plan.csv) and in the report. Nothing here needs TorchRec."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from training.models.factory import Group

PLAN = "plan.csv"
GATHERED = (
    "gathered"  # train.parallel data: each rank has the table, and hears of every other's rows
)
MIB = 1 << 20


class Line(NamedTuple):
    """A table: its column or group.table, its rows of `dim` floats, its kind (training/distributed/sharding/planner.py; "cached": in the host's memory,
    with a cache on the device), and the bytes that its rows and the optimizer's sums take on each rank."""

    table: str
    num_rows: int
    dim: int
    kind: str
    rank_bytes: list[int]


def gathered_lines(groups: Sequence[Group], optimizer: str, num_ranks: int) -> list[Line]:
    """The plan of train.parallel data: all of each table on every rank."""
    return [
        Line(
            f"{g}.{k}",
            num_rows,
            group.embedding_dim,
            GATHERED,
            [4 * num_rows * (group.embedding_dim + (optimizer != "sgd"))] * num_ranks,
        )
        for g, group in enumerate(groups)
        for k, num_rows in enumerate(group.cardinalities)
    ]


def rank_totals(lines: Sequence[Line]) -> list[int]:
    """Bytes of all tables on each rank."""
    return [sum(of_rank) for of_rank in zip(*(line.rank_bytes for line in lines), strict=True)]


def imbalance(lines: Sequence[Line]) -> float:
    """The fullest rank's bytes by the mean rank's; 1 is even."""
    totals = rank_totals(lines)
    return max(totals) * len(totals) / sum(totals)


def ranks_of(line: Line) -> str:
    """Those that have rows of the table."""
    ranks = [rank for rank, num_bytes in enumerate(line.rank_bytes) if num_bytes]
    if len(ranks) == len(line.rank_bytes):
        return "all"
    return f"{ranks[0]}-{ranks[-1]}" if len(ranks) > 1 else str(ranks[0])


def as_text(lines: Sequence[Line]) -> list[str]:
    """A line for each table, the largest first, and one for all."""
    width = max(len("table"), *(len(line.table) for line in lines))
    kinds = max(len(line.kind) for line in lines)
    told = [
        f"{'table':<{width}}  {'rows':>13}  {'dim':>4}  {'kind':<{kinds}}  {'ranks':<7}  MiB, fullest rank"
    ]
    for line in sorted(lines, key=lambda line: -line.num_rows * line.dim):
        size = f"{max(line.rank_bytes) / MIB:.3f}"
        told.append(
            f"{line.table:<{width}}  {line.num_rows:>13,}  {line.dim:>4}  {line.kind:<{kinds}}  {ranks_of(line):<7}  {size}"
        )
    totals = rank_totals(lines)
    of_ranks = f"{min(totals) / MIB:.3f} to {max(totals) / MIB:.3f} MiB on a rank, imbalance {imbalance(lines):.2f}"
    return [*told, f"{'all':<{width}}  {sum(line.num_rows for line in lines):>13,}  {of_ranks}"]


def write_plan(path: Path, lines: Sequence[Line]) -> None:
    """table,num_rows,dim,kind and a column of bytes for each rank."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            [*Line._fields[:-1], *(f"rank_{rank}" for rank in range(len(lines[0].rank_bytes)))]
        )
        writer.writerows([*line[:-1], *line.rank_bytes] for line in lines)


def read_plan(path: Path) -> list[Line]:
    """What write_plan wrote; nothing where there is no such file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        _, *rows = csv.reader(file)
    return [
        Line(table, int(num_rows), int(dim), kind, list(map(int, sizes)))
        for table, num_rows, dim, kind, *sizes in rows
    ]
