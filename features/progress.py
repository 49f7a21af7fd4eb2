"""Progress of a stage as plain lines, which read well in a terminal, in DVC's output and in Prefect's logs alike."""

import time
from pathlib import Path
from types import TracebackType
from typing import Self

from features.files import write_json

EVERY_S = 1.0


class Progress:
    """Counts rows and prints `ingest  43 %  1,200,000 rows  410,000 rows/s  ETA 3 s`, at most once a second and once at the end.

    total_rows may be unknown (None); it may also be set later, when it can be estimated. Timings are written to
    root/runs/timings/STAGE.json (root None: nowhere), never into an artifact: they differ from run to run.
    """

    def __init__(self, stage: str, total_rows: int | None, root: Path | None, rows_before: int = 0) -> None:
        """rows_before: done by an earlier process, and no part of the rate."""
        self.stage, self.total_rows, self.root = stage, total_rows, root
        self.num_rows = self.rows_before = rows_before

    def __enter__(self) -> Self:
        self.started_s = self.printed_s = time.perf_counter()
        return self

    def update(self, num_rows: int) -> None:
        """Count num_rows more rows."""
        self.num_rows += num_rows
        if time.perf_counter() - self.printed_s >= EVERY_S and self.num_rows != self.total_rows:  # the end has its own line
            self.printed_s = time.perf_counter()
            self._print()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.total_rows = self.num_rows
            self._print()
            seconds = self._seconds()
            timing = {"num_rows": self.num_rows, "seconds": seconds, "rows_per_s": self._rate()}
            if self.root:
                write_json(self.root / "runs" / "timings" / f"{self.stage}.json", timing)

    def _rate(self) -> float:
        return (self.num_rows - self.rows_before) / self._seconds()

    def _seconds(self) -> float:
        return max(time.perf_counter() - self.started_s, 1e-9)

    def _print(self) -> None:
        rate = self._rate()
        line = f"{self.stage:<9}"
        if self.total_rows:
            line += f" {100 * self.num_rows // self.total_rows:3d} %"
        line += f"  {self.num_rows:,} rows  {rate:,.0f} rows/s"
        if self.total_rows and rate and self.num_rows < self.total_rows:
            line += f"  ETA {(self.total_rows - self.num_rows) / rate:.0f} s"
        print(line, flush=True)
