"""Damaged but valid JSON of the nightly loop: one line that names file, key, value and remedy.

A value of each file is replaced by odd ones, or its key is removed. The file is then either refused
in one line, or everything that uses it works.
"""

import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from common.artifact import Artifact, write_manifest
from common.config.loading import check_json
from common.files import DataError, read_json, write_json
from common.layout import EVALUATION, FEATURES
from features.quality.gate import FIGURES
from flows.nightly.clone import PURPOSE, Clone, output_hashes
from flows.nightly.health import health
from flows.nightly.history import render_history, write_history
from flows.nightly.log_changes import DATA, read_newest_day, read_warnings
from flows.nightly.model_table import describe_status, format_metrics, show
from flows.nightly.provenance import explain_run
from flows.nightly.record import RECORD, NewDecision, NightlyRun, read_record
from flows.nightly.registry import Assignment
from flows.nightly.repository import NightlyRepository
from tests.factories.nightly_runs import NOW, finish_run, make_decision, make_repository, make_run
from tests.factories.support import make_params
from tests.unit.flows.nightly.test_health import MAX_AGE
from tests.unit.flows.nightly.test_history import trained_run
from training.promotion.checks import calibration_checks, data_gate_checks, skill_check
from training.promotion.decide import DataChecks, _read_bins
from training.promotion.evaluated_test_set import EvaluationMetrics

REMOVED = object()
DEEP: Any = json.loads("[" * 200 + "]" * 200)
ODD: list[Any] = [
    REMOVED,
    None,
    True,
    0,
    -1,
    1.5,
    1e300,
    float("nan"),
    float("inf"),
    10**400,
    "",
    "x",
    "a\nb\x1b[31m[red]",
    "\ud800",
    "../../etc",
    "9999-12-31T23:59:59-23:00",
    "2026-03-04T12:00:00",
    [],
    {},
    [None],
    {"a": None},
    DEEP,
]


def paths_of(value: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in a JSON value, that of the whole first."""
    yield prefix
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    for key in keys:
        yield from paths_of(value[key], (*prefix, key))


def damaged(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield each path with a copy of the value in which it has an odd value."""
    for path in paths_of(value):
        for odd in ODD:
            changed = copy.deepcopy(value)
            if not path:
                if odd is not REMOVED:
                    yield "", odd
                continue
            parent = changed
            for key in path[:-1]:
                parent = parent[key]
            if odd is REMOVED:
                del parent[path[-1]]
            else:
                parent[path[-1]] = odd
            yield ".".join(map(str, path)), changed


def check_refusal(error: DataError, name: str, remedy: str) -> None:
    """Check that the message is one printable line with the file and the remedy."""
    message = str(error)
    assert message.isprintable(), message
    assert message.startswith(name), message
    assert remedy in message
    assert len(message) < 3000


RECORDED = json.loads(trained_run(7, "promoted", "3".zfill(12)).model_dump_json())


def test_every_value_of_a_record_is_checked() -> None:
    """A record that is accepted can be listed, explained and drawn."""
    accepted: list[NightlyRun] = []
    refused = set()
    for path, value in damaged(RECORDED):
        try:
            accepted.append(read_record(json.dumps(value).encode(), "night/0007"))
        except DataError as error:
            check_refusal(error, f"night/0007:{RECORD}", "git tag --delete night/0007")
            refused.add(path)
    needed = {path for path in map(".".join, _text_paths(RECORDED)) if "stage_seconds." not in path}
    assert {path for path in needed - refused if "worse" not in path} == set()
    assert len(accepted) > 100
    for run in accepted:
        if run.decision and run.version:
            format_metrics(run)
        describe_status(run, [])
        assert len(list(explain_run(_no_assignments(), run))) > 2
    numbered = [run.model_copy(update={"number": k}) for k, run in enumerate(accepted, 1)]
    page = render_history(numbered, [Assignment(1, 3, NOW, "why")])
    assert page.count("</tr>") > len(accepted)


def _text_paths(value: dict[str, Any]) -> Iterator[list[str]]:
    for path in paths_of(value):
        if path and all(isinstance(key, str) for key in path):
            yield list(path)


class _no_assignments(NightlyRepository):  # noqa: N801 - a stand-in without a repository
    def __init__(self) -> None:
        pass

    def assignments(self) -> list[Assignment]:
        return []


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 10**5, b"null", b"7", b'"x"'])
def test_a_record_that_is_no_object_is_refused(content: bytes) -> None:
    with pytest.raises(DataError) as refused:
        read_record(content, "night/0007")
    check_refusal(refused.value, f"night/0007:{RECORD}", "git tag --delete night/0007")


