"""Where the time of a training step goes: torch's own profiler on some steps, a trace to look at and a table."""

import csv
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch.profiler import ProfilerActivity, profile, schedule

from features.files import replaced

PROFILE = Path("runs/profile")
TRACE = "trace.json"  # for chrome://tracing or ui.perfetto.dev
TOP_OPERATORS = "top_operators.csv"
SKIPPED_STEPS, WARMUP_STEPS, STEPS = 5, 2, 10
TOP = 30


class ProfileSteps(pl.Callback):
    """Profiles STEPS steps, after the first of the run, and writes root/runs/profile/{trace.json, top_operators.csv}.

    The table is by time in the operator itself, without those it calls: operator,calls,cpu_time_us,cpu_share,gpu_time_us,gpu_share,
    shares of all operators' time. A run of too few steps writes none. What profiling itself costs is in the times.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (module.device.type == "cuda")
        steps = schedule(skip_first=SKIPPED_STEPS, wait=0, warmup=WARMUP_STEPS, active=STEPS, repeat=1)
        self.profiler = profile(activities=activities, schedule=steps, on_trace_ready=self._write)
        self.profiler.start()

    def on_train_batch_end(self, *_: Any) -> None:
        self.profiler.step()

    def on_train_end(self, *_: Any) -> None:
        self.profiler.stop()

    def _write(self, profiler: Any) -> None:
        found = profiler.key_averages()
        cpu_us, gpu_us = sum(row.self_cpu_time_total for row in found), sum(row.self_device_time_total for row in found)
        found = sorted(found, key=lambda row: -(row.self_device_time_total if gpu_us else row.self_cpu_time_total))
        with replaced(self.root / PROFILE) as scratch:
            scratch.mkdir()
            profiler.export_chrome_trace(str(scratch / TRACE))
            with (scratch / TOP_OPERATORS).open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(["operator", "calls", "cpu_time_us", "cpu_share", "gpu_time_us", "gpu_share"])
                for row in found[:TOP]:
                    cpu, gpu = row.self_cpu_time_total, row.self_device_time_total
                    shares = f"{cpu / max(cpu_us, 1):.4f}", f"{gpu / max(gpu_us, 1):.4f}"
                    writer.writerow([row.key, row.count, f"{cpu:.0f}", shares[0], f"{gpu:.0f}", shares[1]])
        print(f"train     profile of {STEPS} steps: {PROFILE / TOP_OPERATORS}, {PROFILE / TRACE}", flush=True)
