"""Each figure of the gate, just above and just below its threshold; chance raises no alarm."""

from pathlib import Path
from statistics import median
from typing import Any

import pytest

from common.config.loading import ConfigError
from common.config.params import Gate, load_params
from common.files import DataError
from features.quality.gate import check_data
from tests.factories.support import ROOT

SHIPPED = load_params(ROOT / "params.yaml").gate
SAME = {"missing": 0.1, "window_missing": 0.1, "unseen": 0.2, "window_unseen": 0.2, "drift": 0.0}
FIGURES = sorted(Gate.model_fields)


def day(
    name: str,
    *,
    rows: int = 100_000,
    bad: int = 0,
    rate: float | None = 0.25,
    window: dict[str, Any] | None = None,
    split: str = "train",
    **column: float | None,
) -> dict[str, Any]:
    """Return a day as data.json has it; `column` changes figures of its column `site`."""
    columns = {"site": SAME | column, "age": SAME | {"unseen": None, "window_unseen": None}}
    return {
        "name": name,
        "num_rows": rows,
        "num_bad_rows": bad,
        "label_rate": rate,
        "window": window or {"num_rows": 600_000, "label_rate": 0.25},
        "columns": columns,
        "split_rows": {split: rows},
    }


def gate(**thresholds: tuple[float | None, ...]) -> Gate:
    """Return thresholds for the named figures only.

    Each is (warn, stop) or (warn, block_promotion, stop).
    """
    values = {}
    for figure in FIGURES:
        limits = thresholds.get(figure, (None, None))
        block_promotion = limits[1] if len(limits) == 3 else None
        values[figure] = {"warn": limits[0], "block_promotion": block_promotion, "stop": limits[-1]}
    return Gate.model_validate(values)


def warnings(days: list[dict[str, Any]], params: Gate) -> list[str]:
    """Return the warnings about some days, of which nothing blocks promotion."""
    lines, blocking = check_data({"days": days}, params)
    assert blocking == []
    return lines


def check(*days: dict[str, Any], **thresholds: tuple[float | None, ...]) -> list[str]:
    """Return the warnings about some days, after three days that are alike."""
    usual = [day(f"day_{k}", rate=0.251) for k in range(3)]
    return warnings([*usual, *days], gate(**thresholds))


@pytest.mark.parametrize(
    ("figure", "high", "low", "words"),
    [
        (
            "rows",
            {"rows": 40_000},
            {"rows": 60_000},
            "odd: 40,000 rows, 100,000 in the median of the other days: 0.6 of them lacking",
        ),
        (
            "bad_rows",
            {"bad": 101_000},
            {"bad": 99_000},
            "odd: 101,000 of 201,000 rows are bad: 0.502 of all",
        ),
        (
            "label_rate",
            {"rate": 0.6},
            {"rate": 0.3},
            "odd: label rate 60.00%, 25.00% in the training rows of the other days: 2.36 times as high",
        ),
        ("label_rate", {"rate": 0.0}, {"rate": 0.24}, "times as low"),
        (
            "missing",
            {"missing": 0.7},
            {"missing": 0.5},
            "odd: site missing in 70.0% of its rows and 10.0% of the training rows of the other days: 0.596 beyond chance",
        ),
        (
            "missing",
            {"missing": 0.0, "window_missing": 0.6},
            {"missing": 0.2, "window_missing": 0.6},
            "beyond chance",
        ),
        (
            "unseen",
            {"unseen": 0.8},
            {"unseen": 0.0, "window_unseen": 0.8},
            "odd: site rare or unseen in 80.0% of its rows and 20.0% of the training rows of the other days",
        ),
        (
            "drift",
            {"drift": 0.51},
            {"drift": 0.5},
            "odd: site has drifted from the training rows of the other days: 0.51 (PSI), above gate.drift.warn 0.5",
        ),
    ],
)
def test_each_figure_warns_above_its_threshold_alone(
    figure: str, high: dict[str, Any], low: dict[str, Any], words: str
) -> None:
    limit = 1.5 if figure == "label_rate" else 0.5
    lines = check(day("odd", **high), **{figure: (limit, None)})
    assert len(lines) == 1
    assert words in lines[0]
    assert lines[0].endswith(f", above gate.{figure}.warn {limit:g}")
    assert check(day("odd", **low), **{figure: (limit, None)}) == []
    assert check(day("odd", **high), **{figure: (None, None)}) == []


def test_a_stop_names_every_figure_and_where_to_look() -> None:
    bad = day("odd", rows=1000, rate=0.9, missing=1.0, drift=3.0)
    with pytest.raises(DataError) as error:
        check(
            bad,
            day("worse", drift=5.0),
            rows=(None, 0.5),
            label_rate=(1.5, 3),
            missing=(0.1, 0.8),
            drift=(0.25, 4.0),
            unseen=(0.1, None),
        )
    lines = str(error.value).splitlines()
    assert "runs/data.json" in lines[0]
    assert [line.partition(" ")[0] + line.rpartition("above ")[2] for line in lines[1:-1]] == [
        "odd:gate.rows.stop 0.5",
        "odd:gate.label_rate.stop 3",
        "odd:gate.missing.stop 0.8",
        "worse:gate.drift.stop 4",
    ]
    assert (
        "site missing in 100.0% of its rows and 10.0% of the training rows of the other days: 0.871"
        in lines[3]
    )
    assert "params.yaml" in lines[-1]