def test_every_value_of_a_decision_is_checked() -> None:
    decision, name = make_decision("0" * 12), Path("decision.json")
    num_refused = 0
    for _, value in damaged(decision):
        try:
            check_json(NewDecision, value, name, "start another nightly run")
        except DataError as error:
            check_refusal(error, "decision.json", "start another nightly run")
            num_refused += 1
        else:
            run = make_run(7, "promoted", version="0" * 12, decision=value)
            format_metrics(run)
            assert list(explain_run(_no_assignments(), run))
    assert num_refused > 200


DAY = {
    "name": "day_1",
    "num_rows": 10,
    "num_bad_rows": 1,
    "label_rate": 0.5,
    "columns": {"C1": {"missing": 0.1, "window_missing": 0.2, "unseen": 0.3, "drift": 0.4}},
}
PROFILE = {"days": [DAY], "warnings": ["C1 drifts"], "blocks_promotion": ["C1"]}
METRICS = {
    split: make_decision("0" * 12)["challenger"]
    | {"ece": 0.01, "calibration_ratio": 1.0}
    | {"calibration_ratio_low": 0.9, "calibration_ratio_high": 1.1}
    for split in ("valid", "test")
} | {
    "footprint": {
        "parameters": 9,
        "table_parameters": 4,
        "bytes": 36,
        "macs": 5,
        "bytes_per_row": 16,
    }
}
CALIBRATION = "mean_score,num_rows,label_rate\n0.25,100,0.2\n0.75,200,0.8\n"


def use_metrics(root: Path) -> None:
    evaluation = Artifact.open(root / EVALUATION)
    metrics = EvaluationMetrics.read(evaluation).test.model_dump()
    skill_check(metrics)
    calibration_checks(metrics, _read_bins(evaluation), make_params().promote)


def use_blocking(root: Path) -> None:
    data = Artifact.open(root / FEATURES).read_json(DATA.name)
    checked = check_json(DataChecks, data, root / DATA, "run the features stage again")
    data_gate_checks(checked.blocks_promotion)


USES: dict[str, tuple[Path, Any, list[Callable[[Path], Any]]]] = {
    "data.json": (
        DATA,
        PROFILE,
        [read_warnings, lambda root: read_newest_day(root, refused=False), use_blocking],
    ),
    "figures": (FIGURES, PROFILE, [lambda root: read_newest_day(root, refused=True)]),
    "metrics.json": (EVALUATION / "metrics.json", METRICS, [use_metrics]),
}


@pytest.mark.parametrize("name", USES)
def test_every_value_of_an_artifact_that_the_run_reads_is_checked(
    tmp_path: Path, name: str
) -> None:
    """The manifest says that the file is whole, as if another version had written it."""
    (tmp_path / EVALUATION / "plots").mkdir(parents=True)
    (tmp_path / EVALUATION / "plots/calibration.csv").write_text(CALIBRATION)
    relative, content, uses = USES[name]
    path = tmp_path / relative
    write_json(path, content)
    if relative != FIGURES:
        write_manifest(path.parent, {})
    for use in uses:
        use(tmp_path)
    num_refused = 0
    for _, value in damaged(content):
        path.write_text(json.dumps(value))
        if relative != FIGURES:
            write_manifest(path.parent, {})
        for use in uses:
            try:
                use(tmp_path)
            except DataError as error:
                check_refusal(error, str(path), " again")
                num_refused += 1
    assert num_refused > 50


