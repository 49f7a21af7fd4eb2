"""The report of an export: what each format of the numbers costs and saves, on the test rows.

It has measured times and so other bytes each time. It is written beside the serving bundle, as
DIR.html, and is no output of the stage `export`.

Shapes: R rows.
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from common.config.params import MlpFormat, TableFormat
from common.files import replaced
from common.html.page import page_environment
from common.progress import Progress
from serving.runtime import Runtime
from serving.serving_bundle import MODEL_FILE, ServingManifest
from training.compression.report import as_mib, change
from training.evaluation.metrics import Metrics
from training.export.formats import with_formats
from training.export.onnx_file import write_onnx
from training.export.parity import runtime_scores
from training.export.test_rows import TestRows
from training.export.traced_model import trace
from training.inference.bundle import Bundle

TEMPLATES = Path(__file__).parent / "templates"
FORMATS: list[tuple[TableFormat, MlpFormat]] = [
    ("fp32", "fp32"),
    ("fp16", "fp32"),
    ("int8", "fp32"),
    ("int4", "fp32"),
    ("fp32", "bf16"),
    ("int8", "bf16"),
]
LARGE_BATCH = 8192
ROUNDS = {1: 40, 256: 40, LARGE_BATCH: 5}  # rows of a call -> rounds
CALLS = {1: 50, 256: 5, LARGE_BATCH: 1}  # calls of each model in a round
# Prints the resident bytes of a process that has scored 256 rows.
# Arguments: the model file, or "" for none; and the numbers of dense features and of ids.
MEASURE_MEMORY = """
import sys
from pathlib import Path
import numpy as np
import psutil
from serving.runtime import Runtime
path, num_dense, num_ids = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if path:
    runtime = Runtime(Path(path))
    runtime.scores(np.zeros((256, num_dense), np.float32), np.zeros((256, num_ids), np.int32))
print(psutil.Process().memory_info().rss)
"""


@dataclass(frozen=True)
class Compared:
    """A model in some formats.

    Attributes:
        tables: The format of the tables.
        mlps: The format of the linear layers.
        metrics: Its metrics on the test rows.
        num_bytes: The bytes of its model files.
        memory: The resident bytes of a process that has scored 256 rows with it, beyond those of a
            process that has loaded the runtime alone.
        p50_us: The median time of a call, in microseconds, by the rows of the call.
        p99_us: The 99th percentile.
    """

    tables: TableFormat
    mlps: MlpFormat
    metrics: Metrics
    num_bytes: int
    memory: int
    p50_us: dict[int, float]
    p99_us: dict[int, float]

    @property
    def name(self) -> str:
        """The formats in words."""
        return f"tables {self.tables}, linear layers {self.mlps}"

    @property
    def rows_per_s(self) -> float:
        """The rows of a second in large batches."""
        return LARGE_BATCH / self.p50_us[LARGE_BATCH] * 1e6


class _Exported(NamedTuple):
    """A model that was exported to a folder."""

    tables: TableFormat
    mlps: MlpFormat
    path: Path
    metrics: Metrics


def compare_formats(bundle: Bundle, rows: TestRows) -> list[Compared]:
    """Export a model in each format to a temporary folder, and measure it.

    Args:
        bundle: The model. A compressed one keeps its own formats, and is measured alone.
        rows: The test rows.
    """
    formats = FORMATS if bundle.manifest.compression is None else FORMATS[:1]
    total = len(formats) * len(rows.labels)
    with TemporaryDirectory() as scratch, Progress("export", total, None) as progress:
        exported = []
        for number, (tables, mlps) in enumerate(formats):
            directory = Path(scratch, str(number))
            directory.mkdir()
            model = with_formats(bundle.model, tables, mlps)
            write_onnx(trace(model, rows.dense.shape[1], rows.ids.shape[1]), directory)
            path = directory / MODEL_FILE
            metrics = rows.metrics(runtime_scores(Runtime(path).scores, rows))
            exported.append(_Exported(tables, mlps, path, metrics))
            progress.update(len(rows.labels))
        times = _measure_times([one.path for one in exported], rows)
        without_model = _resident_bytes("", rows)
        return [
            Compared(
                one.tables,
                one.mlps,
                one.metrics,
                sum(path.stat().st_size for path in one.path.parent.iterdir()),
                max(0, _resident_bytes(str(one.path), rows) - without_model),
                {size: float(np.median(us)) for size, us in of_model.items()},
                {size: float(np.percentile(us, 99)) for size, us in of_model.items()},
            )
            for one, of_model in zip(exported, times, strict=True)
        ]


def write_report(path: Path, manifest: ServingManifest, compared: Sequence[Compared]) -> None:
    """Write the report of a serving bundle.

    Args:
        path: The page.
        manifest: The manifest of the serving bundle.
        compared: The models that were compared; the first is the trained one.
    """
    environment = page_environment(TEMPLATES)
    environment.filters.update(mib=as_mib, change=change)
    html = environment.get_template("export.html.j2").render(
        manifest=manifest,
        compared=compared,
        large_batch=LARGE_BATCH,
    )
    with replaced(path) as scratch:
        scratch.write_text(html, encoding="utf-8")


def _measure_times(
    paths: Sequence[Path], rows: TestRows
) -> list[dict[int, npt.NDArray[np.float64]]]:
    """Measure calls of one thread, in microseconds, by the rows of a call.

    The models take turns, so that other work on the machine slows all of them down.
    """
    runtimes = [Runtime(path) for path in paths]
    times: list[dict[int, list[float]]] = [{size: [] for size in ROUNDS} for _ in paths]
    for size, num_rounds in ROUNDS.items():
        chosen = np.arange(size) % len(rows.labels)  # a short split is repeated
        dense, ids = rows.dense[chosen], rows.ids[chosen]
        for runtime in runtimes:
            runtime.scores(dense, ids)  # warms the caches
        for _ in range(num_rounds):
            for runtime, of_model in zip(runtimes, times, strict=True):
                for _ in range(CALLS[size]):
                    started_ns = time.perf_counter_ns()
                    runtime.scores(dense, ids)
                    of_model[size].append((time.perf_counter_ns() - started_ns) / 1e3)
    return [{size: np.array(us) for size, us in of_model.items()} for of_model in times]


def _resident_bytes(path: str, rows: TestRows) -> int:
    """Return the resident bytes of a fresh process with the runtime and a model, or none."""
    sizes = [str(rows.dense.shape[1]), str(rows.ids.shape[1])]
    command = [sys.executable, "-c", MEASURE_MEMORY, path, *sizes]
    return int(subprocess.run(command, capture_output=True, check=True).stdout)
