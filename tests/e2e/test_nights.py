"""Nights as they come, in one repository: day after day a log file more, good ones and bad ones, and what people do in between."""

import fcntl
import hashlib
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.config.params import Gate
from common.files import read_json
from common.progress import Progress
from features.sample.generate import write_sample
from flows.locks import NIGHT
from flows.nightly.record import PRODUCTION, Night, nights
from flows.nightly.record_commit import push, unpushed
from flows.nightly.registry import assignments
from tests.conftest import Project, clone, free_port
from tests.factories.deployments import START_S, Api, start_service, stop, until
from tests.factories.support import CRITEO, wait_for

NUM_DAYS, ROWS = 6, 3000
CHECKS = ["data", "skill", "calibration", "calibration error", "probe", "logloss", "auc"]
OURS = ("-c", "user.name=test", "-c", "user.email=test@localhost")
NEVER = {"warn": None, "block_promotion": None, "stop": None}
FREQUENT = (
    500  # as min_count: on so few rows the better model, as rarer values are learned by heart
)
TRAIN = {"epochs": 2, "reset_embeddings_each_epoch": False, "batch_size": 64, "validations": 4}


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The log files of days, as the generator draws them."""
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
    """A clone with a small model, four days of logs at a relative data.source, and a Prefect server that it knows."""
    root, port = tmp_path_factory.mktemp("nights") / "project", str(free_port())
    nobody = {
        name: value for name, value in environment.items() if not name.startswith("GIT_")
    }  # as in a container
    project = clone(repository, root, nobody | {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api"})
    project.set_param("data", "source", "../logs")
    project.set_param("features", "fit_days", 2)
    for name in Gate.model_fields:
        project.set_param("gate", name, NEVER)
    for name, value in {"max_ece": 0.5, "calibration": {"low": 0.2, "high": 5}}.items():
        project.set_param(
            "promote", name, value
        )  # the days are small: it is by the comparison that models are kept out
    for name in ("bottom_mlp", "top_mlp"):
        project.set_param("model", name, [16])
    for name, value in TRAIN.items():
        project.set_param("train", name, value)
    commit(project)
    (project.root.parent / "logs").mkdir()
    for k in range(4):
        log(project, k).write_bytes(days[k])
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


def log(project: Project, day: int) -> Path:
    return project.root.parent / "logs" / f"day_{day}.tsv"


def commit(project: Project) -> None:
    project.run("git", *OURS, "commit", "-qam", "other parameters")


def in_production(project: Project) -> str:
    """The version that artifacts/production says, which must be a whole bundle."""
    link = project.root / PRODUCTION
    assert read_json(link / "bundle.json")["format"] == 1
    return link.resolve().name


def night(project: Project) -> Night:
    """`clickmill nightly run`; its record."""
    output = project.run("clickmill", "nightly", "run")
    last = nights(project.root)[-1]
    assert f"'{last.headline}', type=COMPLETED" in output, output
    return last


@contextmanager
def running_night(project: Project) -> Iterator[None]:
    """As other processes see it."""
    with (project.root / NIGHT).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_missed_nights_are_made_up_for_in_order(project: Project) -> None:
    """The first has no champion; the second is held against the first on its own day's rows."""
    output = project.run("clickmill", "nightly", "backfill", "day_2.tsv", "day_3.tsv")
    assert "2 nights: day_2.tsv, day_3.tsv" in output
    first, second = nights(project.root)
    assert (first.until, first.outcome, first.champion, first.base) == (
        "day_2.tsv",
        "promoted",
        None,
        None,
    ), output
    assert first.arrivals == {"new": ["day_0.tsv", "day_1.tsv", "day_2.tsv"]}
    assert (second.until, second.champion, second.base) == ("day_3.tsv", first.version, 1)
    assert second.arrivals == {"new": ["day_3.tsv"]}
    assert second.decision
    assert (
        second.decision["champion"]["num_rows"]
        == second.decision["challenger"]["num_rows"]
        == ROWS // 2
    )
    assert [check["name"] for check in second.decision["checks"]] == CHECKS
    better = second.version if second.outcome == "promoted" else first.version
    assert in_production(project) == better
    assert output.count("ingest    3 files known from before, not read again") == 1

    assert not (project.root / "runs/night").exists()
    assert project.run("git", "status", "--porcelain") == ""  # no branch, no checkout has moved
    assert project.run("git", "tag").split() == [
        *(f"dlrm#production#{one.number}" for one in assignments(project.root)),
        "dlrm@v1.0.0",
        "dlrm@v2.0.0",
        "night/0001",
        "night/0002",
    ]
    assert "0 nights: none was missed" in project.run(
        "clickmill", "nightly", "backfill", "day_2.tsv", "day_3.tsv"
    )


