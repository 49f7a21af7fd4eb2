"""The gate's figures: each has a case that is just above its threshold and one that is just below, and chance raises no alarm."""

import pytest

from common.config.loading import ConfigError
from common.config.params import Gate, load_params
from common.files import DataError
from features.quality.gate import check_data
from tests.factories.support import ROOT

SHIPPED = load_params(ROOT / "params.yaml").gate
SAME = {"missing": 0.1, "window_missing": 0.1, "unseen": 0.2, "window_unseen": 0.2, "drift": 0.0}
FIGURES = sorted(Gate.model_fields)


def day(name, *, rows=100_000, bad=0, rate=0.25, window=None, split="train", **column):
    window = {"num_rows": 600_000, "label_rate": 0.25} if window is None else window
    columns = {"site": SAME | column, "age": SAME | {"unseen": None, "window_unseen": None}}
    told = {
        "name": name,
        "num_rows": rows,
        "num_bad_rows": bad,
        "label_rate": rate,
        "window": window,
        "columns": columns,
    }
    return told | {"split_rows": {split: rows}}


def gate(**thresholds):
    """Only the named figures have thresholds: (warn, stop), or all three."""
    given = {figure: thresholds.get(figure, (None, None)) for figure in FIGURES}
    return Gate.model_validate(
        {
            figure: {"warn": one[0], "keep": one[1] if one[2:] else None, "stop": one[-1]}
            for figure, one in given.items()
        }
    )


def warnings(days, params):
    found, blocking = check_data({"days": days}, params)
    assert blocking == []
    return found


def check(*days, **thresholds):
    return warnings(
        [day(f"day_{k}", rate=0.251) for k in range(3)] + list(days), gate(**thresholds)
    )


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
            "odd: 101,000 of 201,000 lines malformed: 0.502 of all",
        ),
        (
            "label_rate",
            {"rate": 0.6},
            {"rate": 0.3},
            "odd: label rate 60.00%, 25.00% in the window: 2.36 times as high",
        ),
        ("label_rate", {"rate": 0.0}, {"rate": 0.24}, "times as low"),
        (
            "missing",
            {"missing": 0.7},
            {"missing": 0.5},
            "odd: site missing in 70.0% of rows, 10.0% in the window: 0.596 of rows apart",
        ),
        (
            "missing",
            {"missing": 0.0, "window_missing": 0.6},
            {"missing": 0.2, "window_missing": 0.6},
            "of rows apart",
        ),
        (
            "unseen",
            {"unseen": 0.8},
            {"unseen": 0.0, "window_unseen": 0.8},
            "odd: site rare or new in 80.0% of rows, 20.0% in the window",
        ),
        (
            "drift",
            {"drift": 0.51},
            {"drift": 0.5},
            "odd: site has drifted from the window: 0.51 (PSI), above gate.drift.warn 0.5",
        ),
    ],
)
def test_each_figure_warns_above_its_threshold_alone(figure, high, low, words):
    limit = 1.5 if figure == "label_rate" else 0.5
    lines = check(day("odd", **high), **{figure: (limit, None)})
    assert len(lines) == 1
    assert words in lines[0]
    assert lines[0].endswith(f", above gate.{figure}.warn {limit:g}")
    assert check(day("odd", **low), **{figure: (limit, None)}) == []
    assert check(day("odd", **high), **{figure: (None, None)}) == []


def test_a_stop_names_everything_and_where_to_look():
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
    assert "site missing in 100.0% of rows, 10.0% in the window: 0.871" in lines[3]
    assert "params.yaml" in lines[-1]


def test_keep_is_told_beside_the_warning():
    def lines(**column):
        return check_data(
            {"days": [day("day_0"), day("day_1"), day("odd", **column)]}, gate(drift=(0.25, 1, 4))
        )

    assert lines(drift=0.2) == ([], [])
    assert lines(drift=1.0)[1] == []
    (warning,), (keep,) = lines(drift=1.01)
    told = "odd: site has drifted from the window: 1.01 (PSI), above gate.drift."
    assert (warning, keep) == (f"{told}warn 0.25", f"{told}keep 1")
    with pytest.raises(DataError, match=r"gate\.drift\.stop 4") as error:
        lines(drift=4.01)
    assert "keep" not in str(error.value)  # nothing was trained that could be kept out


def test_what_chance_explains_raises_no_alarm():
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


def test_a_day_that_is_off_does_not_accuse_the_others():
    """They have it in their windows."""
    others = [day(f"day_{k}", missing=0.1, window_missing=0.25) for k in range(3)]
    named = {"missing": (0.1, None)}
    assert [line[:5] for line in warnings([*others, day("odd_1", missing=0.8)], gate(**named))] == [
        "odd_1"
    ]
    tested = warnings([*others, day("odd_1", missing=0.8, split="test")], gate(**named))
    assert len(tested) == 4  # test rows are in no window
    two = warnings([*others, day("odd_1", missing=0.8), day("odd_2", missing=0.6)], gate(**named))
    assert [line[:5] for line in two] == ["odd_1", "odd_2"]


def test_what_cannot_be_compared_is_not_judged():
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


def test_shipped_thresholds_are_silent_on_alike_days_and_stop_gross_faults():
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
        ("warn: 0.25, block_promotion: 0.2, stop: 1", "warn 0.25 is above keep 0.2"),
        ("warn: null, block_promotion: 2, stop: 1", "keep 2.0 is above stop 1.0"),
        ("warn: 0.25, block_promotion: 0.25, stop: 0.25", None),
        ("warn: null, block_promotion: 1, stop: null", None),
    ],
)
def test_a_threshold_above_the_next_is_refused(tmp_path, given, refused):
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    path, shipped = tmp_path / "params.yaml", "drift: {warn: 0.25, block_promotion: 1, stop: null}"
    assert shipped in text
    path.write_text(text.replace(shipped, f"drift: {{{given}}}"), encoding="utf-8")
    if refused is None:
        load_params(path)
    else:
        with pytest.raises(
            ConfigError, match=rf"gate\.drift: {refused}: warn <= block_promotion <= stop expected"
        ):
            load_params(path)


def test_a_column_that_is_never_there_is_named():
    """As every day is alike, no comparison of days would tell."""
    days = [day(f"day_{k}", missing=1.0, window_missing=1.0) for k in range(3)]
    (line,) = warnings(days, gate())
    assert line == "site is missing in every row: does the log call it otherwise?"
    assert warnings([*days, day("day_3")], gate()) == []
