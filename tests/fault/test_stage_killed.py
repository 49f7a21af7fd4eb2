"""Ingest and features are killed at random moments, or write to a full disk.

Finished outputs stay complete, and the next run gives the outputs of an undisturbed run.
"""

import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from common.config.params import Params
from common.layout import FEATURES, PARQUET
from common.progress import Progress
from features.collect.stage import collect
from features.dataset.stage import build_features
from features.ingest.stage import ingest
from features.sample.generate import write_sample
from tests.factories.support import CRITEO, ROOT, make_params

pytestmark = pytest.mark.slow

NUM_DAYS, NUM_ROWS = 5, 100_000
NUM_KILLS, SEED = 8, 3
MAX_DELAY_S = 0.6  # about the time that both stages take
RESTART_SHARE = 0.3  # share of the kills that are followed by a start from the first state

STAGES = """
import sys
from pathlib import Path
from features.dataset.stage import build_features
from features.ingest.stage import ingest
from common.config.params import Params
params, root = Params.model_validate_json(sys.argv[1]), Path(sys.argv[2])
print("ready", flush=True)
ingest(params, root)
build_features(params, root)
"""


class Before(NamedTuple):
    """The state that each test begins with, and the parameters of all stages."""

    root: Path
    params: Params

    def copy(self, root: Path) -> Path:
        """Copy the state to a root, and return the root."""
        shutil.copytree(self.root, root)
        return root


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Before:
    """All stages have run on the first days. The last two days are collected but not ingested."""
    root = tmp_path_factory.mktemp("before")
    with Progress("sample", None, None) as progress:
        write_sample(root / "log.tsv", NUM_ROWS, NUM_DAYS, 1, CRITEO, progress)
    lines = (root / "log.tsv").read_text().splitlines(keepends=True)
    (root / "clicks").mkdir()
    params = make_params(data__source="clicks", features__fit_days=2)
    for day in range(NUM_DAYS):
        (root / "clicks" / f"day_{day}.tsv").write_text(
            "".join(lines[day * NUM_ROWS // NUM_DAYS : (day + 1) * NUM_ROWS // NUM_DAYS])
        )
        if day == NUM_DAYS - 3:
            collect(params, root)
            run_stages(params, root)
    collect(params, root)
    return Before(root, params)


def run_stages(params: Params, root: Path) -> None:
    """Run ingest and features in this process."""
    ingest(params, root)
    build_features(params, root)


def start_stages(
    params: Params, root: Path, preexec_fn: Callable[[], None] | None = None
) -> "subprocess.Popen[str]":
    """Start ingest and features in a process; return when it has imported everything."""
    command = [sys.executable, "-c", STAGES, params.model_dump_json(by_alias=True), str(root)]
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=preexec_fn,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def content(root: Path) -> dict[str, bytes]:
    """Return the files of root/artifacts, path -> bytes."""
    top = root / "artifacts"
    return {
        path.relative_to(top).as_posix(): path.read_bytes()
        for path in top.rglob("*")
        if path.is_file()
    }


def test_a_run_after_random_kills_gives_the_files_of_an_undisturbed_run(
    before: Before, tmp_path: Path
) -> None:
    undisturbed, root = before.copy(tmp_path / "undisturbed"), before.copy(tmp_path / "killed")
    run_stages(before.params, undisturbed)
    rng = random.Random(SEED)
    num_kills = 0
    while num_kills < NUM_KILLS:
        child = start_stages(before.params, root)
        try:
            child.communicate(timeout=rng.uniform(0, MAX_DELAY_S))
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            num_kills += 1
        if rng.random() < RESTART_SHARE:
            shutil.rmtree(root)
            before.copy(root)
    run_stages(before.params, root)
    assert content(root) == content(undisturbed)


@pytest.mark.parametrize("limit_kb", [8, 300, 700])
def test_a_full_disk_does_not_damage_finished_outputs(
    before: Before, tmp_path: Path, limit_kb: int
) -> None:
    """The size of files is limited, so a write fails as on a full disk."""
    root = before.copy(tmp_path / "full")
    whole = content(root)

    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_kb << 10, limit_kb << 10))

    child = start_stages(before.params, root, limit_file_size)
    output, _ = child.communicate()
    assert child.returncode != 0
    assert "File too large" in output
    after = content(root)
    assert {path for path in after if path.startswith(FEATURES.name)} == {
        path for path in whole if path.startswith(FEATURES.name)
    }
    assert all(
        after[path] == whole[path] for path in whole if path.startswith((FEATURES.name, "raw"))
    )
    assert not list((root / "artifacts").rglob(".*.tmp"))
    undisturbed = before.copy(tmp_path / "undisturbed")
    for top in (undisturbed, root):
        run_stages(before.params, top)
    assert content(root) == content(undisturbed)
    assert (root / PARQUET / "manifest.json").exists()
