"""Nightly runs in one repository: good and bad days, worse and better models, a rollback, a kill.

Each test continues with the repository of the test before it.
"""

import hashlib
import json
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.config.params import Gate
from common.files import read_json
from common.layout import NIGHTLY_CLONE
from common.progress import Progress
from features.sample.generate import write_sample
from flows.locks import nightly_lock
from flows.nightly.record import PRODUCTION, NightlyRun
from flows.nightly.repository import NightlyRepository
from tests.conftest import Project, clone, free_port
from tests.factories.deployments import START_S, Api, start_service, stop, until
from tests.factories.nightly_runs import flip
from tests.factories.support import CRITEO, wait_for

pytestmark = pytest.mark.slow

NUM_DAYS, ROWS = 6, 3000
RUN_TIMEOUT_S = 900.0  # on a busy machine
CHECKS = ["data", "skill", "calibration", "calibration error", "smoke test", "logloss", "auc"]
OURS = ("-c", "user.name=test", "-c", "user.email=test@localhost")
NO_THRESHOLDS = {"warn": None, "block_promotion": None, "stop": None}
# On so few rows a model with min_count 500 is better: it does not overfit on rare values.
BETTER_MIN_COUNT = 500
TRAIN = {"epochs": 2, "reset_embeddings_each_epoch": False, "batch_size": 64, "validations": 4}


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Return the contents of the log file of each generated day."""
    path = tmp_path_factory.mktemp("days") / "log.tsv"
    with Progress("sample", NUM_DAYS * ROWS, None) as progress:
        write_sample(path, NUM_DAYS * ROWS, NUM_DAYS, 1, CRITEO, progress)
    lines = path.read_bytes().splitlines(keepends=True)
    return [b"".join(lines[k * ROWS : (k + 1) * ROWS]) for k in range(NUM_DAYS)]


@pytest.fixture(scope="module")
def project(
    repository: Path,
    tmp_path_factory: pytest.TempPathFactory,
    environment: dict[str, str],
    days: list[bytes],
) -> Iterator[Project]:
    """A clone with a small model, four days of logs at a relative path, and a Prefect server."""
    root, port = tmp_path_factory.mktemp("nights") / "project", str(free_port())
    # git has no user name, as in a container.
    without_user = {
        name: value for name, value in environment.items() if not name.startswith("GIT_")
    }
    url = {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    project = clone(repository, root, without_user | url)
    project.set_param("data", "source", "../logs")
    project.set_param("features", "fit_days", 2)
    for name in Gate.model_fields:
        project.set_param("gate", name, NO_THRESHOLDS)
    # The limits are wide because the days are small, so only the comparison rejects models.
    for name, value in {"max_ece": 0.5, "calibration": {"low": 0.2, "high": 5}}.items():
        project.set_param("promote", name, value)
    for name in ("bottom_mlp", "top_mlp"):
        project.set_param("model", name, [16])
    for name, value in TRAIN.items():
        project.set_param("train", name, value)
    commit(project)
    (project.root.parent / "logs").mkdir()
    for k in range(4):
        log_file(project, k).write_bytes(days[k])
    output = root.parent / "prefect.log"
    server = start_service(
        Project(root, environment | {"PREFECT_SERVER_API_PORT": port}),
        output,
        "prefect",
        "server",
        "start",
    )
    try:
        until(Api(project.environment["PREFECT_API_URL"]).ready, START_S, output)
        yield project
    finally:
        stop([server])


def log_file(project: Project, day: int) -> Path:
    return project.root.parent / "logs" / f"day_{day}.tsv"


def commit(project: Project) -> None:
    project.run("git", *OURS, "commit", "-qam", "other parameters")


def version_in_production(project: Project) -> str:
    """Return the version that artifacts/production links to. There must be a bundle."""
    link = project.root / PRODUCTION
    assert read_json(link / "bundle.json")["format"] == 1
    return link.resolve().name


def run_nightly(project: Project) -> NightlyRun:
    """Execute `clickmill nightly run`, and return its record."""
    output = project.run("clickmill", "nightly", "run", timeout_s=RUN_TIMEOUT_S)
    last = NightlyRepository(project.root).runs()[-1]
    assert f"'{last.headline}', type=COMPLETED" in output, output
    return last


def test_backfill_runs_the_missed_days_in_order(project: Project) -> None:
    """The first run has no champion. The second compares both models on the new day."""
    backfill = ("clickmill", "nightly", "backfill", "day_2.tsv", "day_3.tsv")
    output = project.run(*backfill, timeout_s=RUN_TIMEOUT_S)
    assert "2 nightly runs: day_2.tsv, day_3.tsv" in output
    repository = NightlyRepository(project.root)
    first, second = repository.runs()
    assert (first.until, first.outcome) == ("day_2.tsv", "promoted"), output
    assert (first.champion, first.base) == (None, None)
    assert first.log_changes == {"new": ["day_0.tsv", "day_1.tsv", "day_2.tsv"]}
    assert (second.until, second.champion, second.base) == ("day_3.tsv", first.version, 1)
    assert second.log_changes == {"new": ["day_3.tsv"]}
    assert second.decision
    assert second.decision["champion"]["num_rows"] == ROWS // 2
    assert second.decision["challenger"]["num_rows"] == ROWS // 2
    assert [check["name"] for check in second.decision["checks"]] == CHECKS
    better = second if second.outcome == "promoted" else first
    assert version_in_production(project) == better.version
    assert output.count("ingest    3 files are reused, not read again") == 1

    assert not (project.root / NIGHTLY_CLONE).exists()
    assert project.run("git", "status", "--porcelain") == ""  # no branch or checkout has changed
    assert project.run("git", "tag").split() == [
        *(f"dlrm#production#{assignment.number}" for assignment in repository.assignments()),
        "dlrm@v1.0.0",
        "dlrm@v2.0.0",
        "night/0001",
        "night/0002",
    ]
    output = project.run(*backfill)
    assert "0 nightly runs: none was missed" in output


def test_nothing_new_is_an_outcome(project: Project, tmp_path: Path) -> None:
    """The remote cannot be reached, which gives a warning. Later all runs are pushed."""
    repository = NightlyRepository(project.root)
    before, broken = version_in_production(project), tmp_path / "broken"
    broken.touch()
    project.run("dvc", "remote", "add", "--local", "--default", "store", str(broken / "store"))
    last = run_nightly(project)
    assert (last.outcome, last.version, last.log_changes) == ("nothing new", None, {})
    assert version_in_production(project) == before

    warnings: list[str] = []
    repository.push(warnings.append)
    (warning,) = warnings
    assert warning.startswith("the data of nightly runs 1, 2, 3 is not at DVC's remote; ")
    assert repository.unpushed() == [1, 2, 3]
    broken.unlink()
    repository.push(warnings.append)
    assert (len(warnings), repository.unpushed()) == (1, [])
    store = broken / "store"
    pushed = [path.relative_to(store) for path in (store / "files/md5").rglob("*")]
    assert len(pushed) > NUM_DAYS
    assert all((project.root / ".dvc/cache" / path).exists() for path in pushed)
    project.run("dvc", "remote", "remove", "--local", "store")


def test_bad_data_is_named_and_rejected(project: Project) -> None:
    before = version_in_production(project)
    log_file(project, 4).write_bytes(b"not\ta\tclick\n" * 1000)
    project.set_param("train", "epochs", 9)
    output = project.run("clickmill", "nightly", "run")
    project.run("git", "checkout", "-q", "params.yaml")
    assert "uncommitted changes are not part of this nightly run: params.yaml" in output
    last = NightlyRepository(project.root).runs()[-1]
    assert (last.outcome, last.version) == ("rejected", None)
    assert last.log_changes == {"new": ["day_4.tsv"]}
    assert "artifacts/raw/day_4.tsv" in last.reasons[0]
    assert version_in_production(project) == before


def test_a_worse_model_is_rejected_and_a_better_one_promoted(
    project: Project, days: list[bytes]
) -> None:
    """The committed parameters train a model that learns nothing, then a better one."""
    before = version_in_production(project)
    log_file(project, 4).write_bytes(days[4])
    project.set_param("train", "dense_optimizer", {"name": "sgd", "lr": 1e-9})
    commit(project)
    worse = run_nightly(project)
    assert worse.outcome == "rejected"
    assert worse.log_changes == {"delivered again": ["day_4.tsv"]}
    assert {reason.partition(":")[0] for reason in worse.reasons} >= {"logloss", "auc"}
    assert version_in_production(project) == before
    assert project.run(
        "git", "tag", "--list", f"dlrm@{worse.model}"
    )  # a rejected model is registered too

    project.run("git", *OURS, "revert", "--no-edit", "HEAD")
    project.set_param("features", "min_count", BETTER_MIN_COUNT)
    commit(project)
    better = run_nightly(project)
    assert better.outcome == "promoted", better.reasons
    assert (better.champion, better.log_changes) == (before, {})
    assert version_in_production(project) == better.version


def test_rollback_is_immediate_and_recorded(project: Project, tmp_path: Path) -> None:
    """A rollback does not wait for an active nightly run."""
    repository = NightlyRepository(project.root)
    runs = repository.runs()
    before, now = (runs[assignment.run - 1] for assignment in repository.assignments()[-2:])
    assert version_in_production(project) == now.version
    with nightly_lock(project.root):
        output = project.run(
            "clickmill", "nightly", "rollback", "--why", "complaints", timeout_s=30
        )
    assert f"{before.model} (bundle {before.version}) is in production" in output
    assert version_in_production(project) == before.version
    reason = repository.assignments()[-1].reason
    assert f"rollback from {now.model}" in reason
    assert "complaints" in reason
    models = project.run("clickmill", "nightly", "list").splitlines()
    line = next(line for line in models if line.startswith(f"{before.model} "))
    assert "in production since" in line
    copy = tmp_path / "copy"
    project.run("dvc", "artifacts", "get", ".", "dlrm", "--stage", "production", "-o", str(copy))
    manifest = read_json(project.root / PRODUCTION / "bundle.json")
    assert read_json(copy / "bundle.json") == manifest
    output = project.run("clickmill", "nightly", "rollback", "77", code=65)
    assert "no model '77' is registered" in output


def test_scores_are_explained_down_to_the_raw_log(project: Project, tmp_path: Path) -> None:
    repository, scores = NightlyRepository(project.root), str(tmp_path / "scores.parquet")
    version = version_in_production(project)
    log = str(log_file(project, 4))
    project.run(
        "clickmill", "predict", "--model", str(PRODUCTION), "--input", log, "--output", scores
    )
    explanation = project.run("clickmill", "nightly", "explain", scores)
    for part in (
        f"{ROWS:,} rows, by model {version}",
        f"{repository.find(version).model}, bundle {version}",
        "complaints",  # the reason for the rollback
        "raw file    day_0.tsv  SHA-256 ",
        "fingerprint",
        "code        last ",
    ):
        assert part in explanation


def test_a_replay_gives_the_same_bits(project: Project) -> None:
    """Run 2 began with the artifacts of run 1, and the log has grown since."""
    output = project.run("clickmill", "nightly", "replay", "v2")
    assert "v2: all outputs are the same, bit for bit" in output


def test_a_second_nightly_run_at_the_same_time_is_refused(project: Project) -> None:
    with nightly_lock(project.root):
        output = project.run("clickmill", "nightly", "run", code=1)
    assert "another nightly run is active in" in output
    assert "process" in output


def test_the_next_run_does_the_work_of_a_killed_run(project: Project, days: list[bytes]) -> None:
    """The next run trains from scratch, because the champion's weights do not fit.

    The reason is the rollback: the vocabularies of the run are not those of the champion.
    """
    before = version_in_production(project)
    project.set_param("train", "warm_start_from", str(PRODUCTION))
    project.set_param("train", "last_days", 1)
    commit(project)
    log_file(project, 5).write_bytes(days[5])
    without_server = {
        name: value for name, value in project.environment.items() if name != "PREFECT_API_URL"
    }
    run = Project(project.root, without_server).start("clickmill", "nightly", "run")
    in_clone = Project(project.root / NIGHTLY_CLONE, {})
    wait_for(lambda: in_clone.processes("clickmill stage train"), timeout_s=RUN_TIMEOUT_S)
    run.send_signal(signal.SIGKILL)
    run.communicate(timeout=60)  # waits until Prefect's temporary server has closed the output too
    assert version_in_production(project) == before
    last = run_nightly(project)
    assert (last.until, last.champion) == ("day_5.tsv", before)
    assert last.log_changes == {"new": ["day_5.tsv"]}
    expected = last.version if last.outcome == "promoted" else before
    assert version_in_production(project) == expected
    assert any(
        warning.startswith("trained from scratch on all days: ") for warning in last.warnings
    )
    dvc_lock = NightlyRepository(project.root).read_dvc_lock(last.tag)
    assert re.search(r"path: artifacts/model\n\s+hash: md5", dvc_lock)


def test_no_stage_has_written_into_the_cache(project: Project) -> None:
    """Artifacts are links to DVC's cache, so a stage that writes into one damages the cache."""
    cache = project.root / ".dvc/cache/files/md5"
    paths = [path for path in cache.rglob("*") if path.is_file()]
    assert len(paths) > NUM_DAYS
    for path in paths:
        md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        assert md5 == path.parent.name + path.name.removesuffix(".dir")


