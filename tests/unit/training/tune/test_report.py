"""The report and the summary of a study."""

import re
import shutil
from pathlib import Path

import pytest

from common.files import DataError
from tests.factories.html_pages import parsed_html
from tests.factories.studies import InlinePool, make_study, outcome
from tests.factories.support import ROOT
from training.tune.choice import candidates_of
from training.tune.confirm import confirm
from training.tune.latency import Latency
from training.tune.outcome import Outcome
from training.tune.report import write_report
from training.tune.study import Study
from training.tune.study_files import SUMMARY, read_summary
from training.tune.summary import Summary
from training.tune.trial import Task

REASON = "Diverged: <b>loss</b> nan"


def run(task: Task) -> Outcome:
    """Return an outcome that gets better with the rate, of which trial 1 fails and trial 2 stops."""
    if task.title == "trial 1":
        return Outcome(result=None, error=REASON)
    lr, dim = task.params.train.dense_optimizer.lr, task.params.model.embedding_dim
    losses = [0.6, 0.5 - lr + task.params.train.seed / 1000]
    if task.title == "trial 2":
        return outcome(losses[:1], macs=dim, is_stopped=True)
    return outcome(losses, macs=100 * dim)


def summary_of(study: Study, pool: InlinePool) -> Summary:
    with study.opened():
        trials = study.search(pool)
        confirmations = confirm(study, trials, pool)
    by_number = {trial.number: trial for trial in trials}
    candidates = candidates_of(confirmations, by_number, study.tune) if confirmations else []
    latency = Latency(
        trial=None, one_row_us=75.5, one_row_p99_us=99, rows_per_s=1e6, resident_bytes=1 << 20
    )
    return Summary(study.key, study.tune, trials, candidates, [latency])


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """A study beside a params.yaml."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return make_study(tmp_path)


def test_the_report_is_one_whole_page_with_the_same_bytes_twice(study: Study) -> None:
    summary = summary_of(study, InlinePool(2, run))
    path = write_report(study.folder, summary, study.root)
    page = path.read_text(encoding="utf-8")
    assert parsed_html(page).loads == []
    assert write_report(study.folder, summary, study.root).read_text(encoding="utf-8") == page
    best = summary.recommended
    assert best is not None
    assert best.verdict == "better"
    assert f"clickmill adopt {best.trial}" in page
    assert "1 stopped early, 1 failed" in page
    assert "Diverged: &lt;b&gt;loss&lt;/b&gt; nan" in page
    assert re.search(r"-  dense_optimizer: \{name: adam, lr: 0.001\}", page)
    assert "75<small>p99 99</small>" in page or "76<small>p99 99</small>" in page


def test_the_summary_is_for_other_programs(study: Study) -> None:
    summary = summary_of(study, InlinePool(2, run))
    write_report(study.folder, summary, study.root)
    found = read_summary(study.folder)
    assert found["num_trials"] == 8
    assert found["num_failed"] == 1
    assert found["recommended"] == summary.recommended.trial  # type: ignore[union-attr]
    assert [one["trial"] for one in found["front"]] == [one.number for one in summary.front]
    assert found["confirmed"][0]["trial"] is None
    path = study.folder / SUMMARY
    path.write_bytes(path.read_bytes().replace(b"8", b"9", 1))
    with pytest.raises(DataError, match=r"summary\.json is missing or damaged"):
        read_summary(study.folder)


def test_without_confirmation_nothing_is_recommended(tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    study = make_study(tmp_path, confirm=None, objectives=["logloss"])
    summary = summary_of(study, InlinePool(1, run))
    page = write_report(study.folder, summary, study.root).read_text(encoding="utf-8")
    assert summary.recommended is None
    assert "nothing was confirmed" in page
    assert "How to adopt it" not in page
    assert len(summary.front) == 1


def test_importance_finds_the_parameter_that_decides(study: Study) -> None:
    importance = summary_of(study, InlinePool(1, run)).importance
    assert next(iter(importance)) == "train.dense_optimizer.lr"
    assert all(0 <= share <= 1 for share in importance.values())
