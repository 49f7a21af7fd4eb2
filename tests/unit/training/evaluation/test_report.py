"""The files of the evaluate stage: the metrics, the curves, and a page that needs no other file."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from common.bundle_layout import HISTORY, MODEL
from common.config.params import Params
from common.files import DataError
from common.html.page import share
from common.layout import EVALUATION, FEATURES
from tests.factories.html_pages import Page, parsed_html
from tests.factories.models import NUM_ROWS, NUM_TEST, log_lines, make_bundle, make_project
from training.distributed.sharding.placement_report import TablePlacement
from training.evaluation import metrics
from training.evaluation.heatmap import heat_maps, values_not_seen
from training.evaluation.importance import Importance
from training.evaluation.report import Report, day_ranges, param_text, write_report
from training.evaluation.stage import evaluate
from training.inference.bundle import load_bundle
from training.loop.training_curves import read_history
from training.models.footprint import Footprint, footprint_of

METRICS = {
    "auc",
    "logloss",
    "normalized_entropy",
    "ece",
    "calibration_ratio",
    "accuracy",
    "num_rows",
    "label_rate",
    "mean_score",
}
INTERVAL = {
    f"{name}_{end}" for name in ("auc", "logloss", "calibration_ratio") for end in ("low", "high")
}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    root = tmp_path_factory.mktemp("report")
    params = make_project(root, log_lines(NUM_ROWS, 5), name="a<script>.tsv")
    make_bundle(root, params)
    evaluate(params, root)
    return root, params


def in_memory(rows: pl.DataFrame) -> metrics.Metrics:
    return metrics.metrics_of_rows(rows["label"].to_numpy(), rows["score"].to_numpy())


def test_metrics_json_agrees_with_the_scores(evaluated: tuple[Path, Params]) -> None:
    directory = evaluated[0] / EVALUATION
    written = json.loads((directory / "metrics.json").read_text())
    model = load_bundle(evaluated[0] / MODEL).model
    assert written.pop("footprint") == asdict(footprint_of(model))
    assert {split: set(values) for split, values in written.items()} == dict.fromkeys(
        ("valid", "test"), METRICS | INTERVAL
    )
    for split, values in written.items():
        rows = pl.read_parquet(directory / "scores.parquet").filter(split=split)
        assert rows["row"].to_list() == list(range(NUM_TEST))
        assert {name: values[name] for name in METRICS} == in_memory(rows)
        labels = pl.read_parquet(evaluated[0] / FEATURES / split / "day_006.parquet")["label"]
        assert rows["label"].equals(labels)
    assert written["test"]["auc_low"] < written["test"]["auc"] < written["test"]["auc_high"]


def test_plots_are_small_tables(evaluated: tuple[Path, Params]) -> None:
    tables = {
        path.stem: pl.read_csv(path) for path in (evaluated[0] / EVALUATION / "plots").iterdir()
    }
    assert {name: table.columns for name, table in tables.items()} == {
        "train": ["step", "loss", "accuracy"],
        "valid": ["step", "loss", "accuracy", "auc"],
        "roc": ["fpr", "tpr"],
        "calibration": ["mean_score", "click_rate", "num_rows"],
        "importance": ["column", "kind", "logloss_rise", "standard_error"],
        "days": tables["days"].columns,
        "frequency_buckets": tables["frequency_buckets"].columns,
    }
    for name in ("day", "frequency_bucket"):
        assert {*tables[f"{name}s"].columns} == {"split", name} | METRICS | INTERVAL
    assert all(0 < table.height <= 500 for table in tables.values())
    assert tables["calibration"]["num_rows"].sum() == NUM_TEST


def parsed(root: Path) -> Page:
    return parsed_html((root / EVALUATION / "report.html").read_text())


def rendered(
    root: Path,
    target: Path,
    operators: pl.DataFrame | None = None,
    plan: Sequence[TablePlacement] = (),
    **data: Any,
) -> Page:
    """Render the report of a run without frequency buckets.

    Args:
        root: The project folder of an evaluated run.
        target: The page.
        operators: The profile of the run.
        plan: The placement of its tables.
        data: Keys of data.json that replace those of the run.
    """
    overall = json.loads((root / EVALUATION / "metrics.json").read_text())
    footprint = Footprint(**overall.pop("footprint"))
    rows = pl.read_parquet(root / EVALUATION / "scores.parquet").filter(split="test")
    report = Report(
        bundle=load_bundle(root / MODEL),
        data=json.loads((root / FEATURES / "data.json").read_text()) | data,
        history=read_history(root / MODEL / HISTORY),
        footprint=footprint,
        metrics=overall,
        metrics_by_day={split: {6: overall[split]} for split in ("valid", "test")},
        buckets=None,
        test_metrics_by_bucket={},
        test_sums=metrics.sums_of_rows(rows["label"].to_numpy(), rows["score"].to_numpy()),
        importance=Importance(0, [], []),
        operators=operators,
        plan=plan,
    )
    write_report(target, report)
    return parsed_html(target.read_text())


def test_the_page_shows_the_importance_of_columns(
    evaluated: tuple[Path, Params], tmp_path: Path
) -> None:
    texts = parsed(evaluated[0]).texts
    table = pl.read_csv(evaluated[0] / EVALUATION / "plots/importance.csv")
    assert table.height == 39
    assert {f"{rise:.5f}" for rise in table["logloss_rise"]} <= set(texts)
    assert [text for text in texts if text.startswith("{name: per_column, dims: {C")]
    assert "Importance of the columns" in texts
    without = rendered(evaluated[0], tmp_path / "report.html").texts
    assert "Importance of the columns" not in without


def test_the_page_needs_no_other_file_and_shows_the_metrics(evaluated: tuple[Path, Params]) -> None:
    page = parsed(evaluated[0])
    written = json.loads((evaluated[0] / EVALUATION / "metrics.json").read_text())
    html = (evaluated[0] / EVALUATION / "report.html").read_text()
    assert page.loads == []
    assert not page.tags & {"script", "link", "img", "iframe", "object"}
    # Nothing is loaded, and no placeholder colour is left.
    assert not re.search(r"url\((?!#)|@import|<metadata|#0[1-7]0", html)
    assert len(html) < 400_000
    assert {
        f"{written['test'][name]:.4f}" for name in ("auc", "logloss", "normalized_entropy", "ece")
    } <= set(page.texts)
    assert {"C26", "I13", "train", "validation", "test", "unseen or rare", "10–99"} <= set(
        page.texts
    )
    footprint = written["footprint"]
    assert {f"{footprint[name]:,}" for name in ("parameters", "macs", "bytes_per_row")} <= set(
        page.texts
    )
    assert any(re.fullmatch(r"Quality by frequency of C\d+", text) for text in page.texts)
    assert "Top operators" not in page.texts
    # The name of the log is escaped: it is a text and not an element.
    assert any(text.endswith("a<script>.tsv") for text in page.texts)


def test_the_same_inputs_give_the_same_bytes(evaluated: tuple[Path, Params]) -> None:
    root, params = evaluated
    first = {
        path.name: path.read_bytes() for path in (root / EVALUATION).rglob("*") if path.is_file()
    }
    evaluate(params, root)
    assert first == {
        path.name: path.read_bytes() for path in (root / EVALUATION).rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("label", ["0", "1"])
def test_test_rows_of_one_class_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], label: str
) -> None:
    lines = log_lines(NUM_ROWS, 6)[:-NUM_TEST] + log_lines(NUM_TEST, 7, label)
    params = make_project(tmp_path, lines)
    make_bundle(tmp_path, params)
    evaluate(params, tmp_path)
    written = json.loads((tmp_path / EVALUATION / "metrics.json").read_text())
    assert [
        written["test"][name] for name in ("auc", "normalized_entropy", "auc_low", "auc_high")
    ] == [None] * 4
    assert (written["test"]["calibration_ratio"] is None) == (label == "0")
    assert written["valid"]["auc"] is not None
    assert f"every test row has label {label}" in capsys.readouterr().out
    parsed(tmp_path)


def test_features_of_another_run_are_refused(
    evaluated: tuple[Path, Params], tmp_path: Path
) -> None:
    params = make_project(tmp_path, log_lines(NUM_ROWS, 8))
    (tmp_path / "artifacts/model").symlink_to(evaluated[0] / "artifacts/model")
    with pytest.raises(DataError, match="not the feature state that model"):
        evaluate(params, tmp_path)
    assert not (tmp_path / EVALUATION).exists()


def a_day(day: int, **columns: dict[str, float | None]) -> dict[str, Any]:
    empty = {"missing": 0.0, "unseen": None, "distinct": None, "drift": None}
    values = {
        "day": day,
        "name": f"day<{day}>.tsv",
        "num_rows": 10,
        "num_bad_rows": 1,
        "label_rate": 0.5,
        "split_rows": {"train": 10},
    }
    return values | {
        "window": {"num_rows": 90, "label_rate": 0.25},
        "columns": {name: empty | column for name, column in columns.items()},
    }


def a_column(name: str, kind: str = "categorical") -> dict[str, Any]:
    shares = dict.fromkeys(
        ("distinct", "cardinality", "unseen_train", "unseen_valid", "unseen_test")
    )
    return {"name": name, "kind": kind, "missing": 0.0, **shares}


def test_the_page_shows_the_data_of_a_run(evaluated: tuple[Path, Params]) -> None:
    page = parsed(evaluated[0])
    data = json.loads((evaluated[0] / FEATURES / "data.json").read_text())
    assert {"Drift of each day", "Unseen values,", "Missing values,", "Distinct values"} <= set(
        page.texts
    )
    assert f"{data['days'][3]['columns']['C26']['distinct']:,}" in page.texts
    assert f"{100 * data['days'][0]['columns']['C26']['unseen']:.0f}" in page.texts
    assert "Vocabularies" not in page.texts  # a log of one file has no growth
    assert not any("The data gate" in text for text in page.texts)


def test_warnings_come_first_and_a_long_list_is_folded(
    evaluated: tuple[Path, Params], tmp_path: Path
) -> None:
    lines = [f"day_{k}.tsv: <b>{k}</b> lacking" for k in range(11)]
    page = rendered(evaluated[0], tmp_path / "many.html", warnings=lines)
    assert "The data gate has 11 warnings." in page.texts
    assert "3 more" in page.texts
    assert [text for text in page.texts if text in lines] == lines  # escaped
    assert page.texts.index(lines[0]) < page.texts.index("AUC")
    assert (
        "The data gate has one warning."
        in rendered(evaluated[0], tmp_path / "one.html", warnings=lines[:1]).texts
    )


def test_thirty_days_without_dense_columns_and_unseen_ids(
    evaluated: tuple[Path, Params], tmp_path: Path
) -> None:
    """A log like Avazu with the layout of the preset dlrm-kaggle; one day has no rows."""
    columns = [f"site_{i}" for i in range(40)]
    days = [
        a_day(day, **{name: {"drift": 0.01 * day, "distinct": 12} for name in columns})
        for day in range(30)
    ]
    days[7] |= {"num_rows": 0, "label_rate": None, "split_rows": {}, "columns": {}}
    page = rendered(
        evaluated[0],
        tmp_path / "report.html",
        days=days,
        columns=[a_column(name) for name in columns],
    )
    assert {"Drift of each day", "site_39", "0.29", "29 · day<29>.tsv"} <= set(page.texts)
    assert not {"Unseen values,", "Missing values,", "dense column", "unseen, test"} & set(
        page.texts
    )
    assert (tmp_path / "report.html").stat().st_size < 600_000


def test_only_the_last_of_many_days_are_shown(
    evaluated: tuple[Path, Params], tmp_path: Path
) -> None:
    days = [a_day(day, site={"drift": 0.5, "unseen": 0.5}) for day in range(2000)]
    page = rendered(evaluated[0], tmp_path / "report.html", days=days, columns=[a_column("site")])
    shown = [text for text in page.texts if " · day<" in text]
    assert shown == [f"{day} · day<{day}>.tsv" for day in range(1900, 2000)]
    assert any("in 2000 days" in text and "last 100 days are shown" in text for text in page.texts)
    assert (tmp_path / "report.html").stat().st_size < 600_000


def test_the_growth_of_each_vocabulary_is_shown(
    evaluated: tuple[Path, Params], tmp_path: Path
) -> None:
    days = [f"day_{k}.tsv" for k in range(5)]
    vocabulary = {
        "days": days,
        "sizes": {"C2": [100, 150, 150]},
        "last_seen": {"C2": [11, 0, 22, 33, 84]},
    }
    page = rendered(evaluated[0], tmp_path / "report.html", vocabulary=vocabulary)
    at = page.texts.index("Vocabularies")
    texts = [text for text in page.texts[at:] if text][:14]
    assert texts[2:] == [
        "column",
        "values at first",
        "now",
        "growth",
        "not in the last day",
        "not in the last 3 days",
        "C2",
        "100",
        "150",
        "50.0%",
        "66",
        "11",
    ]
    assert values_not_seen(vocabulary, (1, 4, 5)) == {1: {"C2": 66}, 4: {"C2": 11}}


def test_the_page_shows_the_operators_that_took_the_most_time(
    evaluated: tuple[Path, Params], tmp_path: Path
) -> None:
    """The operators are sorted by GPU time if there is any, else by CPU time."""
    names = [f"aten::<{k}>" for k in range(30)]
    times = {
        "calls": [1200] * 30,
        "cpu_time_us": [1500 * k for k in range(30)],
        "cpu_share": [0.01] * 30,
    }
    operators = pl.DataFrame({"operator": names, **times})
    page = rendered(evaluated[0], tmp_path / "cpu.html", operators)
    assert [text for text in page.texts if text in names] == names[:9:-1]
    assert {"Top operators", "1,200", "43.50", "1.0%"} <= set(page.texts)
    assert "GPU time, ms" not in page.texts
    with_gpu = rendered(
        evaluated[0],
        tmp_path / "gpu.html",
        operators.with_columns(cuda_time_us=pl.Series(range(30, 0, -1))),
    )
    assert [text for text in with_gpu.texts if text in names] == names[:20]
    assert {"GPU time, ms", "0.03"} <= set(with_gpu.texts)


def test_the_page_shows_the_placement_of_the_tables(
    evaluated: tuple[Path, Params], tmp_path: Path
) -> None:
    plan = [
        TablePlacement("small", 3, 4, "replicated", [48, 48]),
        TablePlacement("large", 1 << 20, 4, "table_wise", [0, 16 << 20]),
    ]
    page = rendered(evaluated[0], tmp_path / "plan.html", plan=plan)
    assert [text for text in page.texts if text in ("small", "large")] == ["large", "small"]
    assert {
        "table_wise",
        "16.000",
        "1,048,576",
        "2 ranks with 0.000 to 16.000 MiB each; imbalance 2.00",
    } <= set(page.texts)
    assert not {"table_wise", "Placement of the embedding tables"} & set(parsed(evaluated[0]).texts)


def test_the_colour_depth_of_a_heat_map_follows_its_values() -> None:
    days = [
        a_day(0, a={"drift": 0.25, "missing": 0.004}, b={}),
        a_day(1, a={"drift": 7.0, "missing": 1.0}, b={"distinct": 1234}),
    ]
    maps = heat_maps({"columns": [a_column("a", "dense"), a_column("b")], "days": days})
    assert list(maps) == ["drift", "missing", "distinct"]
    assert list(maps["drift"].rows) == ["a"]
    assert [(cell.text, cell.depth) for cell in maps["drift"].rows["a"]] == [
        ("0.25", 0.5),
        ("7.00", 1),
    ]
    assert [(cell.text, cell.depth) for cell in maps["missing"].rows["a"]] == [
        ("0", 0),
        ("100", 1),
    ]
    assert [cell.text for cell in maps["distinct"].rows["b"]] == ["–", "1,234"]


def test_formats_of_numbers() -> None:
    assert day_ranges([0, 1, 2, 5]) == "0–2, 5"
    assert [share(number) for number in (None, 0.0, 0.0004, 0.0006, 0.5, 1.0)] == [
        "–",
        "0.0%",
        "< 0.1%",
        "0.1%",
        "50.0%",
        "100.0%",
    ]
    assert param_text({"lr": 0.02, "name": "sgd"}) == "sgd, lr 0.02"
    assert param_text([512, 256]) == "512, 256"
    assert param_text(False) == "false"