def test_prune_deletes_old_data_but_no_model_that_was_in_production(project: Project) -> None:
    repository, cache = NightlyRepository(project.root), project.root / ".dvc/cache/files/md5"
    first = repository.runs()[repository.assignments()[0].run - 1]
    before = sorted(cache.rglob("*"))
    prune = ("clickmill", "nightly", "prune", "--runs", "1")
    assert "would delete the data of" in project.run(*prune, "--dry-run")
    assert sorted(cache.rglob("*")) == before
    output = project.run(*prune)
    assert re.search(r"deleted the data of \d+ nightly runs: [1-9][\d,]* files", output)
    assert len(sorted(cache.rglob("*"))) < len(before)
    output = project.run("clickmill", "nightly", "replay", "v2", code=65)
    assert "was it pruned?" in output
    shutil.rmtree(project.root / "artifacts/models")
    project.run("clickmill", "nightly", "rollback", f"v{first.number}")
    assert version_in_production(project) == first.version
    assert f"v{first.number}.0.0" in project.run("clickmill", "nightly", "health")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("day_9.tsv", "day_9.tsv"),
            "no log or day called 'day_9.tsv' at '../logs'; there are day_0.tsv to day_5.tsv",
        ),
        (("day_3.tsv", "day_2.tsv"), "day_3.tsv comes after day_2.tsv"),
    ],
)
def test_a_backfill_of_invalid_days_is_refused(
    project: Project, arguments: tuple[str, str], message: str
) -> None:
    output = project.run("clickmill", "nightly", "backfill", *arguments, code=65)
    assert message in output


