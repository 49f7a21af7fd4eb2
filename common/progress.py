"""Progress of a stage: a bar that updates in place in a terminal, a line each second elsewhere."""

import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from common.files import write_json
from common.logs import get_logger

if TYPE_CHECKING:  # importing rich takes time, and only a terminal needs it
    from rich.progress import Progress as Bar

EVERY_S = 1.0
# Environment variable: the file from which a parent process reads the percentage.
PROGRESS_FILE = "CLICKMILL_PROGRESS_FILE"


class Progress:
    """Counts rows, or what else a stage does, and logs a line once a second and once at the end.

    A line is `ingest     43 %  1,200,000 rows  410,000 rows/s  ETA 3 s`.

    In a terminal the line and a bar stay below all other output. Where the environment variable
    CLICKMILL_PROGRESS_FILE names a file, the percentage is written to it. At the end the timing is
    written to root/runs/timings/STAGE.json, never into an artifact, because it differs from run to
    run.

    Args:
        stage: The name of the stage, with which each line begins.
        total_rows: The number of rows of the whole stage; None if it is unknown. It may be set
            later, and corrected.
        root: The repository, for the timing; None writes no timing.
        rows_before: The number of rows that an earlier process has finished. They do not count for
            the rate.
        unit: What is counted.

    Attributes:
        stopped: Set it where the stage ends early on purpose, so that the remaining rows are not
            counted as done.
    """

    def __init__(
        self,
        stage: str,
        total_rows: int | None,
        root: Path | None,
        rows_before: int = 0,
        unit: str = "rows",
    ) -> None:
        self.stage, self.total_rows, self.root, self.unit = stage, total_rows, root, unit
        self.num_rows = self.rows_before = rows_before
        self.bar: Bar | None = None
        self.stopped = False
        self.log = get_logger(stage)

    def __enter__(self) -> Self:
        self.started_s = self.logged_s = time.perf_counter()
        if sys.stdout.isatty():
            self.bar = make_bar()
            self.bar.start()
        return self

    def update(self, num_rows: int) -> None:
        """Add a number of rows to those that are done."""
        self.num_rows += num_rows
        is_end = self.num_rows == self.total_rows  # the end has a line of its own
        if time.perf_counter() - self.logged_s >= EVERY_S and not is_end:
            self.logged_s = time.perf_counter()
            self._report()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None
        if kind is None:
            if not self.stopped:
                self.total_rows = self.num_rows  # it may have been an estimate
            self._report()
            if self.root:
                timing = {
                    f"num_{self.unit}": self.num_rows,
                    "seconds": self._seconds(),
                    f"{self.unit}_per_s": self._rate(),
                }
                write_json(self.root / "runs" / "timings" / f"{self.stage}.json", timing)

    def _rate(self) -> float:
        return (self.num_rows - self.rows_before) / self._seconds()

    def _seconds(self) -> float:
        return max(time.perf_counter() - self.started_s, 1e-9)

    def _percent(self) -> int | None:
        return 100 * self.num_rows // self.total_rows if self.total_rows else None

    def _report(self) -> None:
        if self.bar:
            self.bar.update(
                self.bar.task_ids[0],
                completed=self.num_rows,
                total=self.total_rows,
                description=f"{self.stage:<9} {self._line()}",
            )
        else:
            self.log.info(self._line())
        percent = self._percent()
        if percent is not None and (path := os.environ.get(PROGRESS_FILE)):
            Path(path).write_text(str(percent), encoding="ascii")

    def _line(self) -> str:
        rate, percent = self._rate(), self._percent()
        line = "" if percent is None else f"{percent:3d} %"
        digits = 0 if self.unit == "rows" else 2  # few of anything else are done in a second
        line += f"  {self.num_rows:,} {self.unit}  {rate:,.{digits}f} {self.unit}/s"
        if self.total_rows and rate and self.num_rows < self.total_rows and not self.stopped:
            line += f"  ETA {(self.total_rows - self.num_rows) / rate:.0f} s"
        return line


def read_percent(path: Path) -> float | None:
    """Return the percentage in a child process's progress file; None before the first one."""
    try:
        return float(path.read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        return None


def make_bar() -> "Bar":
    """Create a progress bar of one task; other output goes above it."""
    from rich.console import Console
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
