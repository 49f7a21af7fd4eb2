"""Features of a small log, and parameters of a training of two epochs on them."""

from pathlib import Path

import pytest

from common.config.params import Params
from tests.factories.models import log_lines, make_project
from tests.factories.served_runs import with_train

NUM_ROWS = 2100


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    """A folder with features, and parameters with averages, resets and two epochs."""
    root = tmp_path_factory.mktemp("project")
    params = make_project(root, log_lines(NUM_ROWS, seed=1))
    return root, with_train(params, epochs=2, validations=4, logger="none", threads=1)
