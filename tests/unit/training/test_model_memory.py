"""No process needs memory for whole tables: not to write a bundle of servers, and not to load it."""

import json
import subprocess
import sys

import pytest

from tests.factories.support import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux measures the memory")

NUM_ROWS, DIM = 400_000, 64
TABLES_MIB = 2 * NUM_ROWS * 4 * DIM / (1 << 20)

SCRIPT = """
import json, sys
from argparse import Namespace
from pathlib import Path
from benchmarks.rank_memory import Peaks, make_params, write_features
from tests.factories.served_runs import train_on_threads, with_servers
from training import stage
from training.inference import bundle
from training.models import embedding_tables

root, num_rows, dim = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
embedding_tables.BLOCK_BYTES = 4 << 20
write_features(root, num_rows)
params = with_servers(make_params(Namespace(ranks=1, dim=dim)), servers=2, workers=1)
writing, loading = Peaks(), Peaks()
writing.watch(stage, "export", "export")
train_on_threads(params, root)
loading.watch(bundle, "load_bundle", "load")
bundle.load_bundle(root / "artifacts/model")
print(json.dumps(writing.of_moments | loading.of_moments))
"""


@pytest.fixture(scope="module")
def peaks_mib(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """The peaks of the memory of a process that writes a bundle and loads it."""
    root = tmp_path_factory.mktemp("large")
    arguments = [str(root), str(NUM_ROWS), str(DIM)]
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    size_mib = (root / "artifacts/model/weights.safetensors").stat().st_size / (1 << 20)
    assert TABLES_MIB < size_mib < 1.1 * TABLES_MIB
    peaks: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return peaks


def test_the_driver_of_servers_makes_no_whole_table(peaks_mib: dict[str, float]) -> None:
    assert peaks_mib["export"] < TABLES_MIB / 4


def test_a_bundle_is_loaded_by_mapping_its_file(peaks_mib: dict[str, float]) -> None:
    """The pages of the mapped file count, which every value is checked in; nothing else does."""
    assert TABLES_MIB / 2 < peaks_mib["load"] < 1.25 * TABLES_MIB
