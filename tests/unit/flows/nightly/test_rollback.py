"""A rollback accepts and refuses models, on finished runs of tests/factories/nightly_runs.py."""

from pathlib import Path

import pytest

from common.files import DataError
from flows.nightly.flow import reject_if_outdated
from flows.nightly.repository import NightlyRepository
from tests.factories.nightly_runs import NOW, finish_run, make_repository, make_run, record


@pytest.fixture
def repository(tmp_path: Path) -> NightlyRepository:
    return make_repository(tmp_path / "repository")


def test_a_rejected_model_is_refused_unless_anyway(repository: NightlyRepository) -> None:
    good = finish_run(repository, 1, "promoted", NOW)
    bad = finish_run(repository, 2, "rejected", NOW, ["auc: 0.1 worse than the champion"])
    with pytest.raises(
        DataError, match=r"v2.0.0 was rejected: auc: 0.1 worse than the champion; .* --anyway"
    ):
        repository.rollback("v2", None)
    assert repository.production_version() == good
    before, run = repository.rollback("v2", None, anyway=True)
    assert (before, run.version) == ("v1.0.0", bad)
    assert repository.production_version() == bad
    before, run = repository.rollback(None, "complaints")
    assert (before, run.version) == ("v2.0.0", good)
    assert repository.production_version() == good
    assert repository.assignments()[-1].reason.endswith(": complaints")


def test_a_run_without_a_model_is_refused_with_its_outcome(repository: NightlyRepository) -> None:
    finish_run(repository, 1, "promoted", NOW)
    record(repository, make_run(2, "rejected", version=None, reasons=["bad day"]))
    for name in ("night/0001", "v1", "v1.0.0", "dlrm@v1.0.0"):
        assert repository.find(name).number == 1
    for name in ("v2", "2", "night/0002", "v2.0.0"):
        with pytest.raises(
            DataError, match=r"made no model. Nightly run 2, day_2: rejected: bad day"
        ):
            repository.find(name)


def test_nothing_to_roll_back_to(repository: NightlyRepository) -> None:
    with pytest.raises(DataError, match=r"no model is in production yet"):
        repository.rollback(None, None)
    finish_run(repository, 1, "promoted", NOW)
    with pytest.raises(DataError, match=r"only v1.0.0 was ever in production"):
        repository.rollback(None, None)
    with pytest.raises(DataError, match=r"v1.0.0 is in production already"):
        repository.rollback("v1", None)


def test_a_run_whose_champion_was_replaced_meanwhile_promotes_nothing() -> None:
    run = make_run(2, "promoted", champion="0123456789ab")
    assert reject_if_outdated(run, "0123456789ab") is run
    outdated = reject_if_outdated(run, "ba9876543210")
    assert outdated.outcome == "rejected"
    (reason,) = outdated.reasons
    assert "ba9876543210 is in production now" in reason
    assert "compared with 0123456789ab" in reason
