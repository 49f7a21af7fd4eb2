"""The number of threads follows the affinity mask, the control group's quota and the user."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.threads import POOL_SIZES, cpu_quotas, limit_threads, thread_limit, usable_cpus
from tests.factories.support import ROOT

ALL = len(os.sched_getaffinity(0))


def write_cgroups(root: Path, lines: str, files: dict[str, str]) -> Path:
    """Write /proc/self/cgroup and the files of the control groups below root."""
    for name, text in {"proc/self/cgroup": lines, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("lines", "files", "quotas"),
    [
        # Version 2: the quota of the group, and a smaller one of its parent.
        (
            "0::/a/b\n",
            {"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "150000 100000\n"},
            [4, 1.5],
        ),
        ("0::/a\n", {"a/cpu.max": "max 100000\n"}, []),
        # Inside a container the path is that of the host; the quota is at the root.
        ("0::/docker/0123\n", {"cpu.max": "100000 100000\n"}, [1]),
        # Version 1: the controllers share a folder, which may have the name of one of them.
        (
            "5:cpuset:/\n4:cpu,cpuacct:/a\n",
            {
                "cpu,cpuacct/a/cpu.cfs_quota_us": "50000",
                "cpu,cpuacct/a/cpu.cfs_period_us": "100000",
            },
            [0.5],
        ),
        (
            "4:cpu,cpuacct:/host\n0::/\n",
            {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"},
            [2],
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, []),
        ("1:memory:/\n", {}, []),
    ],
)
def test_the_quotas_of_control_groups(
    tmp_path: Path, lines: str, files: dict[str, str], quotas: list[float]
) -> None:
    inside = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    root = write_cgroups(tmp_path, lines, inside)
    assert cpu_quotas(root) == quotas
    assert usable_cpus(root) == max(1, min([ALL, *map(int, quotas)]))


def test_without_control_groups_the_affinity_mask_decides(tmp_path: Path) -> None:
    assert cpu_quotas(tmp_path) == []
    assert usable_cpus(tmp_path) == ALL
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    try:
        assert usable_cpus(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, cpus)


def test_a_control_group_of_one_cpu() -> None:
    """A real one, of version 1 or 2."""
    version_1 = Path("/sys/fs/cgroup/cpu")
    group = (version_1 if version_1.is_dir() else Path("/sys/fs/cgroup")) / "clickmill-test"
    try:
        group.mkdir()
        if version_1.is_dir():
            (group / "cpu.cfs_quota_us").write_text("100000")
        else:
            (group / "cpu.max").write_text("100000 100000")
    except OSError as error:
        if group.exists():
            group.rmdir()
        pytest.skip(f"this user cannot make a control group: {error}")
    code = f"""
import os
import subprocess
import sys
from pathlib import Path
from common.threads import usable_cpus
Path({str(group / "cgroup.procs")!r}).write_text(str(os.getpid()))
print(usable_cpus())
"""
    try:
        command = [sys.executable, "-c", code]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    finally:
        group.rmdir()
    assert run.stdout == "1\n"


def test_the_users_own_limits_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"OMP_NUM_THREADS": "7", "OMP_WAIT_POLICY": "passive"}
    limit_threads(environment)
    assert environment == {
        "OMP_NUM_THREADS": "7",
        "OMP_WAIT_POLICY": "passive",
        "POLARS_MAX_THREADS": str(usable_cpus()),
    }
    empty: dict[str, str] = {}
    limit_threads(empty)
    assert empty == {**dict.fromkeys(POOL_SIZES, str(usable_cpus())), "GOMP_SPINCOUNT": "5000"}
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert thread_limit() == 7
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")  # of nested loops; nobody sets it here
    assert thread_limit() == usable_cpus()
