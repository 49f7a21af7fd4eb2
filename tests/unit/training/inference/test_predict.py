"""Raw rows are scored by the bundle alone, just as evaluation scored them; malformed ones are told, none is lost."""

import gzip
from pathlib import Path

import polars as pl
import pytest

from common.bundle_layout import MODEL
from common.files import DataError
from tests.factories.models import NUM_ROWS, NUM_TEST, log_lines, make_bundle, make_features
from tests.factories.support import real_log
from training.evaluation.stage import EVALUATION, evaluate
from training.inference.predict import predict

LINES = log_lines(NUM_ROWS, 4)
TEST_LINES = LINES[-NUM_TEST:]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("predict")
    params = make_features(made, LINES)
    make_bundle(made, params)
    evaluate(params, made)
    return made


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
    found = run(root, tmp_path, TEST_LINES if labelled else unlabelled(TEST_LINES), zipped=zipped)
    assert found.schema == {"line": pl.UInt64, "score": pl.Float32}
    assert found["line"].to_list() == list(range(1, NUM_TEST + 1))
    assert found["score"].equals(evaluated["score"])
    assert found["score"].n_unique() > NUM_TEST / 2
    assert not (tmp_path / "scores.bad_rows.parquet").exists()


def test_malformed_rows_are_told_and_the_others_keep_their_lines(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = run(root, tmp_path, TEST_LINES)
    spoiled = list(TEST_LINES)
    spoiled[4], spoiled[9] = "1\t2\t3", TEST_LINES[9].replace("\t", "\tx", 1)
    found = run(root, tmp_path, spoiled)
    bad = pl.read_parquet(tmp_path / "scores.bad_rows.parquet")
    assert bad["line"].to_list() == [5, 10]
    assert bad["raw"].to_list() == [spoiled[4].encode(), spoiled[9].encode()]
    assert found.equals(clean.filter(~pl.col("line").is_in([5, 10])))
    out = capsys.readouterr().out
    assert "298 labelled rows scored by model" in out
    assert "2 malformed rows without a score" in out
    run(root, tmp_path, TEST_LINES)
    assert not (tmp_path / "scores.bad_rows.parquet").exists()  # the old run's


def test_a_log_of_other_columns_is_refused_and_leaves_nothing(root: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="40 columns with the label or 39 without it expected, found 3"
    ):
        run(root, tmp_path, ["a\tb\tc"] * 5)
    assert [path.name for path in tmp_path.iterdir()] == ["raw.tsv"]


def test_a_broken_end_leaves_no_half_written_scores(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "raw.tsv.gz"
    path.write_bytes(gzip.compress("\n".join(TEST_LINES).encode())[:-20])
    with pytest.raises(DataError, match="gzip"):
        predict(root / MODEL, path, tmp_path / "scores.parquet")
    assert [file.name for file in tmp_path.iterdir()] == ["raw.tsv.gz"]


def test_missing_input_and_output_folder_are_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--input .*nowhere: no such file"):
        predict(root / MODEL, tmp_path / "nowhere", tmp_path / "scores.parquet")
    with pytest.raises(DataError, match="--output"):
        predict(root / MODEL, root / "log.tsv", tmp_path / "no" / "scores.parquet")


def test_real_unlabelled_rows(root: Path, tmp_path: Path) -> None:
    log = real_log("criteo/kaggle_test_unlabelled_3k.tsv")
    predict(root / MODEL, log, tmp_path / "scores.parquet")
    found = pl.read_parquet(tmp_path / "scores.parquet")
    assert found.height == len(log.read_bytes().splitlines())
    assert found["score"].is_between(0, 1).all()
