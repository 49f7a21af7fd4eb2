"""Parameter servers without staleness give the bits of a single device."""

from pathlib import Path

import pytest

from common.config.params import Params
from tests.factories.models import log_lines, make_project
from tests.factories.served_runs import files_of, train_on_threads, with_servers
from training.stage import train

NUM_ROWS = 2100


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    """Features, and parameters with averages, resets and two epochs."""
    root = tmp_path_factory.mktemp("project")
    params = make_project(root, log_lines(NUM_ROWS, seed=1))
    changes = {"epochs": 2, "validations": 4, "logger": "none", "threads": 1}
    return root, Params.model_validate(
        params.model_dump(by_alias=True) | {"train": params.train.model_dump() | changes}
    )


@pytest.mark.parametrize("servers", [1, 2, 3])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_weights_and_curve_are_those_of_a_single_device(
    project: tuple[Path, Params], servers: int, workers: int
) -> None:
    root, params = project
    train(params, root)
    expected = files_of(root)
    train_on_threads(with_servers(params, servers, workers), root)
    assert files_of(root) == expected
