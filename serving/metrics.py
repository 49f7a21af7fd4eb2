"""The metrics of the server, as Prometheus reads them at /metrics.

Each worker counts in files of its own, in a folder that the server makes and names in
PROMETHEUS_MULTIPROC_DIR; the worker that is asked adds up the numbers of all (the multiprocess mode
of prometheus-client). Without that variable the numbers are those of this process.
"""

import os
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from serving.options import METRICS_FOLDER

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
SCORES = tuple(each / 20 for each in range(1, 21))
RESERVED_BYTES = 1 << 20  # of each file of a worker: enough for the series of about 64 models
GAUGE_MODES = ("livesum", "livemax", "livemin")
DIFFERENCES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1)

CHAMPION, SHADOW, CANARY = "champion", "shadow", "canary"  # roles of models


def reserve_space() -> None:
    """Take the disk space of this worker's files, before they are mapped into its memory.

    A file without it has holes, and the kernel kills a process that writes into one on a full disk.

    Raises:
        OSError: There is no space.
    """
    folder = Path(os.environ[METRICS_FOLDER])
    for kind in ("counter", "histogram", *(f"gauge_{mode}" for mode in GAUGE_MODES)):
        with (folder / f"{kind}_{os.getpid()}.db").open("ab") as file:
            os.posix_fallocate(file.fileno(), 0, RESERVED_BYTES)


class Metrics:
    """All metrics. `model` is the name under which a model is served, `role` what it does there."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        counter = partial(Counter, registry=self._registry)
        gauge = partial(Gauge, registry=self._registry)
        histogram = partial(Histogram, registry=self._registry)
        self.requests = counter("clickmill_requests", "Requests.", ["model", "code"])
        self.rows = counter(
            "clickmill_rows",
            "Rows of the requests that were answered: scored or malformed.",
            ["model", "outcome"],
        )
        self.seconds = histogram(
            "clickmill_request_seconds",
            "Time from the head of a request to its answer.",
            ["model"],
            buckets=SECONDS,
        )
        self.batch_rows = histogram(
            "clickmill_batch_rows",
            "Rows of a forward pass.",
            buckets=ROWS,
        )
        self.at_work = gauge(
            "clickmill_requests_at_work",
            "Requests that are being received or scored.",
            multiprocess_mode="livesum",
        )
        self.info = gauge(
            "clickmill_model_info",
            "1 for the version of a model that answers.",
            ["model", "role", "version"],
            multiprocess_mode="livemax",
        )
        self.ready = gauge(
            "clickmill_model_ready",
            "1 if a model is loaded in every worker.",
            ["model", "role"],
            multiprocess_mode="livemin",
        )
        self.faults = gauge(
            "clickmill_model_fault",
            "1 if the path of a model leads to something that cannot be loaded.",
            ["model", "role"],
            multiprocess_mode="livemax",
        )
        self.loads = counter(
            "clickmill_model_loads",
            "Models that were loaded or refused.",
            ["model", "role", "outcome"],
        )
        self.scores = histogram(
            "clickmill_score",
            "Scores, whose mean is compared with the click rate (calibration).",
            ["model", "role"],
            buckets=SCORES,
        )
        self.shadow_difference = histogram(
            "clickmill_shadow_difference",
            "Absolute difference between a shadow's score of a row and the answer.",
            ["model"],
            buckets=DIFFERENCES,
        )
        self.challenger_requests = counter(
            "clickmill_challenger_requests",
            "Requests of a shadow or canary: scored, failed, or dropped as too many waited.",
            ["model", "role", "outcome"],
        )
        self.log_lines_dropped = counter(
            "clickmill_log_lines_dropped",
            "Lines of the access log that nobody took in time.",
        )
        self.logged_rows = counter(
            "clickmill_logged_rows",
            "Rows of the request log: written, or lost because the disk was full or too slow.",
            ["outcome"],
        )
        # The series of some labels: to look one up by prometheus-client takes 10 microseconds.
        self.requests_of = cache(self.requests.labels)
        self.rows_of = cache(self.rows.labels)
        self.seconds_of = cache(self.seconds.labels)
        self.scores_of = cache(self.scores.labels)

    def text(self) -> bytes:
        """Return all metrics of all workers in Prometheus' text format."""
        if METRICS_FOLDER not in os.environ:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def observe_all(histogram: Histogram, values_B: NDArray[np.float32]) -> None:
    """Observe many values at once: one call for each would take longer than to score them.

    Args:
        histogram: A histogram without labels, or that of some labels.
        values_B: The values.
    """
    bounds = histogram._upper_bounds
    if len(values_B) == 1:
        histogram.observe(float(values_B[0]))
        return
    buckets_B = np.searchsorted(np.asarray(bounds), values_B, side="left")
    for bucket, count in enumerate(np.bincount(buckets_B, minlength=len(bounds)).tolist()):
        if count:
            histogram._buckets[bucket].inc(count)
    histogram._sum.inc(float(values_B.sum(dtype=np.float64)))
