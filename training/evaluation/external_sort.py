"""An external sort, which puts any number of scored rows in ascending order in bounded memory.

Rows are sorted in runs, which are written to a file. They are read back one range of scores at a
time, merged from all runs.

A row is packed into a uint64, so that sorting the numbers sorts the rows. From the highest bits:

    30 bits   score: the bits of a float32 between 0 and 1 have the order of the numbers
     1 bit    label
    13 bits   cell: a number by which the caller distinguishes rows, such as that of a day
    20 bits   count: the number of further rows of the run that have the same score, label and cell

With sample weights, the sum of the weights of a record's rows is kept beside it, as a float64.
"""

import os
from collections.abc import Iterator
from itertools import starmap
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SCORE_BITS, LABEL_BITS, COUNT_BITS = 30, 1, 20
CELL_BITS = 64 - SCORE_BITS - LABEL_BITS - COUNT_BITS
LABEL_SHIFT = COUNT_BITS + CELL_BITS
SCORE_SHIFT = LABEL_SHIFT + LABEL_BITS
NUM_CELLS = 1 << CELL_BITS
RUN_ROWS = 1 << COUNT_BITS  # rows that are sorted together, and records that are read together
SAMPLE_EVERY = 1 << 12  # records; the first of each such piece of a run stays in memory
ONE = int(np.float32(1).view(np.uint32))

Packed = NDArray[np.uint64]


class Block(NamedTuple):
    """K kinds of rows in ascending order of score; all rows of a score are in one block.

    Attributes:
        score_bits: The bits of the float32 score, (K,).
        clicked: Whether the label is 1, (K,).
        cells: The cell of the rows, (K,).
        rows: The number of rows of this kind, (K,).
        weights: The sum of their sample weights, (K,); None if all weights are 1.
    """

    score_bits: NDArray[np.uint32]
    clicked: NDArray[np.bool_]
    cells: NDArray[np.uint16]
    rows: NDArray[np.int64]
    weights: NDArray[np.float64] | None = None

    def where(self, selected_K: NDArray[np.bool_]) -> "Block":
        """Return the kinds of rows that a mask selects."""
        return Block(
            self.score_bits[selected_K],
            self.clicked[selected_K],
            self.cells[selected_K],
            self.rows[selected_K],
            None if self.weights is None else self.weights[selected_K],
        )


class Run(NamedTuple):
    """Sorted records in a file.

    They are read with pread and not mapped into memory, because mapped pages count as the memory of
    the process.

    Attributes:
        file: File descriptor.
        start: Offset of the first record in bytes.
        size: Number of records.
        samples: Every SAMPLE_EVERY-th record.
        is_weighted: Whether the weights of the records follow the records.
    """

    file: int
    start: int
    size: int
    samples: Packed
    is_weighted: bool

    def read(self, first: int, end: int) -> Packed:
        """Read the records first to end (exclusive)."""
        return np.frombuffer(self._read(self.start + 8 * first, 8 * (end - first)), np.uint64)

    def read_weights(self, first: int, end: int) -> NDArray[np.float64]:
        """Read the weights of the records first to end (exclusive)."""
        start = self.start + 8 * (self.size + first)
        return np.frombuffer(self._read(start, 8 * (end - first)), np.float64)

    def _read(self, start: int, size: int) -> bytes:
        data = os.pread(self.file, size, start)
        assert len(data) == size, f"{len(data)} of {size} bytes read"
        return data

    def num_smaller(self, record: int) -> int:
        """Return the number of records that are smaller than a given one."""
        first = max(0, int(np.searchsorted(self.samples, np.uint64(record))) - 1) * SAMPLE_EVERY
        piece = self.read(first, min(first + SAMPLE_EVERY, self.size))
        return first + int(np.searchsorted(piece, np.uint64(record)))


class Part(NamedTuple):
    """The records first to end (exclusive) of a run."""

    run: Run
    first: int
    end: int