def test_a_damaged_calibration_is_refused(tmp_path: Path) -> None:
    path = tmp_path / EVALUATION / "plots/calibration.csv"
    path.parent.mkdir(parents=True)

    def read(content: bytes) -> pl.DataFrame:
        path.write_bytes(content)
        write_manifest(tmp_path / EVALUATION, {})
        return _read_bins(Artifact.open(tmp_path / EVALUATION))

    draw, content = random.Random(1), CALIBRATION.encode()
    assert read(content).height == 2
    odd = [b"", b"\n", b"\xff", b"mean_score\n1\n", b"mean_score,num_rows\n", b"a,b\n1,2\n"]
    odd += [content.replace(b"100", new) for new in (b"0", b"-1", b"", b"x", b"1e400")]
    odd += [content.replace(b"0.25", new) for new in (b"NaN", b"inf", b"2", b"", b"-0.1")]
    for changed in odd:
        with pytest.raises(DataError) as refused:
            read(changed)
        check_refusal(refused.value, str(path), "run the evaluate stage again")
    for _ in range(300):
        mutated = bytearray(content)
        mutated[draw.randrange(len(mutated))] = draw.randrange(256)
        try:
            read(bytes(mutated))
        except DataError as error:
            check_refusal(error, str(path), "run the evaluate stage again")


LOCK = """\
schema: '2.0'
stages:
  train:
    cmd: clickmill stage train
    outs:
    - path: artifacts/model
      hash: md5
      md5: 0123456789abcdef0123456789abcdef.dir
"""


def test_a_damaged_dvc_lock_is_refused() -> None:
    assert output_hashes(LOCK, "night/0001") == {
        "artifacts/model": "0123456789abcdef0123456789abcdef.dir"
    }
    assert output_hashes("", "night/0001") == {}
    draw = random.Random(1)
    changes = [LOCK.replace("path: artifacts/model", new) for new in ("", "path: [1]", "path: {")]
    changes += [LOCK.replace("0123456789abcdef", new) for new in ("../..", "", "null")]
    changes += ["[]", "7", "stages: []", "stages: {train: 1}", "<<<<<<< HEAD\n" + LOCK, "a: b: c"]
    for text in changes:
        with pytest.raises(DataError) as refused:
            output_hashes(text, "night/0001")
        check_refusal(refused.value, "night/0001:dvc.lock", "restore it from git")
    for _ in range(300):
        place = draw.randrange(len(LOCK))
        try:
            output_hashes(LOCK[:place] + chr(draw.randrange(256)) + LOCK[place + 1 :], "night/0001")
        except DataError as error:
            check_refusal(error, "night/0001:dvc.lock", "restore it from git")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> NightlyRepository:
    """Three promoted runs. The record of the second is damaged, but valid JSON."""
    repository = make_repository(tmp_path_factory.mktemp("damaged") / "repository")
    for number in (1, 2, 3):
        finish_run(repository, number, "promoted", NOW)
    replace_record(repository, 2, {"decision": {"checks": 7}})
    return repository


def replace_record(repository: NightlyRepository, number: int, changes: dict[str, Any]) -> None:
    """Let the tag of a run name a commit with another record; the commit stays registered."""
    tag = f"night/{number:04d}"
    record = json.loads(repository.git.run("show", f"{tag}:{RECORD}")) | changes
    (repository.root / RECORD).write_text(json.dumps(record))
    repository.git.run("add", RECORD.name)
    tree = repository.git.run("write-tree")
    repository.git.run("rm", "-q", "--cached", RECORD.name)
    (repository.root / RECORD).unlink()
    commit = repository.git.run("commit-tree", "-m", "damaged", tree)
    repository.git.run("tag", "-f", "-a", "-m", "damaged", tag, commit)


