"""Ingest and features, killed at random moments or out of disk: what was there stays whole, and the next run ends where any would."""

import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common.progress import Progress
from features.collect.stage import collect
from features.encode.stage import FEATURES, build_features
from features.ingest.stage import PARQUET, ingest
from features.sample.generate import write_sample
from tests.factories.support import CRITEO, ROOT, make_params

NUM_DAYS, NUM_ROWS = 5, 100_000
NUM_KILLS, SEED = 8, 3
LATEST_S = 0.6  # about what both stages take

STAGES = """
import sys
from pathlib import Path
from features.encode.stage import build_features
from features.ingest.stage import ingest
from common.config.params import Params
params, root = Params.model_validate_json(sys.argv[1]), Path(sys.argv[2])
print("ready", flush=True)
ingest(params, root)
build_features(params, root)
"""


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """All stages done on the first days; the last two days are in the log, and collected, since."""
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
            for stage in (collect, ingest, build_features):
                stage(params, root)
    collect(params, root)
    return root, params


def content(root: Path) -> dict[str, bytes]:
    top = root / "artifacts"
    return {
        path.relative_to(top).as_posix(): path.read_bytes()
        for path in top.rglob("*")
        if path.is_file()
    }


def start(params, root, **options):
    command = [sys.executable, "-c", STAGES, params.model_dump_json(by_alias=True), str(root)]
    child = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def copied(before, path):
    shutil.copytree(before[0], path)
    return path


def test_killed_at_random_moments(before, tmp_path):
    params = before[1]
    undisturbed, root = (
        copied(before, tmp_path / "undisturbed"),
        copied(before, tmp_path / "killed"),
    )
    for stage in (ingest, build_features):
        stage(params, undisturbed)
    moments = random.Random(SEED)
    num_kills = 0
    while num_kills < NUM_KILLS:
        child = start(params, root)
        try:
            child.communicate(timeout=moments.uniform(0, LATEST_S))
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            num_kills += 1
        if (
            moments.random() < 0.3
        ):  # and from the beginning, not only from where the last one came to
            shutil.rmtree(root)
            copied(before, root)
    for stage in (ingest, build_features):
        stage(params, root)
    assert content(root) == content(undisturbed)


@pytest.mark.parametrize("limit_kb", [8, 300, 700])
def test_a_full_disk_leaves_what_was_there(before, tmp_path, limit_kb):
    """No file may grow beyond the limit, which a write meets as it would meet a full disk."""
    params, root = before[1], copied(before, tmp_path / "full")
    whole = content(root)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_kb << 10, limit_kb << 10))

    child = start(params, root, preexec_fn=limit)
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
    undisturbed = copied(before, tmp_path / "undisturbed")
    for top in (undisturbed, root):
        for stage in (ingest, build_features):
            stage(params, top)
    assert content(root) == content(undisturbed)
    assert (root / PARQUET / "manifest.json").exists()
