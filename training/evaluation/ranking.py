"""Scored rows by ascending score, whatever their number, in bounded memory: sorted runs on disk, read back a range of scores at a time.

A row is a uint64, so that sorting the numbers sorts the rows: from the top 30 bits of score (a float32 of 0 .. 1 is ordered as its bits
are), 1 of label, 13 of cell, and 20 that say how many further rows of its run are the same. A cell is whatever the caller wants to tell
rows apart by, such as day and band.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SCORE_BITS, LABEL_BITS, COUNT_BITS = 30, 1, 20
CELL_BITS = 64 - SCORE_BITS - LABEL_BITS - COUNT_BITS
LABEL_AT = COUNT_BITS + CELL_BITS
SCORE_AT = LABEL_AT + LABEL_BITS
NUM_CELLS = 1 << CELL_BITS
RUN_ROWS = 1 << COUNT_BITS  # sorted together; as many records are read together
ONE = int(np.float32(1).view(np.uint32))

Packed = NDArray[np.uint64]


class Block(NamedTuple):
    """K kinds of rows by ascending score; all rows of a score are in one block."""

    score_bits: NDArray[np.uint32]  # (K,) of the float32 score
    clicked: NDArray[np.bool_]
    cells: NDArray[np.uint16]
    rows: NDArray[np.int64]  # how many of this kind

    def where(self, wanted_K: NDArray[np.bool_]) -> "Block":
        return Block(self.score_bits[wanted_K], self.clicked[wanted_K], self.cells[wanted_K], self.rows[wanted_K])


class Ranking:
    """Rows are added in any order, then read in order. Holds about 200 bytes a row of one run, and nothing a row beyond it.

    directory: where the runs go, in a file without a name that is gone with this process; None: they stay in memory.
    """

    def __init__(self, directory: Path | None, run_rows: int = RUN_ROWS) -> None:
        self.directory, self.run_rows = directory, min(run_rows, RUN_ROWS)
        self.cell_rows = np.zeros(NUM_CELLS, np.int64)
        self.waiting: list[Packed] = []
        self.runs: list[Packed] = []
        self.sizes: list[int] = []  # of the runs in the file
        self.file = TemporaryFile(dir=directory) if directory else None  # noqa: SIM115 - it lives as long as this object

    def add(self, labels_N: NDArray[Any], scores_N: NDArray[np.float32], cells_N: NDArray[Any] | int = 0) -> None:
        """Labels 0/1, float32 scores of 0 .. 1, cells of 0 .. NUM_CELLS-1. Raises ValueError for any other score or cell."""
        bits_N = (np.asarray(scores_N, np.float32) + np.float32(0)).view(np.uint32)  # -0 becomes 0
        cells_N = np.broadcast_to(np.asarray(cells_N, np.int64), bits_N.shape)
        if not len(bits_N):
            return
        if bits_N.max() > ONE:  # a sign or a NaN has higher bits
            raise ValueError(f"scores of 0 .. 1 expected, found {np.asarray(scores_N)[bits_N > ONE][0]}")
        if cells_N.min() < 0 or cells_N.max() >= NUM_CELLS:
            raise ValueError(f"cells 0 .. {NUM_CELLS - 1} expected, found {cells_N.min()} .. {cells_N.max()}")
        self.cell_rows += np.bincount(cells_N, minlength=NUM_CELLS)
        packed_N: Packed = bits_N.astype(np.uint64) << np.uint64(SCORE_AT)
        packed_N |= np.asarray(labels_N).astype(np.uint64) << np.uint64(LABEL_AT)
        packed_N |= cells_N.astype(np.uint64) << np.uint64(COUNT_BITS)
        self.waiting.append(packed_N)
        if sum(map(len, self.waiting)) >= self.run_rows:
            self._write_runs(whole_only=True)

    def blocks(self) -> Iterator[Block]:
        """All rows added so far."""
        self._write_runs(whole_only=False)
        if not self.file or not self.sizes:
            yield from map(_unpacked, self._between(self.runs, 0, ONE + 1))
            return
        self.file.flush()
        mapped = mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ)
        runs = np.split(np.frombuffer(mapped, np.uint64), np.cumsum(self.sizes[:-1]))
        for packed_K in self._between(runs, 0, ONE + 1):
            mapped.madvise(mmap.MADV_DONTNEED)  # else what was read of the file counts as this process's memory
            yield _unpacked(packed_K)

    def _between(self, runs: list[Packed], low: int, high: int) -> Iterator[Packed]:
        """The records with score bits in low .. high-1, which are those of `runs`, in as many parts as it takes to keep them small."""
        if sum(map(len, runs)) <= self.run_rows or high - low == 1:
            if any(map(len, runs)):
                packed_K = np.concatenate(runs)
                packed_K.sort()
                yield packed_K
            return
        middle = (low + high) // 2
        cuts = [int(np.searchsorted(run, np.uint64(middle << SCORE_AT))) for run in runs]
        yield from self._between([run[:cut] for run, cut in zip(runs, cuts, strict=True) if cut], low, middle)
        yield from self._between([run[cut:] for run, cut in zip(runs, cuts, strict=True) if cut < len(run)], middle, high)

    def _write_runs(self, *, whole_only: bool) -> None:
        rows = np.concatenate(self.waiting) if self.waiting else np.empty(0, np.uint64)
        end = len(rows) // self.run_rows * self.run_rows if whole_only else len(rows)
        for start in range(0, end, self.run_rows):
            run = np.sort(rows[start : min(start + self.run_rows, end)])
            starts_K = np.flatnonzero(np.append(True, run[1:] != run[:-1]))
            run = run[starts_K] + np.diff(starts_K, append=len(run)).astype(np.uint64) - np.uint64(1)
            if self.file:
                run.tofile(self.file)
                self.sizes.append(len(run))
            else:
                self.runs.append(run)
        self.waiting = [rows[end:].copy()] if end < len(rows) else []


def _unpacked(packed_K: Packed) -> Block:
    return Block(
        (packed_K >> SCORE_AT).astype(np.uint32),
        (packed_K >> LABEL_AT & 1).astype(np.bool_),
        (packed_K >> COUNT_BITS & (NUM_CELLS - 1)).astype(np.uint16),
        (packed_K & (RUN_ROWS - 1)).astype(np.int64) + 1,
    )
