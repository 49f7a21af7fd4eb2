"""The record of a nightly run: written, read again, and read as an earlier version wrote it."""

import json
from pathlib import Path

import pytest

from common.files import DataError
from flows.nightly.record import RECORD, NightlyRun, read_record
from tests.factories.nightly_runs import make_run
from tests.factories.served_figures import make_served


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = make_run(3, "promoted", log_changes={"late": ["day_1"]}, newest_day={"name": "day_3"})
    run.write(tmp_path)
    assert NightlyRun.model_validate_json((tmp_path / RECORD).read_text()) == run


def test_a_field_of_a_later_version_is_ignored(tmp_path: Path) -> None:
    make_run(3, "promoted").write(tmp_path)
    record = json.loads((tmp_path / RECORD).read_text()) | {"unknown": 1}
    assert NightlyRun.model_validate(record) == make_run(3, "promoted")


def test_a_record_of_an_earlier_version_is_read() -> None:
    """Earlier versions called a rejection "kept", and used other names for some fields."""
    record = {
        "number": 7,
        "until": "day_7",
        "outcome": "kept",
        "reasons": ["auc: worse"],
        "log": {"day_7": "ab"},
        "arrivals": {"new": ["day_7"], "gone": ["day_1"], "twice": ["day_6 (as day_5)"]},
        "base": 6,
        "version": "0" * 12,
        "champion": "1" * 12,
        "decision": {"checks": [{"name": "auc", "passed": False, "found": "worse"}]},
        "warnings": [],
        "started": "2026-03-01T02:00:00.000+00:00",
        "seconds": 60.0,
        "tasks": {"train": 30.0},
        "data": {"name": "day_7"},
    }
    run = NightlyRun.model_validate_json(json.dumps(record))
    assert run.outcome == "rejected"
    assert run.headline == "Nightly run 7, day_7: rejected: auc: worse"
    assert run.log_files == {"day_7": "ab"}
    assert run.log_changes == {
        "new": ["day_7"],
        "removed": ["day_1"],
        "duplicate": ["day_6 (as day_5)"],
    }
    assert run.decision == {"checks": [{"name": "auc", "passed": False, "message": "worse"}]}
    assert run.stage_seconds == {"train": 30.0}
    assert run.newest_day == {"name": "day_7"}
    assert run.started.isoformat() == "2026-03-01T02:00:00+00:00"


def test_served_traffic_is_read_again_and_may_be_absent(tmp_path: Path) -> None:
    run = make_run(3, "promoted", version=None, served=make_served(ratio=1.25))
    run.write(tmp_path)
    again = read_record((tmp_path / RECORD).read_bytes(), "night/0003")
    assert again == run
    figures = again.served_figures
    assert figures
    assert figures.main
    assert figures.main.metrics
    assert figures.main.metrics.calibration_ratio == 1.25
    record = json.loads((tmp_path / RECORD).read_text())
    del record["served"]  # as runs before it was there
    before = read_record(json.dumps(record).encode(), "night/0003")
    assert (before.served, before.served_figures) == (None, None)
    record["served"] = {"versions": [{"model": 1}]}
    with pytest.raises(DataError, match=r"night/0003:night.json: served"):
        read_record(json.dumps(record).encode(), "night/0003")
