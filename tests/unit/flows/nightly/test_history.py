"""The page of all nights: what is in the records is on it, and it needs nothing but itself."""

import re
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import gto.api
import pytest

from common.files import write_json
from features.quality.gate import FIGURES
from flows.nightly.history import (
    HISTORY,
    NIGHTS_SHOWN,
    duration,
    events,
    history,
    signed,
    write_history,
)
from flows.nightly.history_plots import Plots
from flows.nightly.log_changes import DATA, newest_day
from flows.nightly.record import Night
from flows.nightly.registry import NAME, STAGE, Assignment
from tests.unit.training.evaluation.test_report import Page, parsed_html

START = datetime(2026, 3, 1, 2, tzinfo=UTC)
TASKS = {"collect": 40.0, "train <all>$1$": 1200.0}
DAY = {"name": "day_5", "num_rows": 90_000, "num_bad_rows": 10, "label_rate": 0.25, "missing": None}
DAY |= {"drift": {"column": "C<14>", "value": 0.125}, "unseen": {"column": "C3", "value": 0.5}}


def figures(auc: float | None, logloss: float, version: str) -> dict[str, Any]:
    found = {
        "auc": auc,
        "logloss": logloss,
        "normalized_entropy": 0.9,
        "num_rows": 3000,
        "version": version,
    }
    ends = {
        f"{name}_{end}": found[name] and found[name] + sign * 0.01
        for name in ("auc", "logloss")
        for end, sign in (("low", -1), ("high", 1))
    }
    return found | ends


def a_night(
    number: int, outcome: str, champion: str | None = None, auc: float | None = 0.7, **other: Any
) -> Night:
    """It trained a model, of number's version, and held it against the champion."""
    version, theirs = f"{number:012x}", champion and figures(0.71, 0.51, champion)
    difference = (
        {
            name: {"value": -0.0123, "low": -0.02, "high": 0.01, "worse": 0.5}
            for name in ("auc", "logloss")
        }
        if theirs
        else {}
    )
    decision = {
        "challenger": figures(auc, 0.5, version),
        "champion": theirs,
        "difference": difference,
    }
    started = (START + timedelta(days=number)).isoformat()
    made = Night(
        number,
        f"day_{number}",
        outcome,
        [],
        {},
        {"new": [f"day_{number}"]},
        None,
        version,
        champion,
        decision,
        [],
        started,
        1300.0,
        TASKS,
        DAY,
    )
    return replace(made, **other)


def without_model(number: int, outcome: str, **other: Any) -> Night:
    return a_night(
        number,
        outcome,
        "2".zfill(12),
        version=None,
        decision=None,
        tasks={"collect": 2.0},
        seconds=12.0,
        **other,
    )


NIGHTS = [
    a_night(1, "kept", reasons=["calibration error: 0.0316; 0.03 may be"]),
    a_night(2, "promoted"),
    a_night(
        3,
        "kept",
        "2".zfill(12),
        reasons=["auc: <worse>", "logloss: worse, too"],
        warnings=["day_3: C1 has drifted & more"],
    ),
    without_model(4, "nothing new", arrivals={}, data=None),
    a_night(
        5,
        "promoted",
        "2".zfill(12),
        auc=0.75,
        arrivals={"new": ["day_5"], "late": ["day_<0>"], "gone": [f"old_{k}" for k in range(9)]},
    ),
    without_model(6, "kept", reasons=["stage features failed: not fit\nday_6: label rate <1%"]),
]
ASSIGNED = [
    Assignment(1, 2, NIGHTS[1].when + timedelta(hours=1), "Night 2, day_2: promoted v2.0.0"),
    Assignment(2, 5, NIGHTS[4].when + timedelta(hours=1), "Night 5, day_5: promoted v5.0.0"),
    Assignment(
        3,
        2,
        (NIGHTS[4].when + timedelta(hours=8)).astimezone(timezone(timedelta(hours=3))),
        "rollback from v5.0.0 by <me>",
    ),
]


def lines_of(html: str) -> list[str]:
    """The texts of each line of the table, the SVGs left out."""
    rows = re.findall(
        r"<tr.*?</tr>", re.sub(r"<svg.*?</svg>", "", html, flags=re.DOTALL), flags=re.DOTALL
    )
    pages = [Page() for _ in rows]
    for page, row in zip(pages, rows, strict=True):
        page.feed(row)
    return [" ".join(text for text in page.texts if text) for page in pages]


