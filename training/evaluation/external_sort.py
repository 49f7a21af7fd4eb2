"""Scored rows by ascending score, whatever their number, in bounded memory: sorted runs on disk, read back a range of scores at a time.

A row is a uint64, so that sorting the numbers sorts the rows: from the top 30 bits of score (a float32 of 0 .. 1 is ordered as its bits
are), 1 of label, 13 of cell, and 20 that say how many further rows of its run are the same. A cell is whatever the caller wants to tell
rows apart by, such as day and band.
"""

import os
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
SAMPLED = 1 << 12  # records of a run, of which the first is kept in memory
ONE = int(np.float32(1).view(np.uint32))

Packed = NDArray[np.uint64]


class Block(NamedTuple):
    """K kinds of rows by ascending score; all rows of a score are in one block."""

    score_bits: NDArray[np.uint32]  # (K,) of the float32 score
    clicked: NDArray[np.bool_]
    cells: NDArray[np.uint16]
    rows: NDArray[np.int64]  # how many of this kind

    def where(self, wanted_K: NDArray[np.bool_]) -> "Block":
        return Block(
            self.score_bits[wanted_K],
            self.clicked[wanted_K],
            self.cells[wanted_K],
            self.rows[wanted_K],
        )


class Run(NamedTuple):
    """Sorted records in a file, from byte `start` on; samples: each SAMPLED-th of them. Not mapped: mapped pages count as memory."""

    file: int
    start: int
    size: int
    samples: Packed

    def read(self, first: int, end: int) -> Packed:
        size = 8 * (end - first)
        data = os.pread(self.file, size, self.start + 8 * first)
        assert len(data) == size, f"{len(data)} of {size} bytes read"
        return np.frombuffer(data, np.uint64)

    def cut(self, record: int) -> int:
        """How many records are smaller."""
        first = max(0, int(np.searchsorted(self.samples, np.uint64(record))) - 1) * SAMPLED
        return first + int(
            np.searchsorted(self.read(first, min(first + SAMPLED, self.size)), np.uint64(record))
        )


class Part(NamedTuple):
    """Records first .. end (exclusive) of a run."""

    run: Run
    first: int
    end: int


class Ranking:
    """Rows are added in any order, then read in order. Holds some 150 bytes a row of one run, 2 bytes per thousand rows beyond it.

    directory: where the runs go, 8 bytes a row, in a file without a name that is gone with this process; None: that for temporary files.
    """

    def __init__(self, directory: Path | None, run_rows: int = RUN_ROWS) -> None:
        self.run_rows = min(run_rows, RUN_ROWS)
        self.cell_rows = np.zeros(NUM_CELLS, np.int64)
        self.waiting: list[Packed] = []
        self.runs: list[Run] = []
        self.file = TemporaryFile(dir=directory)  # noqa: SIM115 - it lives as long as this object

    def add(
        self, labels_N: NDArray[Any], scores_N: NDArray[np.float32], cells_N: NDArray[Any] | int = 0
    ) -> None:
        """Labels 0/1, float32 scores of 0 .. 1, cells of 0 .. NUM_CELLS-1. Raises ValueError for any other score or cell."""
        bits_N = (np.asarray(scores_N, np.float32) + np.float32(0)).view(np.uint32)  # -0 becomes 0
        cells_N = np.broadcast_to(np.asarray(cells_N, np.int64), bits_N.shape)
        if not len(bits_N):
            return
        if bits_N.max() > ONE:  # a sign or a NaN has higher bits
            raise ValueError(
                f"scores of 0 .. 1 expected, found {np.asarray(scores_N)[bits_N > ONE][0]}"
            )
        if cells_N.min() < 0 or cells_N.max() >= NUM_CELLS:
            raise ValueError(
                f"cells 0 .. {NUM_CELLS - 1} expected, found {cells_N.min()} .. {cells_N.max()}"
            )
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
        self.file.flush()
        return map(
            _unpacked,
            _between([Part(run, 0, run.size) for run in self.runs], 0, ONE + 1, self.run_rows),
        )

    def _write_runs(self, *, whole_only: bool) -> None:
        rows = np.concatenate(self.waiting) if self.waiting else np.empty(0, np.uint64)
        end = len(rows) // self.run_rows * self.run_rows if whole_only else len(rows)
        for start in range(0, end, self.run_rows):
            run = np.sort(rows[start : min(start + self.run_rows, end)])
            starts_K = np.flatnonzero(np.append(True, run[1:] != run[:-1]))
            run = (
                run[starts_K] + np.diff(starts_K, append=len(run)).astype(np.uint64) - np.uint64(1)
            )
            self.runs.append(
                Run(self.file.fileno(), self.file.tell(), len(run), run[::SAMPLED].copy())
            )
            self.file.write(run.data)
        self.waiting = [rows[end:].copy()] if end < len(rows) else []


def _between(parts: list[Part], low: int, high: int, most: int) -> Iterator[Packed]:
    """The records with score bits low .. high-1, those of `parts`, in order; at most so many together, but for a single score."""
    if sum(part.end - part.first for part in parts) <= most or high - low == 1:
        if parts:
            packed_K = np.concatenate([part.run.read(part.first, part.end) for part in parts])
            packed_K.sort()
            yield packed_K
        return
    middle = (low + high) // 2
    cuts = [part.run.cut(middle << SCORE_AT) for part in parts]
    yield from _between(
        [
            Part(run, first, cut)
            for (run, first, _), cut in zip(parts, cuts, strict=True)
            if cut > first
        ],
        low,
        middle,
        most,
    )
    yield from _between(
        [Part(run, cut, end) for (run, _, end), cut in zip(parts, cuts, strict=True) if cut < end],
        middle,
        high,
        most,
    )


def _unpacked(packed_K: Packed) -> Block:
    return Block(
        (packed_K >> SCORE_AT).astype(np.uint32),
        (packed_K >> LABEL_AT & 1).astype(np.bool_),
        (packed_K >> COUNT_BITS & (NUM_CELLS - 1)).astype(np.uint16),
        (packed_K & (RUN_ROWS - 1)).astype(np.int64) + 1,
    )
