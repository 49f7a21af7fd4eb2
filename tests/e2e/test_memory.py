"""Collect, ingest and features of a long log stay within bounded memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.factories.support import ROOT

pytestmark = pytest.mark.slow

NUM_ROWS = 4_000_000
LIMIT_MIB = 3 * 1024

STAGE = """
import json, resource, sys
from pathlib import Path
from common.logs import configure_logging
from features.dataset.stage import build_features
from features.collect.stage import collect
from features.ingest.stage import ingest
from tests.factories.support import make_params
configure_logging()
stage = {"collect": collect, "ingest": ingest, "features": build_features}[sys.argv[1]]
stage(make_params(sample__num_rows=int(sys.argv[2])), Path(sys.argv[3]))
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10))
"""


def test_four_million_rows(tmp_path: Path) -> None:
    for stage in ("collect", "ingest", "features"):
        command = [sys.executable, "-c", STAGE, stage, str(NUM_ROWS), str(tmp_path)]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        peak_mib = json.loads(run.stdout.splitlines()[-1])
        print(f"{stage}: at most {peak_mib:,} MiB resident, {run.stdout.splitlines()[-2]}")
        assert peak_mib < LIMIT_MIB
