"""The history page shows what the records contain, and needs no other file."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from common.artifact import write_manifest
from common.files import write_json
from common.layout import FEATURES
from features.quality.gate import FIGURES
from flows.nightly.history import (
    HISTORY,
    NUM_ROWS_SHOWN,
    format_duration,
    format_signed,
    list_events,
    render_history,
    write_history,
)
from flows.nightly.history_plots import Plots
from flows.nightly.log_changes import read_newest_day
from flows.nightly.record import NightlyRun, Outcome
from flows.nightly.registry import Assignment
from tests.factories.html_pages import Page, parsed_html
from tests.factories.nightly_runs import finish_run, make_repository, make_run
from tests.factories.served_figures import make_served

DATA = FEATURES / "data.json"
START = datetime(2026, 3, 1, 2, tzinfo=UTC)
STAGE_SECONDS = {"collect": 40.0, "train <all>$1$": 1200.0}
DAY = {
    "name": "day_5",
    "num_rows": 90_000,
    "num_bad_rows": 10,
    "label_rate": 0.25,
    "missing": None,
    "drift": {"column": "C<14>", "value": 0.125},
    "unseen": {"column": "C3", "value": 0.5},
}


def make_metrics(auc: float | None, logloss: float, version: str) -> dict[str, Any]:
    metrics: dict[str, Any] = {
        "auc": auc,
        "logloss": logloss,
        "normalized_entropy": 0.9,
        "num_rows": 3000,
        "version": version,
    }
    for name in ("auc", "logloss"):
        value = metrics[name]
        metrics[f"{name}_low"] = None if value is None else value - 0.01
        metrics[f"{name}_high"] = None if value is None else value + 0.01
    return metrics


def trained_run(
    number: int,
    outcome: Outcome,
    champion: str | None = None,
    auc: float | None = 0.7,
    **changes: Any,
) -> NightlyRun:
    """A run that trained a model and compared it with the champion."""
    one = {"value": -0.0123, "low": -0.02, "high": 0.01, "worse": 0.5}
    values: dict[str, Any] = {
        "champion": champion,
        "decision": {
            "checks": [],
            "challenger": make_metrics(auc, 0.5, f"{number:012x}"),
            "champion": make_metrics(0.71, 0.51, champion) if champion else None,
            "difference": {"auc": one, "logloss": one} if champion else {},
        },
        "log_changes": {"new": [f"day_{number}"]},
        "started": START + timedelta(days=number),
        "seconds": 1300.0,
        "stage_seconds": STAGE_SECONDS,
        "newest_day": DAY,
    }
    return make_run(number, outcome, **(values | changes))


def run_without_model(number: int, outcome: Outcome, **changes: Any) -> NightlyRun:
    values: dict[str, Any] = {
        "version": None,
        "decision": None,
        "stage_seconds": {"collect": 2.0},
        "seconds": 12.0,
    }
    return trained_run(number, outcome, "2".zfill(12), **(values | changes))


RUNS = [
    trained_run(1, "rejected", reasons=["calibration error: 0.0316, above 0.03"]),
    trained_run(2, "promoted"),
    trained_run(
        3,
        "rejected",
        "2".zfill(12),
        reasons=["auc: <worse>", "logloss: worse, too"],
        warnings=["day_3: C1 has drifted & more"],
    ),
    run_without_model(4, "nothing new", log_changes={}, newest_day=None),
    trained_run(
        5,
        "promoted",
        "2".zfill(12),
        auc=0.75,
        log_changes={
            "new": ["day_5"],
            "late": ["day_<0>"],
            "removed": [f"old_{k}" for k in range(9)],
        },
    ),
    run_without_model(
        6, "rejected", reasons=["stage features failed: not fit\nday_6: label rate <1%"]
    ),
]
ASSIGNMENTS = [
    Assignment(1, 2, RUNS[1].started + timedelta(hours=1), RUNS[1].headline),
    Assignment(2, 5, RUNS[4].started + timedelta(hours=1), RUNS[4].headline),
    Assignment(
        3,
        2,
        (RUNS[4].started + timedelta(hours=8)).astimezone(timezone(timedelta(hours=3))),
        "rollback from v5.0.0 by <me>",
    ),
]


def texts_of_rows(html: str) -> list[str]:
    """Return the text of each row of the table, without the figures."""
    without_figures = re.sub(r"<svg.*?</svg>", "", html, flags=re.DOTALL)
    rows = []
    for row in re.findall(r"<tr.*?</tr>", without_figures, flags=re.DOTALL):
        page = Page()
        page.feed(row)
        rows.append(" ".join(text for text in page.texts if text))
    return rows


def test_the_page_loads_nothing_and_escapes_every_value() -> None:
    html = render_history(RUNS, ASSIGNMENTS)
    page = parsed_html(html)
    assert page.loads == []
    assert not page.tags & {"script", "link", "img", "iframe", "object", "worse", "me", "all"}
    assert not re.search(r"url\((?!#)|@import|<metadata|#0[1-7]0", html)
    used, defined = re.findall(r"var\(--([\w-]+)", html), re.findall(r"--([\w-]+):", html)
    assert set(used) <= {*defined, "rgb", "d"}
    assert html.count("<svg") == 4
    shown = " ".join(page.texts)
    for text in (
        "<worse>",
        "drifted & more",
        "day_<0>",
        "by <me>",
        "label rate <1%",
        "C<14>",
        "train <all>$1$",
    ):
        assert text in shown


def test_the_tiles_show_production_and_the_last_run() -> None:
    texts = [text for text in parsed_html(render_history(RUNS, ASSIGNMENTS)).texts if text]
    tiles = texts[texts.index("In production") : texts.index("Models")]
    assert tiles[:4] == ["In production", "v2.0.0", "since 2026-03-06 10:00 UTC", "log up to day_2"]
    assert tiles[5:8] == ["AUC", "0.7000", "95%: 0.6900 – 0.7100"]
    assert tiles[10:12] == ["Logloss", "0.5000"]
    assert tiles[15:17] == ["Last run", "rejected"]
    assert tiles[20:24] == ["Runs", "6", "2 promoted, 3 rejected", "1 nothing new"]
    assert tiles[24].startswith("1 rollback. The first run was on 2026-03-02")
    assert "Nightly run 6 rejected its data." in texts


def test_the_table_has_every_run_newest_first_and_rollbacks_between() -> None:
    rows = texts_of_rows(render_history(RUNS, ASSIGNMENTS))[1:]
    main = [row for row in rows if re.match(r"\d+ day_|2026", row)]
    assert [row.split()[0] for row in main] == ["6", "2026-03-06", "5", "4", "3", "2", "1"]
    assert main[0] == "6 day_6 2026-03-07 02:00 rejected data refused – – – – – 12 s 1"
    assert main[1] == "2026-03-06 10:00 rollback to v2.0.0: rollback from v5.0.0 by <me>"
    assert main[2] == (
        "5 day_5 2026-03-06 02:00 promoted v5.0.0 000000000005 "
        "0.7500 0.7400 – 0.7600 −0.0123 −0.0200 to +0.0100 "
        "0.5000 0.4900 – 0.5100 −0.0123 −0.0200 to +0.0100 22 min 1"
    )
    assert main[3].endswith("nothing new – – – – – 12 s –")
    assert main[6].startswith(
        "1 day_1 2026-03-02 02:00 rejected v1.0.0 000000000001 0.7000 0.6900 – 0.7100 – 0.5000"
    )
    folded = [row for row in rows if row not in main]
    assert folded[0].startswith(
        "stage features failed: not fit; day_6: label rate <1% Why the data was rejected"
    )
    assert folded[1].startswith(
        "late day_<0>; removed old_0, old_1, old_2 and 6 more "
        "Removed old_0, old_1, old_2, old_3, old_4, old_5,"
    )
    assert folded[2].startswith("auc: <worse> and 1 more · 1 warning")
    assert folded[2].endswith("logloss: worse, too Warnings day_3: C1 has drifted & more")
    assert "Why the model was rejected" in folded[3]


def test_a_first_run_without_a_champion_whose_test_rows_have_one_class() -> None:
    run = trained_run(1, "rejected", auc=None, reasons=["skill: none"], newest_day=None)
    html = render_history([run], [])
    texts = set(parsed_html(html).texts)
    assert {
        "1 nightly run, up to day_1",
        "no model in production",
        "Nightly run 1 rejected its model.",
        "challenger, rejected",
    } <= texts
    assert html.count("<svg") == 2  # metrics and durations
    assert not {"champion", "challenger, promoted", "rollback"} & texts


def test_served_traffic_has_a_figure_and_a_sentence() -> None:
    """Some runs have none, one has no labels, and one no rows."""
    served = [
        None,
        make_served(ratio=0.9),
        make_served(ratio=None, drift=None),
        make_served(version="b" * 12, ratio=1.2, skew={"column": "C<1>", "value": 0.25}),
    ]
    runs = [
        run.model_copy(update={"served": figures})
        for run, figures in zip(RUNS[:4], served, strict=True)
    ]
    html = render_history(runs, [])
    page = parsed_html(html)
    text = " ".join(page.texts)
    assert (
        "The latest, of run 4: shop<1> bbbbbbbbbbbb: 1,000 rows, 90.0% joined, predicted / observed"
        " clicks 1.200, logloss 0.4567, largest drift site 0.3, largest skew C<1> 0.25."
    ) in text
    assert "Served traffic" in page.texts
    assert "predicted / observed" in page.texts
    assert html.count("<svg") == 1 + render_history(RUNS[:4], []).count("<svg")
    no_rows = {**make_served(), "versions": []}
    empty = [RUNS[0].model_copy(update={"served": no_rows})]
    assert render_history(empty, []).count("<svg") == render_history(RUNS[:1], []).count("<svg")


def test_every_assignment_but_a_promotion_is_a_rollback() -> None:
    """A promotion that was finished late is none; each return to a model is one."""
    late = Assignment(1, 2, RUNS[2].started + timedelta(hours=1), RUNS[1].headline)
    rollbacks = [
        Assignment(2, 1, RUNS[3].started, "rollback"),
        Assignment(3, 2, RUNS[3].started + timedelta(hours=1), "rollback"),
    ]
    events = list_events(RUNS[:4], [late, *rollbacks])
    assert [event.position for event in events] == [1, 2, 3, 4, 4.5, 4.5]
    assert [event.rollback for event in events[4:]] == rollbacks


@pytest.mark.parametrize("off_by", [timedelta(days=-400), timedelta(days=400)])
def test_a_clock_that_was_wrong_at_a_rollback_does_not_move_it_past_a_promotion(
    off_by: timedelta,
) -> None:
    promoted = [
        run.model_copy(update={"outcome": "promoted", "number": number})
        for number, run in enumerate(RUNS[:4], 1)
    ]
    numbers = [1, 2, 1, 3, 4]  # the third is the rollback
    assignments = [
        Assignment(number, run, promoted[run - 1].started + timedelta(hours=1), "")
        for number, run in enumerate(numbers, 1)
    ]
    assignments[2] = replace(assignments[2], at=promoted[1].started + off_by)
    positions = [event.position for event in list_events(promoted, assignments)]
    assert positions == [1, 2, 2.5, 3, 4]


def test_the_same_records_give_the_same_bytes() -> None:
    page = render_history(RUNS, ASSIGNMENTS)
    assert page == render_history(list(RUNS), list(ASSIGNMENTS))


def test_four_hundred_runs_stay_readable() -> None:
    """A far outlier does not flatten the axis, runs share their shapes, and old runs are folded."""

    def runs(count: int) -> list[NightlyRun]:
        return [
            trained_run(k, "promoted", f"{k - 1:012x}", auc=0.7 + k % 7 / 1000)
            for k in range(1, count + 1)
        ]

    many = runs(400)
    many[200] = trained_run(201, "rejected", "2".zfill(12), auc=0.2)
    html = render_history(many, [])
    shown = {text[:4] for text in parsed_html(Plots(many, []).metrics()).texts}
    assert {"0.70", "0.71"} <= shown
    assert html.count("<path") < 2 * render_history(runs(20), []).count("<path")
    unfolded, folded = html.split("<summary>Older")
    header = 1
    assert unfolded.count("</tr>") == NUM_ROWS_SHOWN + header
    assert folded.count("</tr>") == 400 - NUM_ROWS_SHOWN + header


def test_the_page_is_written_from_the_tags_alone(tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "repository")
    for run in RUNS[:2]:
        finish_run(repository, run.number, run.outcome, run.started, decision=run.decision)
    repository.rollback("v1", None, anyway=True)
    path = write_history(repository)
    assert path == repository.root / HISTORY
    html = path.read_text()
    texts = parsed_html(html).texts
    assert {"2 nightly runs, up to day_2", "v1.0.0"} <= set(texts)
    assert any("rollback from v2.0.0 by" in text for text in texts)
    assert str(tmp_path) not in html
    write_history(repository)
    assert path.read_text() == html


@pytest.mark.parametrize("refused", [False, True])
def test_figures_of_the_newest_day(tmp_path: Path, refused: bool) -> None:
    """If the data was refused, they come from the gate's file: data.json is of the run before."""
    zeros = dict.fromkeys(("missing", "window_missing", "unseen", "drift"), 0.0)
    columns = {
        "a": zeros | {"missing": 0.1, "window_missing": 0.4, "drift": 0.2},
        "b": zeros | {"missing": 0.9, "window_missing": 0.8, "unseen": 0.3, "drift": None},
    }
    day = {"name": "day_9", "num_rows": 10, "num_bad_rows": 1, "label_rate": 0.5}
    write_json(
        tmp_path / (FIGURES if refused else DATA),
        {"days": [{"columns": {}}, day | {"day": 1, "columns": columns}]},
    )
    write_manifest((tmp_path / DATA).parent, {})
    assert read_newest_day(tmp_path, refused) == day | {
        "drift": {"column": "a", "value": 0.2},
        "unseen": {"column": "b", "value": 0.3},
        "missing": {"column": "a", "value": pytest.approx(0.3)},
    }


