"""The train stage with parameter servers on Ray, whose processes are killed at random moments."""

import random
import re
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from common.bundle_layout import HISTORY, WEIGHTS
from tests.factories.ray_runs import make_short_training, run_processes, start, victims
from tests.factories.served_runs import files_of, with_servers, with_train
from tests.factories.support import wait_for

if not find_spec("ray"):
    pytest.skip("`make test-servers` installs Ray", allow_module_level=True)

pytestmark = pytest.mark.servers
NUM_KILLS = 20
PAUSE_S = (0.3, 3.0)  # between kills: shorter, or longer, than an actor takes to start
FAILURE = re.compile(r"clickmill: error: training with parameter servers failed: \w")


def test_kills_at_random_moments_end_with_a_model_or_a_named_failure(tmp_path: Path) -> None:
    params = with_train(
        make_short_training(tmp_path), batch_size=16, epochs=4, checkpoint_minutes=1e-6
    )
    params = with_servers(params, 2, 2, staleness=3)
    rng = random.Random(1)
    kills = models = 0
    deadline_s = time.monotonic() + 900
    while kills < NUM_KILLS or not models:
        assert time.monotonic() < deadline_s
        run = start(tmp_path, params)
        while True:
            try:
                output, _ = run.communicate(timeout=rng.uniform(*PAUSE_S))
                break
            except subprocess.TimeoutExpired:
                if kills < NUM_KILLS and (running := victims()):
                    rng.choice(running).kill()
                    kills += 1
        assert "Traceback" not in output, output
        wait_for(lambda: not run_processes(), timeout_s=30)
        if run.returncode:
            assert FAILURE.search(output), output
            continue
        models += 1
        history = files_of(tmp_path, [HISTORY, WEIGHTS])[HISTORY].decode().splitlines()
        assert history[-1].startswith("900,valid,0.")
        assert float(history[-1].split(",")[2]) < 0.75