class Ranking:
    """Scored rows that are added in any order and then read in ascending order of score.

    It takes about 150 bytes of memory per row of one run, and 2 bytes for every thousand rows
    beyond it.
    """

    def __init__(self, directory: Path | None, run_rows: int = RUN_ROWS) -> None:
        """Create an empty ranking.

        Args:
            directory: Where the runs are written, 8 bytes a row, to a file without a name that
                disappears with this process. None is the directory for temporary files.
            run_rows: Number of rows that are sorted together.
        """
        self.run_rows = min(run_rows, RUN_ROWS)
        self.cell_rows = np.zeros(NUM_CELLS, np.int64)
        self.cell_weights: NDArray[np.float64] | None = None  # with sample weights
        self.unsorted: list[Packed] = []
        self.unsorted_weights: list[NDArray[np.float64]] = []
        self.runs: list[Run] = []
        self.file = TemporaryFile(dir=directory)  # noqa: SIM115 - it lives as long as this object

    def add(
        self,
        labels_N: NDArray[Any],
        scores_N: NDArray[np.float32],
        cells_N: NDArray[Any] | int = 0,
        weights_N: NDArray[Any] | None = None,
    ) -> None:
        """Add N rows.

        Args:
            labels_N: Labels 0 or 1, (N,).
            scores_N: float32 scores between 0 and 1, (N,).
            cells_N: Cells between 0 and NUM_CELLS - 1, (N,) or one for all rows.
            weights_N: Sample weights of at least 0, (N,); None in all calls if all are 1.

        Raises:
            ValueError: A score or a cell is out of range.
        """
        # Adding 0 makes -0 a 0, whose bits sort first.
        bits_N = (np.asarray(scores_N, np.float32) + np.float32(0)).view(np.uint32)
        cells_N = np.broadcast_to(np.asarray(cells_N, np.int64), bits_N.shape)
        if not len(bits_N):
            return
        if bits_N.max() > ONE:  # the bits of negative numbers and of NaN are higher
            raise ValueError(
                f"scores of 0 .. 1 expected, found {np.asarray(scores_N)[bits_N > ONE][0]}"
            )
        if cells_N.min() < 0 or cells_N.max() >= NUM_CELLS:
            raise ValueError(
                f"cells 0 .. {NUM_CELLS - 1} expected, found {cells_N.min()} .. {cells_N.max()}"
            )
        self.cell_rows += np.bincount(cells_N, minlength=NUM_CELLS)
        packed_N: Packed = bits_N.astype(np.uint64) << np.uint64(SCORE_SHIFT)
        packed_N |= np.asarray(labels_N).astype(np.uint64) << np.uint64(LABEL_SHIFT)
        packed_N |= cells_N.astype(np.uint64) << np.uint64(COUNT_BITS)
        self.unsorted.append(packed_N)
        if weights_N is not None:
            weights_N = np.asarray(weights_N, np.float64)
            self.unsorted_weights.append(weights_N)
            if self.cell_weights is None:
                self.cell_weights = np.zeros(NUM_CELLS)
            self.cell_weights += np.bincount(cells_N, weights_N, minlength=NUM_CELLS)
        if sum(map(len, self.unsorted)) >= self.run_rows:
            self._write_runs(only_full_runs=True)

    def blocks(self) -> Iterator[Block]:
        """Return all rows added so far, in ascending order of score."""
        self._write_runs(only_full_runs=False)
        self.file.flush()
        parts = [Part(run, 0, run.size) for run in self.runs]
        return starmap(_unpacked, _merged(parts, 0, ONE + 1, self.run_rows))

    def _write_runs(self, *, only_full_runs: bool) -> None:
        rows = np.concatenate(self.unsorted) if self.unsorted else np.empty(0, np.uint64)
        weights = np.concatenate(self.unsorted_weights) if self.unsorted_weights else None
        end = len(rows)
        if only_full_runs:
            end = len(rows) // self.run_rows * self.run_rows
        for start in range(0, end, self.run_rows):
            of_run = slice(start, min(start + self.run_rows, end))
            if weights is None:
                run = np.sort(rows[of_run])
            else:
                order = np.argsort(rows[of_run], kind="stable")
                run, of_rows = rows[of_run][order], weights[of_run][order]
            starts_K = np.flatnonzero(np.append(True, run[1:] != run[:-1]))
            further_rows_K = np.diff(starts_K, append=len(run)).astype(np.uint64) - np.uint64(1)
            run = run[starts_K] + further_rows_K
            samples, is_weighted = run[::SAMPLE_EVERY].copy(), weights is not None
            self.runs.append(
                Run(self.file.fileno(), self.file.tell(), len(run), samples, is_weighted)
            )
            self.file.write(run.data)
            if is_weighted:
                self.file.write(np.add.reduceat(of_rows, starts_K).data)
        self.unsorted = [rows[end:].copy()] if end < len(rows) else []
        if weights is not None:
            self.unsorted_weights = [weights[end:].copy()] if end < len(rows) else []


def _merged(
    parts: list[Part], low: int, high: int, max_records: int
) -> Iterator[tuple[Packed, NDArray[np.float64] | None]]:
    """Yield the records of parts of runs in order, and their weights, in bounded pieces.

    All records have score bits between low and high - 1. The range is halved until it has at most
    max_records records.
    The records of a single score stay together, whatever their number.
    """
    if sum(part.end - part.first for part in parts) <= max_records or high - low == 1:
        if parts:
            packed_K = np.concatenate([part.run.read(part.first, part.end) for part in parts])
            if parts[0].run.is_weighted:
                weights = [part.run.read_weights(part.first, part.end) for part in parts]
                order_K = np.argsort(packed_K, kind="stable")
                yield packed_K[order_K], np.concatenate(weights)[order_K]
            else:
                packed_K.sort()
                yield packed_K, None
        return
    middle = (low + high) // 2
    lower, upper = [], []
    for run, first, end in parts:
        cut = run.num_smaller(middle << SCORE_SHIFT)
        if cut > first:
            lower.append(Part(run, first, cut))
        if cut < end:
            upper.append(Part(run, cut, end))
    yield from _merged(lower, low, middle, max_records)
    yield from _merged(upper, middle, high, max_records)


def _unpacked(packed_K: Packed, weights_K: NDArray[np.float64] | None) -> Block:
    return Block(
        (packed_K >> SCORE_SHIFT).astype(np.uint32),
        (packed_K >> LABEL_SHIFT & 1).astype(np.bool_),
        (packed_K >> COUNT_BITS & (NUM_CELLS - 1)).astype(np.uint16),
        (packed_K & (RUN_ROWS - 1)).astype(np.int64) + 1,
        weights_K,
    )
