"""`clickmill nightly health`, on finished runs of tests/factories/nightly_runs.py."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from dvc.repo import Repo
from typer.testing import CliRunner

from common.bundle_layout import WEIGHTS
from common.files import DataError, remove
from flows.cli.main import app
from flows.nightly.bundles import MODELS
from flows.nightly.health import health
from flows.nightly.record import PRODUCTION
from flows.nightly.repository import NightlyRepository
from tests.factories.nightly_runs import NOW, finish_run, flip, make_repository

MAX_AGE = timedelta(hours=26)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repository(tmp_path_factory.mktemp("empty") / "repository").root


@pytest.fixture
def repository(empty: Path, tmp_path: Path) -> NightlyRepository:
    root = Path(shutil.copytree(empty, tmp_path / "repository", symlinks=True))
    return NightlyRepository(root)


def test_no_nightly_run_yet(repository: NightlyRepository) -> None:
    found = health(repository.root, MAX_AGE, NOW)
    assert found.summary == "no nightly run yet"
    assert found.problems == [
        f"no nightly run has finished in {repository.root}; `clickmill nightly run` starts one"
    ]


def test_no_problem(repository: NightlyRepository) -> None:
    """The summary names the last run and the model in production, which an earlier run made."""
    version = finish_run(repository, 1, "promoted", NOW - timedelta(hours=33))
    reason = "AUC: 0.7, below the champion's 0.71"
    finish_run(repository, 2, "rejected", NOW - timedelta(hours=9.5), [reason])
    since = repository.assignments()[-1].at.astimezone(UTC)
    found = health(repository.root, MAX_AGE, NOW)
    assert found.problems == []
    assert found.summary == (
        f"Nightly run 2, day_2: rejected: {reason}; began 2026-03-04 02:30 UTC, 9.5 h ago; "
        f"in production v1.0.0 ({version}) since {since:%Y-%m-%d %H:%M} UTC"
    )


def test_a_missing_run_is_a_problem(repository: NightlyRepository) -> None:
    finish_run(repository, 1, "promoted", NOW - timedelta(hours=33))
    assert not health(repository.root, timedelta(hours=33), NOW).problems
    (problem,) = health(repository.root, MAX_AGE, NOW).problems
    assert problem.startswith(
        "the last finished nightly run (night/0001) began 33 h ago, and one is due every 26 h; "
    )


def test_no_model_in_production_is_a_problem(repository: NightlyRepository) -> None:
    finish_run(repository, 1, "rejected", NOW)
    found = health(repository.root, MAX_AGE, NOW)
    assert found.summary.endswith("; no model in production")
    assert found.problems == [
        "artifacts/production: no model is in production; no nightly run has promoted one"
    ]


def test_a_damaged_bundle_in_production_is_a_problem(repository: NightlyRepository) -> None:
    """DVC does not have this bundle, so it cannot be mended."""
    root, version = repository.root, finish_run(repository, 1, "promoted", NOW)
    flip(root / PRODUCTION / WEIGHTS)
    (problem,) = health(root, MAX_AGE, NOW).problems
    path = root / MODELS / version / WEIGHTS
    assert problem.startswith(f"v1.0.0 is damaged: {path}: SHA-256 ")
    assert "it cannot be mended: artifacts/model of night/0001 is neither in DVC's" in problem
    assert problem.endswith("or make it again: clickmill nightly replay v1.0.0")


@pytest.mark.parametrize("target", [None, "models/dangling", "../outside", "folder"])
def test_another_link_to_production_is_a_problem(
    repository: NightlyRepository, target: str | None
) -> None:
    """Even if it leads to a complete bundle of the right version. The next run sets the link."""
    root, version = repository.root, finish_run(repository, 1, "promoted", NOW)
    link, bundle = root / PRODUCTION, root / MODELS / version
    shutil.copytree(bundle, root / "outside")
    link.unlink()
    if target == "folder":
        shutil.copytree(bundle, link)
    elif target:
        link.symlink_to(target)
    (problem,) = health(root, MAX_AGE, NOW).problems
    found = {None: "nothing", "folder": "something else than a link"}.get(target)
    assert problem.startswith(
        f"artifacts/production: {found or f'a link to {target}'} found, "
        f"a link to models/{version} expected by the registry; "
    )
    if target == "folder":
        with pytest.raises(DataError, match=r"artifacts/production: it is not a link .* mv "):
            repository.apply_records()
        assert (link / WEIGHTS).exists()
        link.rename(root / "moved")
    repository.apply_records()
    assert health(root, MAX_AGE, NOW).problems == []


def test_a_run_in_the_future_is_a_problem(repository: NightlyRepository) -> None:
    """The clock was set back, so a missing run would not be noticed for a year."""
    finish_run(repository, 1, "promoted", NOW + timedelta(days=365))
    (problem,) = health(repository.root, MAX_AGE, NOW).problems
    assert "night/0001) began 8760 h in the future; the clock" in problem
    report = health(repository.root, MAX_AGE, NOW + timedelta(days=365, minutes=-6))
    assert not report.problems
    assert "UTC, 0.1 h in the future; in production" in report.summary


def test_unpushed_runs_are_named_but_no_problem(
    repository: NightlyRepository, tmp_path: Path
) -> None:
    """The next run pushes them. Without a remote there is nothing to push."""
    finish_run(repository, 1, "promoted", NOW)
    assert "remote" not in health(repository.root, MAX_AGE, NOW).summary
    with Repo(str(repository.root)) as repo, repo.config.edit() as config:
        config["remote"]["store"] = {"url": str(tmp_path / "store")}
        config["core"]["remote"] = "store"
    found = health(repository.root, MAX_AGE, NOW)
    assert found.summary.endswith("; not at DVC's remote yet: nightly run 1")
    assert found.problems == []


def test_the_exit_code_says_whether_there_is_a_problem(
    repository: NightlyRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository.root)
    finish_run(repository, 1, "promoted", datetime.now(UTC))
    good = CliRunner().invoke(app, ["nightly", "health"])
    assert (good.exit_code, good.stderr) == (0, "")
    assert good.stdout.startswith("Nightly run 1, day_1: promoted v1.0.0; began 2")
    remove(repository.root / PRODUCTION)
    bad = CliRunner().invoke(app, ["nightly", "health"])
    assert (bad.exit_code, bad.stdout) == (1, good.stdout)
    assert bad.stderr.startswith(
        "clickmill: error: artifacts/production: nothing found, a link to models/"
    )
