"""The decisions of the flow `nightly` that need no stage."""

import os
from pathlib import Path
from typing import Any

import pytest

from common.fault_file import Fault
from common.subprocess_tree import CommandFailed
from features.collect.stage import SOURCE_HOME
from flows.dvc_stages import StageFailed
from flows.nightly.clone import set_param
from flows.nightly.flow import (
    decide_outcome,
    find_reasons,
    make_plan,
    prepare_clone,
    source_relative_to,
    train,
)
from flows.nightly.log_changes import find_log_changes
from flows.nightly.record import PRODUCTION, Outcome
from flows.nightly.repository import NightlyRepository
from tests.factories.nightly_runs import NOW, finish_run, make_repository

PASSED: dict[str, Any] = {"promote": True, "reasons": []}
FAILED: dict[str, Any] = {"promote": False, "reasons": ["auc: worse"]}


@pytest.mark.parametrize(
    ("has_new_model", "refusal", "decision", "outcome", "reasons"),
    [
        (True, None, PASSED, "promoted", []),
        (True, None, FAILED, "rejected", ["auc: worse"]),
        (False, None, None, "nothing new", []),
        (False, "empty file", None, "rejected", ["empty file"]),
        (True, "empty file", None, "rejected", ["empty file"]),
    ],
)
def test_outcome(
    has_new_model: bool,
    refusal: str | None,
    decision: dict[str, Any] | None,
    outcome: Outcome,
    reasons: list[str],
) -> None:
    assert decide_outcome(has_new_model, refusal, decision) == outcome
    assert find_reasons(refusal, decision) == reasons


def test_log_changes() -> None:
    before = {"day_1": "a", "day_3": "c", "day_10": "j"}
    now = {"day_1": "a", "day_2": "b", "day_3": "C", "day_11": "k", "day_12": "k"}
    assert find_log_changes(before, now, {"day_12": "day_11", "day_1": "day_0"}) == {
        "new": ["day_11", "day_12"],
        "late": ["day_2"],
        "delivered again": ["day_3"],
        "removed": ["day_10"],
        "duplicate": ["day_12 (as day_11)"],
    }
    assert find_log_changes(now, now, {}) == {}


def test_a_run_begins_with_the_last_run_whose_log_ends_no_later(tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "repository")
    assert repository.base_for(None) is None
    for number in (9, 10):  # their log files are day_9 and day_10
        finish_run(repository, number, "promoted", NOW)
    bases = {until: repository.base_for(until) for until in (None, "day_10", "day_9", "day_8")}
    assert {until: base and base.number for until, base in bases.items()} == {
        None: 10,
        "day_10": 10,
        "day_9": 9,
        "day_8": None,
    }


@pytest.mark.parametrize("killed_after", ["record", "register", "assign"])
def test_records_are_applied_from_every_point_at_which_a_run_can_be_killed(
    tmp_path: Path, killed_after: str
) -> None:
    """Only the tag of the run is left, or also its model's version, or also the assignment."""
    repository = make_repository(tmp_path / "repository")
    version = finish_run(repository, 1, "promoted", NOW)
    tags = repository.git.tags("*")
    (repository.root / "artifacts/production").unlink()
    if killed_after != "assign":
        repository.git.run("tag", "--delete", "dlrm#production#1")
    if killed_after == "record":
        repository.git.run("tag", "--delete", "dlrm@v1.0.0")
    fresh = NightlyRepository(repository.root)
    fresh.apply_records()
    assert fresh.git.tags("*") == tags
    assert fresh.production_version() == version
    assert (fresh.root / "artifacts/production").resolve().name == version


@pytest.mark.parametrize("before", [None, "/elsewhere"])
def test_a_relative_source_is_resolved_from_the_repository(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, before: str | None
) -> None:
    monkeypatch.delenv(SOURCE_HOME, raising=False)
    if before:
        monkeypatch.setenv(SOURCE_HOME, before)
    with source_relative_to(tmp_path):
        assert os.environ[SOURCE_HOME] == str(tmp_path)
    assert os.environ.get(SOURCE_HOME) == before


def test_a_run_uses_the_commit_of_its_beginning(tmp_path: Path) -> None:
    """HEAD moves while it works: neither its clone nor the model before are of the new commit."""
    repository = make_repository(tmp_path / "repository")
    head = repository.git.run("rev-parse", "HEAD")
    plan = make_plan(repository, None)
    repository.git.commit("moved", "--allow-empty")
    (repository.root / "params.yaml").write_text("not: committed")
    clone = prepare_clone(repository, plan)
    assert (plan.commit, plan.base_ref) == (head, head)
    assert clone.git.run("rev-parse", "HEAD") == head
    assert (clone.root / "params.yaml").read_text() != "not: committed"
    finish_run(repository, 1, "promoted", NOW)
    assert make_plan(repository, None).base_ref == "night/0001"


def test_there_is_no_champion_to_learn_from_yet(tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "repository")
    for teacher, is_kept in ((str(PRODUCTION), False), ("/elsewhere", True)):
        set_param(repository.root, "train", "distill", {"teachers": [teacher], "weight": 0.5})
        repository.git.commit("distil", "--all")
        clone = prepare_clone(repository, make_plan(repository, None))
        assert (clone.load_params().train.distill is not None) == is_kept


@pytest.mark.parametrize("code", [os.EX_DATAERR, os.EX_CONFIG])
def test_a_run_whose_teacher_is_refused_trains_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    repository = make_repository(tmp_path / "repository")
    clone = prepare_clone(repository, make_plan(repository, None))
    clone.set_param("train", "distill", {"teachers": ["/elsewhere"], "weight": 0.5})
    taught = []

    def run_stage(stage: str, root: Path) -> None:
        taught.append(clone.load_params().train.distill is not None)
        if taught[-1]:
            failed = CommandFailed(["clickmill", "stage", stage], code, [])
            raise StageFailed(stage, failed, Fault("it has other features", code))

    monkeypatch.setattr("flows.nightly.flow.run_stage", run_stage)
    if code == os.EX_CONFIG:  # not the teacher's fault
        with pytest.raises(StageFailed, match="it has other features"):
            train(clone)
        assert taught == [True]
        return
    (warning,) = train(clone)
    assert taught == [True, False]
    assert warning.startswith("trained from scratch on all days, without teachers: ")
    assert warning.endswith("it has other features")
