"""The data gate names the day and the column of a fault, and reports nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.files import DataError, read_json
from common.layout import FEATURES
from features.quality.gate import FIGURES
from tests.factories.support import CRITEO, make_features, make_params, real_log

Rows = dict[str, np.ndarray]  # the texts of each column
Fault = Callable[[Rows], Rows]  # returns the changed columns

NUM_DAYS, ROWS = 5, 2000
DENSE, CATEGORY = CRITEO.dense[2], CRITEO.categorical[4]


def draw(day: int) -> Rows:
    rng = np.random.default_rng(day)
    rows = {CRITEO.label: (rng.random(ROWS) < 0.25).astype(int).astype(str)}
    rows |= {name: rng.lognormal(3, 2, ROWS).astype(int).astype(str) for name in CRITEO.dense}
    for name in CRITEO.categorical:
        values = np.array([f"{value % 500:08x}" for value in rng.zipf(1.3, ROWS)])
        rows[name] = np.where(rng.random(ROWS) < 0.1, "", values)
    return rows


def build(
    root: Path, day: int | None = None, fault: Fault | None = None, **changes: Any
) -> dict[str, Any]:
    """Make the features of a log with one file for each day, and return data.json.

    Args:
        root: The project folder.
        day: The day with the fault; None for no fault.
        fault: The fault.
        changes: Changed parameters, as for `make_params`.
    """
    (root / "logs_in").mkdir(exist_ok=True)
    for k in range(NUM_DAYS):
        rows = draw(k)
        if k == day and fault is not None:
            rows |= fault(rows)
        lines = ["\t".join(row) for row in zip(*(rows[name] for name in CRITEO.names), strict=True)]
        (root / "logs_in" / f"day_{k}.tsv").write_text("\n".join(lines) + "\n")
    split = {"by": "days", "valid_days": 0.5, "test_days": 0.5, "test_first": False}
    features = {
        "ids": "frequency",
        "min_count": 3,
        "fit_days": 4,
        "dense": "declared",
        "split": split,
    } | changes.pop("features", {})
    make_features(
        root, make_params(data__source=str(root / "logs_in"), features=features, **changes)
    )
    return read_json(root / FEATURES / "data.json")


def new_values(rows: Rows) -> Rows:
    return {
        CATEGORY: np.array(
            [value and f"{int(value, 16) ^ 0x77777777:08x}" for value in rows[CATEGORY]]
        )
    }


def half_missing(rows: Rows) -> Rows:
    return {DENSE: np.where(np.arange(ROWS) % 2, rows[DENSE], "")}


@pytest.mark.parametrize("day", [1, NUM_DAYS - 1], ids=["a training day", "a test day"])
@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (half_missing, f"{DENSE} missing in 50.0% of its rows"),
        (
            lambda rows: {CRITEO.label: np.where(rows[CRITEO.label] == "1", "0", "1")},
            "label rate 7",
        ),
        (
            lambda rows: {DENSE: np.array([f"{int(value) * 10}" for value in rows[DENSE]])},
            f"{DENSE} has drifted",
        ),
    ],
    ids=["half missing", "labels flipped", "another unit"],
)
def test_each_fault_is_named_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], day: int, fault: Fault, named: str
) -> None:
    warnings = build(tmp_path, day, fault)["warnings"]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"day_{day}.tsv: {named}")
    assert f"features  warning: {warnings[0]}" in capsys.readouterr().out


def test_replaced_categories_are_named(tmp_path: Path) -> None:
    """Replaced values are reported as unseen on a test day, and as drift on a training day."""
    last = NUM_DAYS - 1
    tested = build(tmp_path, last, new_values)["warnings"]
    assert [line.partition(" in ")[0] for line in tested] == [
        f"day_{last}.tsv: {CATEGORY} rare or unseen"
    ]
    trained = build(tmp_path, 1, new_values)["warnings"]
    assert [line.partition(" from ")[0] for line in trained] == [
        f"day_1.tsv: {CATEGORY} has drifted"
    ]


def test_replaced_categories_are_named_without_ids_of_unseen_values(tmp_path: Path) -> None:
    warnings = build(
        tmp_path, NUM_DAYS - 1, new_values, features={"ids": "appearance", "min_count": 1}
    )["warnings"]
    assert [line.partition(" from ")[0] for line in warnings] == [
        f"day_{NUM_DAYS - 1}.tsv: {CATEGORY} has drifted"
    ]


def test_a_figure_above_block_promotion_does_not_stop_the_run(tmp_path: Path) -> None:
    fault = {CRITEO.label: np.where(np.arange(ROWS) % 5, "1", "0")}  # 80 % clicks instead of 25 %
    (line,) = build(tmp_path, NUM_DAYS - 1, lambda rows: fault)["blocks_promotion"]
    assert line.startswith(f"day_{NUM_DAYS - 1}.tsv: label rate 80.00%")
    assert line.endswith("above gate.label_rate.block_promotion 2.5")


def test_a_missing_column_stops_the_run_and_keeps_the_earlier_features(tmp_path: Path) -> None:
    data = build(tmp_path)
    assert data["warnings"] == []
    assert data["vocabulary"]["days"] == [f"day_{k}.tsv" for k in range(NUM_DAYS - 1)]
    before = (tmp_path / FEATURES / "data.json").read_bytes()
    with pytest.raises(
        DataError,
        match=rf"day_3\.tsv: {DENSE} missing in 100\.0% of its rows .*gate\.missing\.stop 0\.9",
    ):
        build(tmp_path, 3, lambda rows: {DENSE: np.full(ROWS, "")})
    assert (tmp_path / FEATURES / "data.json").read_bytes() == before
    assert read_json(tmp_path / FIGURES)["days"][3]["columns"][DENSE]["missing"] == 1


def test_real_rows_give_no_warning(tmp_path: Path) -> None:
    for name in ("kaggle_span_80k.tsv", "kaggle_span_4k.tsv"):
        make_features(tmp_path, make_params(data__source=str(real_log(f"criteo/{name}"))))
        assert read_json(tmp_path / FEATURES / "data.json")["warnings"] == []
