"""The counts that a run with parameter servers reports."""

from pathlib import Path

import pytest

from common.bundle_layout import MODEL, version_of
from common.config.params import Params
from common.files import DataError
from common.layout import EVALUATION
from tests.factories.served_runs import Fault, FaultyEngine, with_servers, with_train
from training.evaluation.stage import evaluate
from training.loop.checkpoint import checkpoints_of
from training.servers.traffic import TRAFFIC, Traffic, read_traffic, write_traffic
from training.stage import fit_on_servers, train

NUM_STEPS = 2 * 57


@pytest.fixture(scope="module")
def trained(project: tuple[Path, Params]) -> tuple[Path, Params, Traffic]:
    """A project after a training in which a worker has ended, and what it has sent."""
    root, params = project
    params = with_servers(with_train(params, batch_size=32), 2, 2, staleness=3)
    engine = FaultyEngine([Fault("worker", "table server 1", "pull", 9, "caller", True)])
    traffic = fit_on_servers(params, root, checkpoints_of(params, "cpu", root), engine)
    write_traffic(root, traffic)
    return root, params, traffic


def test_steps_bytes_and_lost_workers_are_counted(trained: tuple[Path, Params, Traffic]) -> None:
    _, _, traffic = trained
    assert traffic.num_steps == sum(traffic.staleness.values()) == NUM_STEPS
    assert traffic.lost == {"worker": 1}
    # each step has distinct rows of 13 floats, with 8 bytes for the place of each, in both ways
    assert traffic.num_bytes["pulled"] == traffic.num_bytes["pushed"]
    assert traffic.num_bytes["pulled"] % (4 * 13 + 8) == 0
    rows_of_step = traffic.num_bytes["pulled"] / (4 * 13 + 8) / NUM_STEPS
    assert 26 < rows_of_step < 26 * 32
    assert traffic.num_bytes["dense"] % (NUM_STEPS * 2 * 4) == 0
    lines = list(traffic.lines())
    assert lines[0].startswith("parameter servers: 114 steps; in a step 0.0")
    assert lines[-1] == "ended and replaced: worker: 1"


def test_the_report_shows_them_for_the_model_that_they_belong_to(
    trained: tuple[Path, Params, Traffic],
) -> None:
    root, params, _ = trained
    found = read_traffic(root, version_of(root / MODEL))
    assert found is not None
    assert found.num_steps == NUM_STEPS
    assert read_traffic(root, "another") is None
    evaluate(params, root)
    page = (root / EVALUATION / "report.html").read_text()
    assert "Parameter servers <span>114 steps" in page
    assert "Ended and replaced: 1 x worker." in page
    train(with_train(params, parallel="hybrid", epochs=1), root)
    evaluate(params, root)
    assert "Parameter servers <span>" not in (root / EVALUATION / "report.html").read_text()


def test_a_damaged_file_is_named(trained: tuple[Path, Params, Traffic], tmp_path: Path) -> None:
    (tmp_path / TRAFFIC).parent.mkdir()
    (tmp_path / TRAFFIC).write_text('{"model": 1}')
    with pytest.raises(DataError, match=r"servers\.json.*model.*remove it"):
        read_traffic(tmp_path, "1")
