"""The time and the memory of a model's forward pass, measured alone, in a process of its own.

These figures differ from run to run and between machines, so they are neither an objective of a
search nor part of a DVC artifact.
"""

import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from common.checked_json import parse_checked_json, write_checked_json
from common.config.base import Strict
from common.config.loading import check_json
from common.logs import get_logger
from training.loop.batches import Rows
from training.models.dlrm import DLRM
from training.tune.processes import start_process
from training.tune.study_files import LATENCY
from training.tune.trial import Task, prepare_without_checkpoints

ONE_ROW_REPEATS, BATCH_REPEATS, WARM_UP = 300, 20, 10
REMEDY = "remove it to measure again"

log = get_logger("tune")


class Latency(Strict):
    """The measured costs of a model.

    Attributes:
        trial: The number of the trial; None for the present params.yaml.
        one_row_us: Median time of a row alone, in microseconds.
        one_row_p99_us: The 99th percentile of it.
        rows_per_s: Rows per second in a batch of all validation rows, at most 8,192.
        resident_bytes: Growth of the process's resident memory by the model and its first batch.
    """

    trial: int | None
    one_row_us: float
    one_row_p99_us: float
    rows_per_s: float
    resident_bytes: int


class Latencies(Strict):
    """The file latency.json.

    Attributes:
        models: The models that were measured.
        sha256: The hash of the contents (common/checked_json.py).
    """

    models: list[Latency]
    sha256: str | None = None


def measure(folder: Path, tasks: Sequence[tuple[int | None, Task]]) -> list[Latency]:
    """Measure models one after another, or read what was measured for the same ones.

    Args:
        folder: The study's folder.
        tasks: The number of each trial and its task.
    """
    path = folder / LATENCY
    values = parse_checked_json(path.read_bytes()) if path.is_file() else None
    if values is not None:
        known = check_json(Latencies, values, path, REMEDY).models
        if [one.trial for one in known] == [number for number, _ in tasks]:
            return known
    measured = [_in_process(number, task) for number, task in tasks]
    models = [one for one in measured if one is not None]
    write_checked_json(path, Latencies(models=models).model_dump(mode="json"))
    return models


def _in_process(number: int | None, task: Task) -> Latency | None:
    """Measure a model in a process of its own; None if that died, for lack of memory perhaps."""
    process, pipe = start_process(_work, number, task)
    try:
        answer = pipe.recv()
    except EOFError:
        process.join()
        log.warning(
            f"{task.title}: the process that measured its latency ended with exit code"
            f" {process.exitcode}; the report has no latency of it"
        )
        return None
    finally:
        process.kill()
        process.join()
        pipe.close()
    assert isinstance(answer, Latency)
    return answer


def _work(pipe: Connection, number: int | None, task: Task) -> None:
    pipe.send(_measure(number, task))


def _measure(number: int | None, task: Task) -> Latency:
    """Build the task's model and time its forward pass, on validation rows and with one thread."""
    process = psutil.Process()
    before = process.memory_info().rss
    run = prepare_without_checkpoints(task.params, task.root)
    model = run.module.model.cpu().eval()
    torch.set_num_threads(1)
    rows = next(iter(run.data.val_dataloader())).rows
    one_us = 1e6 * _seconds(model, rows.part(0, 1), ONE_ROW_REPEATS)
    batch_s = _seconds(model, rows, BATCH_REPEATS)
    return Latency(
        trial=number,
        one_row_us=float(np.median(one_us)),
        one_row_p99_us=float(np.quantile(one_us, 0.99)),
        rows_per_s=len(rows.labels) / float(np.median(batch_s)),
        resident_bytes=max(0, process.memory_info().rss - before),
    )


@torch.inference_mode()
def _seconds(model: DLRM, rows: Rows, repeats: int) -> NDArray[np.float64]:
    """Return the seconds of each forward pass, without the first ones, which warm up."""
    seconds = np.empty(repeats + WARM_UP)
    for k in range(len(seconds)):
        started = time.perf_counter()
        model(rows.dense, rows.ids, rows.bags)
        seconds[k] = time.perf_counter() - started
    return seconds[WARM_UP:]
