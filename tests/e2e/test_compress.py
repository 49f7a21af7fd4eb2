"""`clickmill compress` and `clickmill predict`, as a user calls them."""

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from common.bundle_layout import MODEL
from tests.factories.html_pages import parsed_html
from tests.factories.models import NUM_ROWS, log_lines, make_bundle, make_project
from training.inference.bundle import load_bundle

CLICKMILL = str(Path(sys.executable).with_name("clickmill"))


def clickmill(root: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [CLICKMILL, *arguments], cwd=root, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_a_bundle_is_compressed_and_predicts(tmp_path: Path) -> None:
    version = make_bundle(tmp_path, make_project(tmp_path, log_lines(NUM_ROWS, 1)))
    steps = ("--bits", "8", "--rows", "0.5", "--units", "0.25")
    run = clickmill(tmp_path, "compress", "--model", str(MODEL), "--output", "runs/small", *steps)
    assert run.returncode == 0, run.stderr
    small = load_bundle(tmp_path / "runs/small")
    assert f"model {small.version}: " in run.stdout
    assert "bundle: runs/small; report: runs/small.html" in run.stdout
    page = parsed_html((tmp_path / "runs/small.html").read_text())
    assert (
        f"Model {version}, compressed: int8, 50% of the rows left out, 25% of the units removed"
        in page.texts
    )
    for model, output in ((str(MODEL), "large.csv"), ("runs/small", "small.csv")):
        run = clickmill(
            tmp_path, "predict", "--model", model, "--input", "log.tsv", "--output", output
        )
        assert run.returncode == 0, run.stderr
    large, scores = (pl.read_csv(tmp_path / name)["score"] for name in ("large.csv", "small.csv"))
    assert len(scores) == NUM_ROWS
    assert scores.is_between(0, 1).all()
    assert not scores.equals(large)
    again = ("compress", "--model", "runs/small", "--output", "runs/smaller", *steps)
    run = clickmill(tmp_path, *again)
    assert run.returncode == 65
    assert run.stderr.startswith("clickmill: error: runs/small: compressed already; name the")
    assert run.stderr.count("\n") == 1
    run = clickmill(tmp_path, "compress", "--model", str(MODEL), "--output", "b", "--bits", "7")
    assert run.returncode == 2
    assert "'7' is not one of" in run.stderr