def test_the_page_stands_alone_and_escapes_what_it_tells() -> None:
    html = history(NIGHTS, ASSIGNED)
    page = parsed_html(html)
    assert page.loads == []
    assert not page.tags & {"script", "link", "img", "iframe", "object", "worse", "me", "all"}
    assert not re.search(r"url\((?!#)|@import|<metadata|#0[1-7]0", html)
    assert set(re.findall(r"var\(--([\w-]+)", html)) <= set(re.findall(r"--([\w-]+):", html)) | {
        "rgb",
        "d",
    }
    assert html.count("<svg") == 4
    told = " ".join(page.texts)
    for text in (
        "<worse>",
        "drifted & more",
        "day_<0>",
        "by <me>",
        "label rate <1%",
        "C<14>",
        "train <all>$1$",
    ):
        assert text in told


def test_the_tiles_tell_what_serves_and_how_it_went() -> None:
    texts = [text for text in parsed_html(history(NIGHTS, ASSIGNED)).texts if text]
    tiles = texts[texts.index("In production") : texts.index("Models")]
    assert tiles[:4] == [
        "In production",
        "v2.0.0",
        "since 2026-03-06 10:00 UTC",
        "of night 2, day_2",
    ]
    assert tiles[5:8] == ["AUC", "0.7000", "95%: 0.6900 – 0.7100"]
    assert tiles[10:12] == ["Logloss", "0.5000"]
    assert tiles[15:17] == ["Last night", "kept"]
    assert tiles[20:24] == ["Nights", "6", "2 promoted, 3 kept", "1 nothing new"]
    assert tiles[24].startswith("1 rollback. The first night was on 2026-03-02")
    assert "Night 6 kept the champion." in texts


def test_the_table_has_every_night_newest_first_and_rollbacks_between() -> None:
    lines = lines_of(history(NIGHTS, ASSIGNED))[1:]
    firsts = [line for line in lines if re.match(r"\d+ day_|2026", line)]
    assert [line.split()[0] for line in firsts] == ["6", "2026-03-06", "5", "4", "3", "2", "1"]
    assert firsts[0] == "6 day_6 2026-03-07 02:00 kept data refused – – – – – 12 s 1"
    assert firsts[1] == "2026-03-06 10:00 rollback to v2.0.0: rollback from v5.0.0 by <me>"
    promoted = "5 day_5 2026-03-06 02:00 promoted v5.0.0 000000000005 0.7500 0.7400 – 0.7600 −0.0123 −0.0200 to +0.0100"
    assert firsts[2] == f"{promoted} 0.5000 0.4900 – 0.5100 −0.0123 −0.0200 to +0.0100 22 min 1"
    assert firsts[3].endswith("nothing new – – – – – 12 s –")
    assert firsts[6].startswith(
        "1 day_1 2026-03-02 02:00 kept v1.0.0 000000000001 0.7000 0.6900 – 0.7100 – 0.5000"
    )
    folded = [line for line in lines if line not in firsts]
    assert folded[0].startswith(
        "stage features failed: not fit; day_6: label rate <1% Why the model in production was kept"
    )
    assert folded[1].startswith(
        "late day_<0>; gone old_0, old_1, old_2 and 6 more Gone old_0, old_1, old_2, old_3, old_4, old_5,"
    )
    assert folded[2].startswith("auc: <worse> and 1 more · 1 warning")
    assert folded[2].endswith(
        "logloss: worse, too Warnings about the data day_3: C1 has drifted & more"
    )
    assert "Why none was promoted" in folded[3]


def test_a_first_night_without_a_champion_and_one_class_of_test_rows() -> None:
    one = a_night(1, "kept", auc=None, reasons=["skill: none"], data=None)
    texts = parsed_html(html := history([one], [])).texts
    assert {"1 night, up to day_1", "no model in production", "Night 1 promoted none."} <= set(
        texts
    )
    assert html.count("<svg") == 2  # models and durations
    assert {"challenger, not promoted"} <= set(texts)
    assert not {"champion", "challenger, promoted", "rollback"} & set(texts)


def test_what_is_a_rollback() -> None:
    """Not the promotion, even where a killed night's came late; but each later return to a model, and that to one never promoted."""
    late = Assignment(1, 2, NIGHTS[2].when + timedelta(hours=1), "Night 2, day_2: promoted v2.0.0")
    again = [
        Assignment(2, 1, NIGHTS[3].when, "rollback"),
        Assignment(3, 2, NIGHTS[3].when + timedelta(hours=1), "rollback"),
    ]
    found = events(NIGHTS[:4], [late, *again])
    assert [event.place for event in found] == [1, 2, 3, 4, 4.5, 4.5]
    assert [event.rollback for event in found[4:]] == again


def test_the_same_records_give_the_same_bytes() -> None:
    assert history(NIGHTS, ASSIGNED) == history(list(NIGHTS), list(ASSIGNED))