def test_nothing_new_is_an_outcome(project: Project, tmp_path: Path) -> None:
    """Here with a remote that cannot be reached: that is told, and all nights are sent once it can."""
    before, broken = in_production(project), tmp_path / "broken"
    broken.touch()
    project.run("dvc", "remote", "add", "--local", "--default", "store", str(broken / "store"))
    last = night(project)
    assert (last.outcome, last.version, last.arrivals) == ("nothing new", None, {})
    assert in_production(project) == before

    told: list[str] = []
    push(project.root, told.append)
    assert len(told) == 1
    assert told[0].startswith("not at DVC's remote: night 1, 2, 3; the next one tries again: ")
    assert unpushed(project.root) == [1, 2, 3]
    broken.unlink()
    push(project.root, told.append)
    assert (len(told), unpushed(project.root)) == (1, [])
    sent = [path.relative_to(broken / "store") for path in (broken / "store/files/md5").rglob("*")]
    assert len(sent) > NUM_DAYS
    assert all((project.root / ".dvc/cache" / path).exists() for path in sent)
    project.run("dvc", "remote", "remove", "--local", "store")


def test_a_bad_day_is_named_and_the_champion_kept(project: Project) -> None:
    before = in_production(project)
    log(project, 4).write_bytes(b"not\ta\tclick\n" * 1000)
    project.set_param("train", "epochs", 9)
    output = project.run("clickmill", "nightly", "run")
    project.run("git", "checkout", "-q", "params.yaml")
    assert "not committed, so no part of this night: params.yaml" in output
    last = nights(project.root)[-1]
    assert (last.outcome, last.version, last.arrivals) == ("kept", None, {"new": ["day_4.tsv"]})
    assert "artifacts/raw/day_4.tsv" in last.reasons[0]
    assert in_production(project) == before


def test_a_worse_model_is_kept_out_and_a_better_one_let_in(
    project: Project, days: list[bytes]
) -> None:
    """The day is delivered again; what is committed is trained: first a model that learns nothing, then a better one."""
    before = in_production(project)
    log(project, 4).write_bytes(days[4])
    project.set_param("train", "dense_optimizer", {"name": "sgd", "lr": 1e-9})
    commit(project)
    worse = night(project)
    assert (worse.outcome, worse.arrivals) == ("kept", {"delivered again": ["day_4.tsv"]})
    assert {reason.partition(":")[0] for reason in worse.reasons} >= {"logloss", "auc"}
    assert in_production(project) == before
    assert project.run(
        "git", "tag", "--list", f"dlrm@{worse.model}"
    )  # kept out, but there to be looked at

    project.run("git", *OURS, "revert", "--no-edit", "HEAD")
    project.set_param("features", "min_count", FREQUENT)
    commit(project)
    better = night(project)
    assert (better.outcome, better.champion, better.arrivals) == ("promoted", before, {}), (
        better.reasons
    )
    assert in_production(project) == better.version


def test_rollback_is_at_once_and_recorded(project: Project, tmp_path: Path) -> None:
    before, now = (nights(project.root)[one.night - 1] for one in assignments(project.root)[-2:])
    assert in_production(project) == now.version
    with running_night(project):
        output = project.run("clickmill", "nightly", "rollback", "--why", "complaints", timeout_s=30)
    assert f"{before.model} (bundle {before.version}) is in production" in output
    assert in_production(project) == before.version
    assert f"rollback from {now.model}" in assignments(project.root)[-1].why
    assert "complaints" in assignments(project.root)[-1].why
    line = next(
        line
        for line in project.run("clickmill", "nightly", "list").splitlines()
        if line.startswith(f"{before.model} ")
    )
    assert "in production since" in line
    project.run(
        "dvc", "artifacts", "get", ".", "dlrm", "--stage", "production", "-o", str(tmp_path / "got")
    )
    assert read_json(tmp_path / "got" / "bundle.json") == read_json(
        project.root / PRODUCTION / "bundle.json"
    )
    assert "no model '77' is registered" in project.run("clickmill", "nightly", "rollback", "77", code=65)

    scores = tmp_path / "scores.parquet"
    project.run(
        "clickmill",
        "predict",
        "--model",
        str(PRODUCTION),
        "--input",
        str(log(project, 4)),
        "--output",
        str(scores),
    )
    chain = project.run("clickmill", "nightly", "explain", str(scores))
    assert f"{ROWS:,} rows, by model {before.version}" in chain
    said = (
        f"{before.model}, bundle {before.version}",
        "complaints",
        "raw file    day_0.tsv  SHA-256 ",
        "fingerprint",
        "code        last ",
    )
    for part in said:
        assert part in chain