def test_one_damaged_record_is_named_and_the_others_are_shown(
    repository: NightlyRepository, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "night/0002:night.json: decision.checks: Input should be a valid list (found 7)"
    (problem,) = health(repository.root, MAX_AGE, NOW).problems
    assert problem.startswith(line)
    assert "git fetch --force REMOTE tag night/0002" in problem
    show(repository.root)
    lines = capsys.readouterr().out.splitlines()
    assert [each.split()[0] for each in lines] == ["model", "v3.0.0", "v1.0.0", line.split()[0]]
    page = write_history(repository).read_text()
    assert "1 record is damaged and not shown." in page
    assert "night/0002:night.json: decision.checks" in page
    assert "2 nightly runs, up to day_3" in page


def test_the_next_run_and_a_rollback_work_with_a_damaged_record(
    repository: NightlyRepository,
) -> None:
    assert repository.next_number() == 4
    base = repository.base_for(None)
    assert base
    assert base.number == 3
    repository.apply_records()
    with pytest.raises(DataError, match=r"night/0002:night.json: decision.checks"):
        repository.find("v2")
    assert repository.rollback("v1", None)[1].model == "v1.0.0"
    assert repository.rollback("v3", None)[1].model == "v3.0.0"
    with pytest.raises(DataError, match=r"night/0002:night.json: decision.checks"):
        repository.runs()  # so prune deletes nothing


def test_a_number_is_not_used_again_when_a_record_was_deleted(tmp_path: Path) -> None:
    """The version of the model is still registered, and names the commit of the deleted run."""
    repository = make_repository(tmp_path / "repository")
    for number in (1, 2):
        finish_run(repository, number, "promoted", NOW)
    repository.git.run("tag", "--delete", "night/0002")
    assert repository.next_number() == 3
    finish_run(repository, 3, "promoted", NOW)
    assert [assignment.run for assignment in repository.assignments()] == [1, 2, 3]
    assert repository.next_number() == 4


@pytest.mark.parametrize(
    "tag",
    ["dlrm@v2.0.0-rc1", "dlrm@latest", "dlrm#production#x", "dlrm#production#9", "dlrm@v9.0.0"],
)
def test_a_tag_that_no_nightly_run_sets_is_named(tmp_path: Path, tag: str) -> None:
    repository = make_repository(tmp_path / "repository")
    finish_run(repository, 1, "promoted", NOW)
    repository.git.run("tag", tag)  # not annotated, or not of the form
    with pytest.raises(DataError) as refused:
        repository.assignments()
    check_refusal(refused.value, f"tag {tag}: it is not an annotated tag dlrm", "git tag --delete")


@pytest.mark.parametrize("why", ["a\u2028b\x0bc\x85d", "\x1b[31m[red]", "a\nb", "é" * 3000, "[/x]"])
def test_a_reason_with_odd_characters_does_not_break_the_registry(
    tmp_path: Path, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = make_repository(tmp_path / "repository")
    finish_run(repository, 1, "promoted", NOW)
    finish_run(repository, 2, "rejected", NOW, [f"auc: {why}"])
    repository.rollback("v2", why, anyway=True)
    assert [assignment.run for assignment in repository.assignments()] == [1, 2]
    capsys.readouterr()
    show(repository.root)
    assert capsys.readouterr().out.count("v2.0.0") == 1
    assert health(repository.root, MAX_AGE, NOW).problems == []


@pytest.mark.parametrize("content", ["", "{", "[]", "7", '{"number": 1}'])
def test_a_clone_whose_purpose_is_damaged_is_made_again(tmp_path: Path, content: str) -> None:
    repository = make_repository(tmp_path / "repository")
    clone = repository.make_clone("HEAD", None, {"number": 1})
    (clone.root / PURPOSE).write_text(content)
    (clone.root / "left").touch()
    again: Clone = repository.make_clone("HEAD", None, {"number": 1})
    assert not (again.root / "left").exists()
    assert read_json(again.root / PURPOSE)["number"] == 1


def test_the_data_profile_is_where_the_features_stage_writes_it() -> None:
    assert DATA == FEATURES / "data.json"
