"""Predict scores raw rows as evaluation does, and reports malformed rows."""

import gzip
import shutil
from pathlib import Path

import polars as pl
import pytest
from safetensors.torch import load_file, save_file

from common.bundle_layout import MANIFEST, MODEL, WEIGHTS
from common.checked_json import write_checked_json
from common.files import DataError, read_json, sha256_file
from common.layout import EVALUATION
from tests.factories.models import (
    NUM_ROWS,
    NUM_TEST,
    log_lines,
    make_bundle,
    make_project,
    small_params,
)
from tests.factories.support import real_log
from training.evaluation.stage import evaluate
from training.inference.predict import predict

LINES = log_lines(NUM_ROWS, 4)
TEST_LINES = LINES[-NUM_TEST:]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict")
    params = make_project(folder, LINES)
    make_bundle(folder, params)
    evaluate(params, folder)
    return folder


def unlabelled(lines: list[str]) -> list[str]:
    return [line.partition("\t")[2] for line in lines]


def run(root: Path, directory: Path, lines: list[str], *, zipped: bool = False) -> pl.DataFrame:
    text = ("\n".join(lines) + "\n").encode()
    path = directory / ("raw.tsv.gz" if zipped else "raw.tsv")
    path.write_bytes(gzip.compress(text) if zipped else text)
    predict(root / MODEL, path, directory / "scores.parquet")
    return pl.read_parquet(directory / "scores.parquet")


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("labelled", [False, True])
def test_predict_and_evaluation_agree_bit_for_bit(
    root: Path, tmp_path: Path, labelled: bool, zipped: bool
) -> None:
    evaluated = pl.read_parquet(root / EVALUATION / "scores.parquet").filter(split="test")
    scores = run(root, tmp_path, TEST_LINES if labelled else unlabelled(TEST_LINES), zipped=zipped)
    assert scores.schema == {"line": pl.UInt64, "score": pl.Float32}
    assert scores["line"].to_list() == list(range(1, NUM_TEST + 1))
    assert scores["score"].equals(evaluated["score"])
    assert scores["score"].n_unique() > NUM_TEST / 2
    assert not (tmp_path / "scores.bad_rows.parquet").exists()


def test_malformed_rows_are_reported_and_the_others_keep_their_line_numbers(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = run(root, tmp_path, TEST_LINES)
    damaged = list(TEST_LINES)
    damaged[4], damaged[9] = "1\t2\t3", TEST_LINES[9].replace("\t", "\tx", 1)
    scores = run(root, tmp_path, damaged)
    bad = pl.read_parquet(tmp_path / "scores.bad_rows.parquet")
    assert bad["line"].to_list() == [5, 10]
    assert bad["raw"].to_list() == [damaged[4].encode(), damaged[9].encode()]
    assert scores.equals(clean.filter(~pl.col("line").is_in([5, 10])))
    out = capsys.readouterr().out
    assert "298 labelled rows scored by model" in out
    assert "2 malformed rows have no score" in out
    run(root, tmp_path, TEST_LINES)
    assert not (
        tmp_path / "scores.bad_rows.parquet"
    ).exists()  # the file of the earlier run is removed


def test_a_log_with_other_columns_is_refused_and_no_file_is_left(
    root: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        DataError, match="40 columns with the label or 39 without it expected, found 3"
    ):
        run(root, tmp_path, ["a\tb\tc"] * 5)
    assert [path.name for path in tmp_path.iterdir()] == ["raw.tsv"]


def test_a_truncated_log_leaves_no_partial_scores(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "raw.tsv.gz"
    path.write_bytes(gzip.compress("\n".join(TEST_LINES).encode())[:-20])
    with pytest.raises(DataError, match="gzip"):
        predict(root / MODEL, path, tmp_path / "scores.parquet")
    assert [file.name for file in tmp_path.iterdir()] == ["raw.tsv.gz"]


def test_a_missing_input_or_output_folder_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--input .*nowhere: no such file"):
        predict(root / MODEL, tmp_path / "nowhere", tmp_path / "scores.parquet")
    with pytest.raises(DataError, match="--output"):
        predict(root / MODEL, root / "log.tsv", tmp_path / "no" / "scores.parquet")


def test_real_unlabelled_rows(root: Path, tmp_path: Path) -> None:
    log = real_log("criteo/kaggle_test_unlabelled_3k.tsv")
    predict(root / MODEL, log, tmp_path / "scores.parquet")
    scores = pl.read_parquet(tmp_path / "scores.parquet")
    assert scores.height == len(log.read_bytes().splitlines())
    assert scores["score"].is_between(0, 1).all()


def test_a_score_that_is_no_number_ends_predict_and_evaluation_with_its_row(
    root: Path, tmp_path: Path
) -> None:
    """The weights are finite, but their products are not; scores of 0 and 1 would look right."""
    shutil.copytree(root / "artifacts", tmp_path / "artifacts")
    directory = tmp_path / MODEL
    tensors = load_file(directory / WEIGHTS)
    tensors["top.4.weight"][:] = 3e38
    save_file(tensors, directory / WEIGHTS)
    manifest = read_json(directory / MANIFEST)
    manifest["files"][WEIGHTS] = sha256_file(directory / WEIGHTS)
    write_checked_json(directory / MANIFEST, manifest)
    with pytest.raises(DataError, match=r"raw\.tsv: line \d+: model \w+ computes -?(inf|nan)"):
        run(tmp_path, tmp_path, TEST_LINES)
    assert not (tmp_path / "scores.parquet").exists()
    with pytest.raises(DataError, match=r"features/valid: row \d+: model \w+ computes"):
        evaluate(small_params(tmp_path / "log.tsv"), tmp_path)
