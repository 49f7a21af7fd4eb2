"""Evaluation's files: the figures, the curves, and one page that needs nothing but itself."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest

from features.build import FEATURES
from features.files import DataError
from features.params import Params
from tests.unit.made import NUM_ROWS, NUM_TEST, log_lines, make_bundle, make_features
from training import metrics
from training.evaluate import EVALUATION, evaluate
from training.report import share, spans, value

FIGURES = {"auc", "logloss", "normalized_entropy", "ece", "accuracy", "num_rows"}
INTERVAL = {"auc_low", "auc_high", "logloss_low", "logloss_high"}
VOID = {"meta", "br", "use", "path"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    root = tmp_path_factory.mktemp("report")
    params = make_features(root, log_lines(NUM_ROWS, 5), name="a<script>.tsv")
    make_bundle(root, params)
    evaluate(params, root)
    return root, params


def test_metrics_json_is_what_the_scores_say(made: tuple[Path, Params]) -> None:
    directory = made[0] / EVALUATION
    found = json.loads((directory / "metrics.json").read_text())
    assert {split: set(values) for split, values in found.items()} == {"valid": FIGURES, "test": FIGURES | INTERVAL}
    for split, values in found.items():
        rows = pl.read_parquet(directory / "scores.parquet").filter(split=split)
        assert rows["row"].to_list() == list(range(NUM_TEST))
        assert {name: values[name] for name in FIGURES} == metrics.summary(rows["label"].to_numpy(), rows["score"].to_numpy())
        labels = pl.read_parquet(made[0] / FEATURES / split / "day_06.parquet")["label"]
        assert rows["label"].equals(labels)
    assert found["test"]["auc_low"] < found["test"]["auc"] < found["test"]["auc_high"]


def test_plots_are_small_tables(made: tuple[Path, Params]) -> None:
    tables = {path.stem: pl.read_csv(path) for path in (made[0] / EVALUATION / "plots").iterdir()}
    assert {name: table.columns for name, table in tables.items()} == {
        "train": ["step", "loss", "accuracy"],
        "valid": ["step", "loss", "accuracy"],
        "roc": ["fpr", "tpr"],
        "calibration": ["mean_score", "click_rate", "num_rows"],
    }
    assert all(0 < table.height <= 500 for table in tables.values())
    assert tables["calibration"]["num_rows"].sum() == NUM_TEST


class Page(HTMLParser):
    """Checks that every element is closed in order, and gathers texts and what could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.loads: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [text or "" for name, text in attrs if name in {"src", "href", "xlink:href"} and not (text or "").startswith("#")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def parsed(root: Path) -> Page:
    page = Page()
    page.feed((root / EVALUATION / "report.html").read_text())
    page.close()
    assert page.open == []
    return page


def test_the_page_stands_alone_and_tells_the_figures(made: tuple[Path, Params]) -> None:
    page = parsed(made[0])
    found = json.loads((made[0] / EVALUATION / "metrics.json").read_text())
    html = (made[0] / EVALUATION / "report.html").read_text()
    assert page.loads == []
    assert not page.tags & {"script", "link", "img", "iframe", "object"}
    assert not re.search(r"url\((?!#)|@import|<metadata|#0[1-6]0", html)  # nothing fetched; no placeholder colour left
    assert html.count("<svg") == 7
    assert len(html) < 400_000
    assert {f"{found['test'][name]:.4f}" for name in ("auc", "logloss", "normalized_entropy", "ece")} <= set(page.texts)
    assert {"C26", "I13", "train", "validation", "test", "weights kept"} <= set(page.texts)
    assert any(text.endswith("a<script>.tsv") for text in page.texts)  # escaped: a text, not an element


def test_the_same_inputs_give_the_same_bytes(made: tuple[Path, Params]) -> None:
    root, params = made
    first = {path.name: path.read_bytes() for path in (root / EVALUATION).rglob("*") if path.is_file()}
    evaluate(params, root)
    assert first == {path.name: path.read_bytes() for path in (root / EVALUATION).rglob("*") if path.is_file()}


@pytest.mark.parametrize("label", ["0", "1"])
def test_one_class_of_test_rows_is_told_not_fatal(tmp_path: Path, capsys: pytest.CaptureFixture[str], label: str) -> None:
    lines = log_lines(NUM_ROWS, 6)[:-NUM_TEST] + log_lines(NUM_TEST, 7, label)
    params = make_features(tmp_path, lines)
    make_bundle(tmp_path, params)
    evaluate(params, tmp_path)
    found = json.loads((tmp_path / EVALUATION / "metrics.json").read_text())
    assert [found["test"][name] for name in ("auc", "normalized_entropy", "auc_low", "auc_high")] == [None] * 4
    assert found["valid"]["auc"] is not None
    assert f"every test row has label {label}" in capsys.readouterr().out
    parsed(tmp_path)


def test_features_of_another_run_are_refused(made: tuple[Path, Params], tmp_path: Path) -> None:
    params = make_features(tmp_path, log_lines(NUM_ROWS, 8))
    (tmp_path / "artifacts/model").symlink_to(made[0] / "artifacts/model")
    with pytest.raises(DataError, match="not the feature state that model"):
        evaluate(params, tmp_path)
    assert not (tmp_path / EVALUATION).exists()


def test_wording_of_numbers() -> None:
    assert spans([0, 1, 2, 5]) == "0–2, 5"
    assert [share(number) for number in (None, 0.0, 0.0004, 0.0006, 0.5, 1.0)] == ["–", "0.0%", "< 0.1%", "0.1%", "50.0%", "100.0%"]
    assert value({"lr": 0.02, "name": "sgd"}) == "sgd, lr 0.02"
    assert value([512, 256]) == "512, 256"
    assert value(False) == "false"
