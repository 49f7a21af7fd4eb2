"""A disk that is full at a checkpoint: one line, nothing half-written, and the run can resume."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from common.bundle_layout import MODEL
from common.config.params import Params
from common.full_disk import FullDiskError
from common.logs import configure_logging
from tests.factories.features import training_params, write_features
from tests.factories.ranks import PROCESSES
from tests.factories.support import ROOT
from training import stage

pytestmark = pytest.mark.slow

DAYS = {"train": [200, 121], "valid": [101], "test": [50]}
RUN: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 40,
    "checkpoint_minutes": 1e-9,
    "logger": "none",
    "weight_averaging": True,
}
KIB = 1024
FULL = 28  # exit code


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_features(tmp_path, DAYS)
    (tmp_path / "runs").mkdir()
    return tmp_path


@pytest.fixture
def limit_disk(root: Path) -> Iterator[Callable[[int], None]]:
    """A function that limits the file system of root/runs to a number of KiB."""
    runs = str(root / "runs")
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "tmpfs", runs]).returncode:
        pytest.skip("only root can mount a file system of a known size")

    def limit(kib: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={kib}k", runs], check=True)

    yield limit
    subprocess.run(["umount", runs], check=True)


def train(params: Params, root: Path, limit: int | None = None) -> tuple[int, str]:
    """Train in a process, whose files are at most `limit` bytes; return exit code and output."""
    process = PROCESSES.Process(target=run, args=(params, root, limit))
    process.start()
    process.join(120)
    return process.exitcode or 0, (root / "output.txt").read_text()


def run(params: Params, root: Path, limit: int | None) -> None:
    """Train in this process."""
    with (root / "output.txt").open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    configure_logging()
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        stage.train(params, root)
    except FullDiskError as error:
        print(error, flush=True)
        os._exit(FULL)


def model_of(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((root / MODEL).glob("*.*"))}


def leftovers(root: Path) -> list[Path]:
    return [*root.rglob("*.tmp"), *root.glob("runs/nodes")]


def test_a_full_disk_at_any_checkpoint(root: Path, limit_disk: Callable[[int], None]) -> None:
    params = training_params(**RUN)
    limit_disk(1 << 20)
    assert train(params, root)[0] == 0
    expected = model_of(root)
    num_full = 0
    for kib in range(16, 1000, 80):
        limit_disk(kib)
        code, output = train(params, root)
        assert "Traceback" not in output
        assert not leftovers(root)
        if code == 0:
            break
        num_full += 1
        assert code == FULL, output
        assert output.splitlines()[-1].startswith(f"No space left on device: {root / 'runs'}")
    assert num_full >= 2
    assert model_of(root) == expected


def test_the_last_complete_checkpoint_is_resumed(
    root: Path, limit_disk: Callable[[int], None]
) -> None:
    params = training_params(**RUN)
    limit_disk(1 << 20)
    assert train(params, root)[0] == 0
    expected = model_of(root)
    # As much as a checkpoint needs, and the weights with it, but not a second one beside it.
    for kib in range(160, 4000, 20):
        limit_disk(kib)
        code, output = train(params, root)
        if list(root.glob("runs/checkpoints/*/last.pt")):
            break
    assert code == FULL, output
    assert not leftovers(root)
    limit_disk(1 << 20)
    code, output = train(params, root)
    assert (code, "resumes at step" in output) == (0, True), output
    assert model_of(root) == expected


@pytest.mark.parametrize("parallel", ["data", "hybrid"])
def test_a_full_disk_on_two_ranks(
    root: Path, limit_disk: Callable[[int], None], parallel: str
) -> None:
    if parallel != "data":
        pytest.importorskip("torchrec", reason="TorchRec is not installed (make setup)")
    params = training_params(devices=2, parallel=parallel, **RUN)
    for kib in (24, 140):
        limit_disk(kib)
        code, output = train(params, root)
        assert code == FULL, output
        assert output.splitlines()[-1].startswith(f"No space left on device: {root / 'runs'}")
        assert "Traceback" not in output
        assert not leftovers(root)
    limit_disk(1 << 20)
    code, output = train(params, root, limit=4 * KIB)
    assert code == FULL, output
    assert "File too large: " in output.splitlines()[-1]
    limit_disk(1 << 20)
    code, output = train(params, root)
    assert code == 0, output
    assert (root / MODEL).exists()


def test_shared_memory_is_not_needed(root: Path) -> None:
    """Containers have 64 KiB of it or less. Here it is full before two ranks train."""
    fill = "mount -t tmpfs -o size=64k tmpfs /dev/shm && head -c 64K /dev/zero > /dev/shm/full"
    unshare = ["unshare", "-m", "sh", "-c", f'{fill} && exec "$@"', "sh"]
    if os.geteuid() or subprocess.run([*unshare, "true"], check=False).returncode:
        pytest.skip("only root can mount another /dev/shm")
    params = training_params(devices=2, parallel="data", **RUN)
    code = (
        "import sys; from pathlib import Path; from common.config.params import Params;"
        " from training.stage import train;"
        " train(Params.model_validate_json(sys.argv[1]), Path(sys.argv[2]))"
    )
    arguments = [params.model_dump_json(by_alias=True), str(root)]
    subprocess.run([*unshare, sys.executable, "-c", code, *arguments], cwd=ROOT, check=True)
    assert (root / MODEL).exists()
