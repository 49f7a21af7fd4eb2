"""Where the time of a training step goes: torch's own profiler on some steps, a trace to look at and a table."""

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
    """Profiles STEPS steps, after the first of the run, and writes root/runs/profile/{trace.json, top_operators.csv}.

    The table has the TOP operators by the time in themselves, without those that they call: operator,calls,cpu_time_us,cpu_share (of
    all operators' time) and, on a GPU, cuda_time_us. A run of too few steps writes none. What profiling costs is in the times.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (
            module.device.type == "cuda"
        )
        steps = schedule(
            skip_first=SKIPPED_STEPS, wait=0, warmup=WARMUP_STEPS, active=STEPS, repeat=1
        )
        self.profiler = profile(activities=activities, schedule=steps, on_trace_ready=self._write)
        self.profiler.start()

    def on_train_batch_end(self, *_: Any) -> None:
        self.profiler.step()

    def on_train_end(self, *_: Any) -> None:
        self.profiler.stop()

    def _write(self, profiler: Any) -> None:
        rows = profiler.key_averages()
        cpu_us, gpu_us = (sum(getattr(row, time) for row in rows) for time in (CPU_TIME, GPU_TIME))
        rows = sorted(rows, key=lambda row: -getattr(row, GPU_TIME if gpu_us else CPU_TIME))
        with replaced(self.root / TOP_OPERATORS.parent) as scratch:
            scratch.mkdir()
            profiler.export_chrome_trace(str(scratch / TRACE.name))
            with (scratch / TOP_OPERATORS.name).open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(
                    [
                        "operator",
                        "calls",
                        "cpu_time_us",
                        "cpu_share",
                        *["cuda_time_us"] * bool(gpu_us),
                    ]
                )
                for row in rows[:TOP]:
                    name = BETWEEN if row.key.startswith("ProfilerStep") else row.key
                    cpu, gpu = getattr(row, CPU_TIME), getattr(row, GPU_TIME)
                    writer.writerow(
                        [
                            name,
                            row.count,
                            round(cpu),
                            f"{cpu / cpu_us:.4f}",
                            *[round(gpu)] * bool(gpu_us),
                        ]
                    )
        log.info(f"profile of {STEPS} steps: {TOP_OPERATORS}, {TRACE}")