def test_a_past_night_comes_out_bit_for_bit_again(project: Project) -> None:
    """Of the second, whose features grew from the first's, though the log has gone on since."""
    assert "replay    v2: all outputs are bit for bit the same" in project.run(
        "clickmill", "nightly", "replay", "v2"
    )


def test_a_night_waits_for_no_other(project: Project) -> None:
    with running_night(project):
        output = project.run("clickmill", "nightly", "run", code=1)
    assert "another night runs in" in output
    assert "process" in output


def test_a_killed_night_is_made_up_for(project: Project, days: list[bytes]) -> None:
    """It is to go on from the model in production, whose vocabularies are no longer these since the rollback: it begins from nothing."""
    before = in_production(project)
    project.set_param("train", "warm_start_from", str(PRODUCTION))
    project.set_param("train", "last_days", 1)
    commit(project)
    log(project, 5).write_bytes(days[5])
    without_server = {
        name: value for name, value in project.environment.items() if name != "PREFECT_API_URL"
    }
    run = Project(project.root, without_server).start("clickmill", "nightly", "run")
    wait_for(lambda: Project(project.root / "runs/night", {}).processes("clickmill stage train"))
    run.send_signal(signal.SIGKILL)
    run.communicate(
        timeout=60
    )  # until nobody has its output: Prefect's temporary server is gone as well
    assert in_production(project) == before
    last = night(project)
    assert (last.until, last.arrivals, last.champion) == (
        "day_5.tsv",
        {"new": ["day_5.tsv"]},
        before,
    )
    assert in_production(project) == (last.version if last.outcome == "promoted" else before)
    assert any(
        warning.startswith("trained from nothing, on all days: ") for warning in last.warnings
    )
    shown = subprocess.run(
        ["git", "show", f"{last.tag}:dvc.lock"],
        cwd=project.root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.search(r"path: artifacts/model\n\s+hash: md5", shown.stdout)


def test_no_stage_wrote_into_the_cache(project: Project) -> None:
    """What stages find is links to DVC's cache, and nothing but their own care keeps them from changing what they link to."""
    found = [path for path in (project.root / ".dvc/cache/files/md5").rglob("*") if path.is_file()]
    assert len(found) > NUM_DAYS
    for path in found:
        assert hashlib.md5(
            path.read_bytes(), usedforsecurity=False
        ).hexdigest() == path.parent.name + path.name.removesuffix(".dir")


def test_old_data_is_given_up_and_no_model_that_served(project: Project) -> None:
    cache, served = project.root / ".dvc/cache/files/md5", assignments(project.root)[0].night
    before = sorted(cache.rglob("*"))
    assert "would give up the data of" in project.run(
        "clickmill", "nightly", "prune", "--runs", "1", "--dry-run"
    )
    assert sorted(cache.rglob("*")) == before
    assert re.search(
        r"gave up the data of \d+ nights: [1-9]\d* files",
        project.run("clickmill", "nightly", "prune", "--runs", "1"),
    )
    assert len(sorted(cache.rglob("*"))) < len(before)
    assert "was it pruned?" in project.run("clickmill", "nightly", "replay", "v2", code=65)
    shutil.rmtree(project.root / "artifacts/models")
    project.run("clickmill", "nightly", "rollback", f"v{served}")
    assert in_production(project) == nights(project.root)[served - 1].version
    assert f"v{served}.0.0" in project.run("clickmill", "nightly", "health")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("day_9.tsv", "day_9.tsv"),
            "no log called 'day_9.tsv' at '../logs'; there are day_0.tsv to day_5.tsv",
        ),
        (("day_3.tsv", "day_2.tsv"), "day_3.tsv comes after day_2.tsv"),
    ],
)
def test_a_backfill_of_no_days_is_refused(
    project: Project, arguments: tuple[str, str], said: str
) -> None:
    assert said in project.run("clickmill", "nightly", "backfill", *arguments, code=65)