def test_a_day_that_was_refused_before_it_was_counted_has_no_figures(tmp_path: Path) -> None:
    write_json(tmp_path / DATA, {"days": ["of the run before"]})
    assert read_newest_day(tmp_path, refused=True) is None


def test_a_newest_day_without_rows_is_shown(tmp_path: Path) -> None:
    day = {"name": "d", "num_rows": 0, "num_bad_rows": 0, "label_rate": None, "columns": {}}
    write_json(tmp_path / DATA, {"days": [day]})
    write_manifest((tmp_path / DATA).parent, {})
    newest = read_newest_day(tmp_path, refused=False)
    page = render_history([trained_run(1, "promoted", newest_day=newest)], [])
    assert "In production" in parsed_html(page).texts


def test_a_first_day_cannot_be_compared(tmp_path: Path) -> None:
    column = {"missing": 0.1, "window_missing": None, "unseen": None, "drift": None}
    day = {"name": "d", "num_rows": 1, "num_bad_rows": 0, "label_rate": 1.0}
    write_json(tmp_path / DATA, {"days": [day | {"columns": {"a": column}}]})
    write_manifest((tmp_path / DATA).parent, {})
    newest = read_newest_day(tmp_path, refused=False)
    assert newest == day | dict.fromkeys(("drift", "unseen", "missing"))
    page = render_history([trained_run(1, "promoted", newest_day=newest)], [])
    assert "In production" in parsed_html(page).texts


def test_formats() -> None:
    assert [format_duration(seconds) for seconds in (12.4, 99, 100, 5940, 7500)] == [
        "12 s",
        "99 s",
        "2 min",
        "99 min",
        "2 h 05 min",
    ]
    assert [format_signed(number) for number in (None, 0.00012, -0.1)] == [
        "–",
        "+0.0001",
        "−0.1000",
    ]
