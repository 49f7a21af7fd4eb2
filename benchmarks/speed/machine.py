"""The machine of a benchmark: its description, its fastest matrix product, its memory bandwidth."""

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

SIZES = (1024, 2048)  # of square matrices
TRIES = 5
COPY_BYTES = 1 << 29


def describe(threads: int, device: str) -> str:
    """Return one line with device, cores, memory and versions."""
    name = torch.cuda.get_device_name() if device == "cuda" else _cpu_name()
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{name}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores, {threads} threads,"
        f" {memory:.0f} GiB; {platform.system()}, Python {platform.python_version()},"
        f" torch {torch.__version__}"
    )


def product_peak(dtype: torch.dtype, device: str) -> float:
    """Return the FLOP/s of torch's fastest large matrix product here, on a CPU also oneDNN's."""

    def best_of(product: Callable[[torch.Tensor, torch.Tensor], object], size: int) -> float:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        return 2 * size**3 / _fastest(lambda: product(a, b), device)

    products = [torch.mm]
    if device == "cpu" and torch.backends.mkldnn.is_available():
        products.append(lambda a, b: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""))
    return max(best_of(product, size) for product in products for size in SIZES)


def copy_bandwidth(device: str) -> float:
    """Return the bytes that a large copy reads and writes per second."""
    source = torch.zeros(COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / _fastest(lambda: target.copy_(source), device)


def _fastest(work: Callable[[], object], device: str) -> float:
    seconds = []
    for _ in range(TRIES):
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
