"""The results of a run, and damage to the files that they are read from."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.artifact import write_manifest
from common.bundle_layout import MANIFEST, MODEL
from common.files import DataError, write_json
from common.layout import EVALUATION, FEATURES
from flows.results import Results
from tests.fault.test_fuzz_nightly import check_refusal, damaged

TIMING, BUNDLE = Path("runs/timings/train.json"), MODEL / MANIFEST
CONTENTS: dict[Path, Any] = {
    FEATURES / "data.json": {"num_rows": 5, "num_bad_rows": 1},
    EVALUATION / "metrics.json": {"valid": {"auc": 0.7}, "test": {"auc": None}},
    TIMING: {"rows_per_s": 1000.5},
    BUNDLE: {"operators": {"lookup": "compiled"}},
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with the files that the results are read from."""
    for path, value in CONTENTS.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        write_json(tmp_path / path, value)
    for folder in (FEATURES, EVALUATION):
        write_manifest(tmp_path / folder, {})
    return tmp_path


def test_the_figures_are_those_of_the_files(root: Path) -> None:
    results = Results.read(root)
    assert (results.num_rows, results.samples_per_s) == (5, 1000.5)
    assert results.operators == {"lookup": "compiled"}
    (root / TIMING).unlink()
    assert Results.read(root).samples_per_s is None


@pytest.mark.parametrize("path", [TIMING, BUNDLE], ids=str)
def test_odd_values_are_refused_in_one_line(root: Path, path: Path) -> None:
    num_refused = 0
    for _, value in damaged(CONTENTS[path]):
        (root / path).write_text(json.dumps(value))
        try:
            assert Results.read(root).facts
        except DataError as error:
            check_refusal(error, str(root / path), "run the train stage again")
            num_refused += 1
    assert num_refused > 10