def test_a_figure_above_block_promotion_is_in_both_lists() -> None:
    def lines(**column: float | None) -> tuple[list[str], list[str]]:
        days = [day("day_0"), day("day_1"), day("odd", **column)]
        return check_data({"days": days}, gate(drift=(0.25, 1, 4)))

    assert lines(drift=0.2) == ([], [])
    assert lines(drift=1.0)[1] == []
    (warning,), (blocking,) = lines(drift=1.01)
    message = "odd: site has drifted from the training rows of the other days: 1.01 (PSI), above gate.drift."
    assert (warning, blocking) == (f"{message}warn 0.25", f"{message}block_promotion 1")
    with pytest.raises(DataError, match=r"gate\.drift\.stop 4") as error:
        lines(drift=4.01)
    assert "block_promotion" not in str(error.value)  # there is no model that could be promoted


def test_what_chance_explains_raises_no_alarm() -> None:
    few = {"rows": 60, "rate": 0.4, "missing": 0.2, "unseen": 0.35}
    assert (
        check(day("few", **few), label_rate=(1.01, None), missing=(0.01, None), unseen=(0.01, None))
        == []
    )
    many = few | {"rows": 60_000}
    assert (
        len(
            check(
                day("many", **many),
                label_rate=(1.01, None),
                missing=(0.01, None),
                unseen=(0.01, None),
            )
        )
        == 3
    )


def test_an_unusual_day_is_not_blamed_on_the_other_days() -> None:
    """The other days have the unusual day in their windows."""
    others = [day(f"day_{k}", missing=0.1, window_missing=0.25) for k in range(3)]
    named = {"missing": (0.1, None)}
    assert [line[:5] for line in warnings([*others, day("odd_1", missing=0.8)], gate(**named))] == [
        "odd_1"
    ]
    tested = warnings([*others, day("odd_1", missing=0.8, split="test")], gate(**named))
    assert len(tested) == 4  # test rows are in no window
    two = warnings([*others, day("odd_1", missing=0.8), day("odd_2", missing=0.6)], gate(**named))
    assert [line[:5] for line in two] == ["odd_1", "odd_2"]


@pytest.mark.parametrize("rows", [[5], [5, 9], [9, 4, 4, 7], [3, 8, 1, 8, 6], [0, 0, 2]])
def test_the_rows_of_a_day_are_compared_with_the_median_of_the_others(rows: list[int]) -> None:
    found = warnings([day(f"{k}", rows=n) for k, n in enumerate(rows)], gate(rows=(1e-9, None)))
    medians = [median(rows[:k] + rows[k + 1 :]) if len(rows) > 1 else 0 for k in range(len(rows))]
    expected = [
        f"{k}: {n:,} rows, {usual:,.0f} in the median of the other days: {1 - n / usual:.3g}"
        for k, (n, usual) in enumerate(zip(rows, medians, strict=True))
        if n < usual
    ]
    assert [line.split(" of them lacking")[0] for line in found] == expected


def test_what_cannot_be_compared_is_not_checked() -> None:
    nothing = {"num_rows": 0, "label_rate": None}
    alone = day("alone", window=nothing, window_missing=None, window_unseen=None, drift=None)
    empty = day("empty", rows=0, rate=None) | {"columns": {}}
    everything = dict.fromkeys(FIGURES, (0.001, 0.001)) | {"label_rate": (1.001, 1.001)}
    assert warnings([alone], gate(**everything)) == []
    assert [
        line.partition(":")[0]
        for line in warnings([alone, day("other"), empty], gate(rows=(0.5, None)))
    ] == ["empty"]
    assert (
        warnings(
            [day("no clicks", rate=0, window={"num_rows": 9, "label_rate": 0})], gate(**everything)
        )
        == []
    )


def test_shipped_thresholds_are_silent_on_alike_days_and_stop_gross_faults() -> None:
    alike = [
        day(
            f"day_{k}",
            rows=90_000 + 2000 * k,
            rate=0.25 + 0.005 * k,
            drift=0.15,
            missing=0.15,
            unseen=0.3,
        )
        for k in range(5)
    ]
    assert warnings(alike, SHIPPED) == []
    for fault in ({"missing": 1.0, "window_missing": 0.05}, {"rate": 0.0}, {"rate": 0.03}):
        with pytest.raises(DataError, match="odd: "):
            check_data({"days": [*alike, day("odd", **fault)]}, SHIPPED)


@pytest.mark.parametrize(
    ("given", "refused"),
    [
        ("warn: 0.25, block_promotion: null, stop: 0.2", "warn 0.25 is above stop 0.2"),
        ("warn: 0.25, block_promotion: 0.2, stop: 1", "warn 0.25 is above block_promotion 0.2"),
        ("warn: null, block_promotion: 2, stop: 1", "block_promotion 2.0 is above stop 1.0"),
        ("warn: 0.25, block_promotion: 0.25, stop: 0.25", None),
        ("warn: null, block_promotion: 1, stop: null", None),
    ],
)
def test_a_threshold_above_the_next_is_refused(
    tmp_path: Path, given: str, refused: str | None
) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    path, shipped = tmp_path / "params.yaml", "drift: {warn: 0.25, block_promotion: 1, stop: null}"
    assert shipped in text
    path.write_text(text.replace(shipped, f"drift: {{{given}}}"), encoding="utf-8")
    if refused is None:
        load_params(path)
    else:
        with pytest.raises(
            ConfigError, match=rf"gate\.drift: {refused}: expected warn <= block_promotion <= stop"
        ):
            load_params(path)


def test_a_column_that_is_always_missing_is_named() -> None:
    """All days are alike, so no comparison of days shows it."""
    days = [day(f"day_{k}", missing=1.0, window_missing=1.0) for k in range(3)]
    (line,) = warnings(days, gate())
    assert line == "site is missing in every row: does the log use another name for it?"
    assert warnings([*days, day("day_3")], gate()) == []
