"""Progress of a stage: one updating line in a terminal, plain lines elsewhere, which read well in DVC's output and in Prefect's logs."""

import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from common.files import write_json

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

EVERY_S = 1.0


class Progress:
    """Counts rows and tells `ingest     43 %  1,200,000 rows  410,000 rows/s  ETA 3 s`, at most once a second and once at the end.

    In a terminal a bar and the line stay in one place, below what else is printed. total_rows may be unknown (None); it may also be
    set later, when it can be estimated. rows_before were done by an earlier process and are no part of the rate. stopped, set later: the
    rows that are not done will not be. Timings are written to root/runs/timings/STAGE.json (root None: nowhere), never into an artifact:
    they differ from run to run.
    """

    def __init__(
        self, stage: str, total_rows: int | None, root: Path | None, rows_before: int = 0
    ) -> None:
        self.stage, self.total_rows, self.root = stage, total_rows, root
        self.num_rows = self.rows_before = rows_before
        self.bar: Bar | None = None
        self.stopped = False

    def __enter__(self) -> Self:
        self.started_s = self.printed_s = time.perf_counter()
        if sys.stdout.isatty():
            self.bar = make_bar()
            self.bar.start()
        return self

    def update(self, num_rows: int) -> None:
        """Count num_rows more rows."""
        self.num_rows += num_rows
        if (
            time.perf_counter() - self.printed_s >= EVERY_S and self.num_rows != self.total_rows
        ):  # the end has its own line
            self.printed_s = time.perf_counter()
            self._tell()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar:
            self.bar.stop()
        if kind is None:
            if not self.stopped:  # what was estimated is known now
                self.total_rows = self.num_rows
            print(self._line(), flush=True)
            timing = {
                "num_rows": self.num_rows,
                "seconds": self._seconds(),
                "rows_per_s": self._rate(),
            }
            if self.root:
                write_json(self.root / "runs" / "timings" / f"{self.stage}.json", timing)

    def _rate(self) -> float:
        return (self.num_rows - self.rows_before) / self._seconds()

    def _seconds(self) -> float:
        return max(time.perf_counter() - self.started_s, 1e-9)

    def _tell(self) -> None:
        if self.bar:
            self.bar.update(
                self.bar.task_ids[0],
                completed=self.num_rows,
                total=self.total_rows,
                description=self._line(),
            )
        else:
            print(self._line(), flush=True)

    def _line(self) -> str:
        rate = self._rate()
        line = f"{self.stage:<9}"
        if self.total_rows:
            line += f" {100 * self.num_rows // self.total_rows:3d} %"
        line += f"  {self.num_rows:,} rows  {rate:,.0f} rows/s"
        if self.total_rows and rate and self.num_rows < self.total_rows and not self.stopped:
            line += f"  ETA {(self.total_rows - self.num_rows) / rate:.0f} s"
        return line


def make_bar() -> "Bar":
    """Of one task; what is printed meanwhile goes above it, and it vanishes when it stops."""
    from rich.console import Console  # slow to import, and needed in a terminal alone
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(file=sys.stdout, highlight=False)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        console=console,
        transient=True,
        refresh_per_second=4,
    )
    bar.add_task("", total=None)
    return bar