def test_four_hundred_nights_stay_readable() -> None:
    """A far outlier does not flatten the axis, no shape is drawn for each night, and old nights are folded."""
    done = [a_night(k, "promoted", f"{k - 1:012x}", auc=0.7 + k % 7 / 1000) for k in range(1, 401)]
    few = [a_night(k, "promoted", f"{k - 1:012x}", auc=0.7 + k % 7 / 1000) for k in range(1, 21)]
    done[200] = a_night(201, "kept", "2".zfill(12), auc=0.2)
    html = history(done, [])
    assert {"0.70", "0.71"} <= {text[:4] for text in parsed_html(Plots(done, []).quality()).texts}
    assert html.count("<path") < 2 * history(few, []).count("<path")
    unfolded, folded = html.split("<summary>Older")
    assert unfolded.count("</tr>") == NIGHTS_SHOWN + 1  # and the head
    assert folded.count("</tr>") == 400 - NIGHTS_SHOWN + 1


def a_repository(root: Path) -> None:
    """Two nights and what they registered, by the tags that nights set."""

    def git(*arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True)

    git("init", "-q")
    git("config", "user.name", "test")
    git("config", "user.email", "test@localhost")
    for night in NIGHTS[:2]:
        night.write(root)
        git("add", "-A")
        git("commit", "-qm", night.headline)
        git("tag", "-a", night.tag, "-m", night.headline)
        gto.api.register(str(root), NAME, night.tag, version=night.model, message=night.headline)
    gto.api.assign(str(root), NAME, STAGE, version="v2.0.0", message=NIGHTS[1].headline, force=True)
    gto.api.assign(
        str(root), NAME, STAGE, version="v1.0.0", message="rollback from v2.0.0 by me", force=True
    )


def test_it_is_written_from_the_tags_alone(tmp_path: Path) -> None:
    a_repository(tmp_path)
    path = write_history(tmp_path)
    assert path == tmp_path / HISTORY
    html = path.read_text()
    assert {"2 nights, up to day_2", "v1.0.0", "rollback from v2.0.0 by me"} <= set(
        parsed_html(html).texts
    )
    assert str(tmp_path) not in html
    write_history(tmp_path)
    assert path.read_text() == html
    assert [file.name for file in (tmp_path / "artifacts").iterdir()] == [HISTORY.name]


@pytest.mark.parametrize("refused", [False, True])
def test_figures_of_the_newest_day(tmp_path: Path, refused: bool) -> None:
    """Of a refused one from what the gate left, not from the artifact of the night before."""
    empty = dict.fromkeys(("missing", "window_missing", "unseen", "drift"), 0.0)
    columns = {
        "a": empty | {"missing": 0.1, "window_missing": 0.4, "drift": 0.2},
        "b": empty | {"missing": 0.9, "window_missing": 0.8, "unseen": 0.3, "drift": None},
    }
    told = {"name": "day_9", "num_rows": 10, "num_bad_rows": 1, "label_rate": 0.5}
    write_json(
        tmp_path / (FIGURES if refused else DATA),
        {"days": [{"columns": {}}, told | {"day": 1, "columns": columns}]},
    )
    found = newest_day(tmp_path, refused)
    assert found == told | {
        "drift": {"column": "a", "value": 0.2},
        "unseen": {"column": "b", "value": 0.3},
        "missing": {"column": "a", "value": pytest.approx(0.3)},
    }


def test_a_day_refused_before_it_was_counted_has_no_figures(tmp_path: Path) -> None:
    write_json(tmp_path / DATA, {"days": ["of the night before"]})
    assert newest_day(tmp_path, refused=True) is None


def test_a_first_day_has_nothing_to_be_compared_with(tmp_path: Path) -> None:
    columns = {"a": {"missing": 0.1, "window_missing": None, "unseen": None, "drift": None}}
    write_json(
        tmp_path / DATA,
        {
            "days": [
                {
                    "name": "d",
                    "num_rows": 1,
                    "num_bad_rows": 0,
                    "label_rate": 1.0,
                    "columns": columns,
                }
            ]
        },
    )
    found = newest_day(tmp_path, refused=False)
    assert found
    assert [found[figure] for figure in ("drift", "unseen", "missing")] == [None] * 3
    assert "In production" in parsed_html(history([a_night(1, "promoted", data=found)], [])).texts


def test_wording() -> None:
    assert [duration(seconds) for seconds in (12.4, 99, 100, 5940, 7500)] == [
        "12 s",
        "99 s",
        "2 min",
        "99 min",
        "2 h 05 min",
    ]
    assert [signed(number) for number in (None, 0.00012, -0.1)] == ["–", "+0.0001", "−0.1000"]