def test_a_damaged_file_of_the_cache_fails_no_run(project: Project) -> None:
    """DVC links it into the clone. Its stage runs again, and the cache has intact files then."""
    repository = NightlyRepository(project.root)
    hashes = repository.output_hashes(repository.runs()[-1].tag)
    cache = project.root / ".dvc/cache/files/md5"
    for output, name in (("features", "train/day_001.parquet"), ("parquet", "day_1.tsv.parquet")):
        md5 = hashes[f"artifacts/{output}"]
        files = json.loads((cache / md5[:2] / md5[2:]).read_text())
        (oid,) = (file["md5"] for file in files if file["relpath"] == name)
        flip(cache / oid[:2] / oid[2:], 100)
    project.set_param("train", "seed", 4711)  # the train stage reads all features
    commit(project)
    output = project.run("clickmill", "nightly", "run", timeout_s=2 * RUN_TIMEOUT_S)
    assert "these files were damaged in DVC's cache and have been deleted" in output
    assert repository.runs()[-1].version
    test_no_stage_has_written_into_the_cache(project)


def test_what_changes_while_a_run_works_is_for_the_next_run(
    project: Project, days: list[bytes]
) -> None:
    """HEAD moves, params.yaml changes and a day arrives while it trains."""
    repository = NightlyRepository(project.root)
    head, before = repository.git.run("rev-parse", "HEAD"), repository.runs()[-1]
    project.set_param("train", "epochs", 1)
    commit(project)
    started = repository.git.run("rev-parse", "HEAD")
    run = project.start("clickmill", "nightly", "run")
    in_clone = Project(project.root / NIGHTLY_CLONE, {})
    wait_for(lambda: in_clone.processes("clickmill stage train"), timeout_s=RUN_TIMEOUT_S)
    repository.git.run("reset", "-q", "--hard", head)
    project.set_param("train", "epochs", 3)
    log_file(project, 6).write_bytes(days[0][:-100] + days[1])
    output, _ = run.communicate(timeout=RUN_TIMEOUT_S)
    assert run.returncode == 0, output
    last = repository.runs()[-1]
    assert (last.log_files, last.log_changes) == (before.log_files, {})
    assert repository.git.run("rev-parse", f"{last.tag}^") == started
    assert "epochs: 1" in repository.git.run("show", f"{last.tag}:params.yaml")
    assert (project.root / "params.yaml").read_text().count("epochs: 3") == 1
