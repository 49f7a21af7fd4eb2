"""The profile of a training: some steps under torch's profiler, as a trace and a table."""

import csv
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch.profiler import ProfilerActivity, profile, schedule

from common.files import replaced
from common.logs import get_logger
from training.loop.training_curves import TOP_OPERATORS

log = get_logger("train")

TRACE = TOP_OPERATORS.with_name("trace.json")  # for chrome://tracing or ui.perfetto.dev
SKIPPED_STEPS, WARMUP_STEPS, STEPS = 5, 2, 10
TOP = 30
CPU_TIME, GPU_TIME = "self_cpu_time_total", "self_device_time_total"
BETWEEN = "(Python, between operators)"


class ProfileSteps(pl.Callback):
    """Profiles STEPS steps after the first ones of a run.

    It writes trace.json and top_operators.csv to root/runs/profile. The table has the TOP operators
    by self time, which excludes the operators that they call: operator, calls, cpu_time_us,
    cpu_share (of all operators' time) and, on a GPU, cuda_time_us. The times include what profiling
    costs. A run that is too short writes nothing.

    Args:
        root: The directory with runs/.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the profiler, which skips the first steps."""
        activities = [ProfilerActivity.CPU]
        if pl_module.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        steps = schedule(
            skip_first=SKIPPED_STEPS, wait=0, warmup=WARMUP_STEPS, active=STEPS, repeat=1
        )
        self.profiler = profile(activities=activities, schedule=steps, on_trace_ready=self._write)
        self.profiler.start()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Report the end of a step to the profiler."""
        self.profiler.step()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the profiler."""
        self.profiler.stop()

    def _write(self, profiler: Any) -> None:
        operators = profiler.key_averages()
        cpu_us, gpu_us = (
            sum(getattr(row, time) for row in operators) for time in (CPU_TIME, GPU_TIME)
        )
        sort_by = GPU_TIME if gpu_us else CPU_TIME
        operators = sorted(operators, key=lambda row: -getattr(row, sort_by))
        columns = ["operator", "calls", "cpu_time_us", "cpu_share"]
        if gpu_us:
            columns.append("cuda_time_us")
        with replaced(self.root / TOP_OPERATORS.parent) as scratch:
            scratch.mkdir()
            profiler.export_chrome_trace(str(scratch / TRACE.name))
            with (scratch / TOP_OPERATORS.name).open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
                writer.writeheader()
                writer.writerows(_as_row(operator, cpu_us) for operator in operators[:TOP])
        log.info(f"profile of {STEPS} steps: {TOP_OPERATORS}, {TRACE}")


def _as_row(operator: Any, cpu_us: float) -> dict[str, Any]:
    cpu_time_us = getattr(operator, CPU_TIME)
    return {
        "operator": BETWEEN if operator.key.startswith("ProfilerStep") else operator.key,
        "calls": operator.count,
        "cpu_time_us": round(cpu_time_us),
        "cpu_share": f"{cpu_time_us / cpu_us:.4f}",
        "cuda_time_us": round(getattr(operator, GPU_TIME)),
    }
