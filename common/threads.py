"""The number of threads that this process should use, and how idle threads wait.

Polars, pyarrow, NumPy and torch start their thread pools with the environment of the first import.
`limit_threads` must therefore run before they are imported.
"""

import os
from collections.abc import Iterator, MutableMapping
from pathlib import Path

# Read by OpenMP (torch, pyarrow) and by Polars.
POOL_SIZES = ("OMP_NUM_THREADS", "POLARS_MAX_THREADS")
# How often a thread of GCC's OpenMP that has no work looks for new work before it sleeps: about
# 0.1 ms. The default, 300,000, is as fast on idle cores. On busy cores such a thread takes the time
# that the others need: beside two busy processes, training took 8 to 30 times as long as alone, and
# with this value about 3 times as long (benchmarks/results/training-step.md#threads).
SPIN_COUNT = 5000
WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def usable_cpus(filesystem: Path = Path("/")) -> int:
    """Return the number of CPUs that this process may use at the same time, at least 1.

    It is the number of CPUs of the affinity mask, or the whole CPUs in the smallest quota of the
    control groups of this process (cgroup versions 1 and 2) if that is less. A container with
    `--cpus 1.5` may use 1.

    Args:
        filesystem: The root of /proc and /sys, for tests.
    """
    return max(1, min([len(os.sched_getaffinity(0)), *map(int, cpu_quotas(filesystem))]))


def cpu_quotas(filesystem: Path = Path("/")) -> list[float]:
    """Return the CPU quotas of the control groups of this process and of their parents, in CPUs.

    Args:
        filesystem: The root of /proc and /sys, for tests.
    """
    return [quota for folder in _cgroups(filesystem) if (quota := _quota_of(folder)) is not None]


def thread_limit() -> int:
    """Return the number of threads that the user has set by OMP_NUM_THREADS, else `usable_cpus`."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdecimal() and int(text) > 0 else usable_cpus()


def limit_threads(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set the thread pools of this process and its children to `usable_cpus` and SPIN_COUNT.

    Values that the user has set are kept.
    """
    for name in POOL_SIZES:
        environment.setdefault(name, str(usable_cpus()))
    if not any(name in environment for name in WAITING):
        environment["GOMP_SPINCOUNT"] = str(SPIN_COUNT)


def _cgroups(filesystem: Path) -> Iterator[Path]:
    """Yield the folders of the control groups of this process and of their parents.

    A line of /proc/self/cgroup is `number:controllers:path`. Version 2 has number 0 and no
    controllers. Inside a container the path may be that of the host, which is not visible there;
    the container's own group is then the root of the mounted tree, which is yielded too.
    """
    mounts = filesystem / "sys/fs/cgroup"
    try:
        lines = (filesystem / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            tree = mounts
        elif "cpu" in controllers.split(","):
            # A mount may have the name of one of the controllers that share it.
            tree = mounts / (controllers if (mounts / controllers).is_dir() else "cpu")
        else:
            continue
        group = tree / path.lstrip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(tree))


def _quota_of(cgroup: Path) -> float | None:
    """Return the CPU quota of one control group; None if it has none."""
    try:
        if (cgroup / "cpu.max").exists():
            quota, period = (cgroup / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota = (cgroup / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (cgroup / "cpu.cfs_period_us").read_text(encoding="ascii").strip()
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError):
        return None
