"""`clickmill health` on nights as tests/passed_nights.py has them."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from dvc.repo import Repo
from typer.testing import CliRunner

from common.files import remove, sha256_file
from flows.cli.main import app
from flows.nightly.git import git
from flows.nightly.health import health
from flows.nightly.record import PRODUCTION
from tests.factories.nights import NOW, make_repository, pass_night

DAY = timedelta(hours=26)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repository(tmp_path_factory.mktemp("empty") / "repository")


@pytest.fixture
def root(empty: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(empty, tmp_path / "repository", symlinks=True))


def test_no_night_yet(root: Path) -> None:
    found = health(root, DAY, NOW)
    assert found.line == "no night yet"
    assert found.troubles == [f"no night has come to an end in {root}; `clickmill night` runs one"]


def test_all_is_well(root: Path) -> None:
    """The line tells the last night and the model that serves, which an earlier night made."""
    version = pass_night(root, 1, "promoted", NOW - timedelta(hours=33))
    pass_night(root, 2, "kept", NOW - timedelta(hours=9.5), ["AUC: 0.7; no less than 0.71 may be"])
    since = datetime.fromisoformat(
        git(root, "for-each-ref", "refs/tags/dlrm#*", "--format=%(taggerdate:iso-strict)")
    ).astimezone(UTC)
    found = health(root, DAY, NOW)
    assert found.troubles == []
    assert found.line == (
        "Night 2, day_2: promoted none: AUC: 0.7; no less than 0.71 may be; began 2026-03-04 02:30 UTC, 9.5 h ago; "
        f"in production v1.0.0 ({version}) since {since:%Y-%m-%d %H:%M} UTC"
    )


def test_a_night_did_not_happen(root: Path) -> None:
    pass_night(root, 1, "promoted", NOW - timedelta(hours=33))
    assert not health(root, timedelta(hours=33), NOW).troubles
    (trouble,) = health(root, DAY, NOW).troubles
    assert trouble.startswith(
        "the last night that came to an end (night/0001) began 33 h ago, and one is due every 26 h; see the runs"
    )


def test_no_model_serves(root: Path) -> None:
    pass_night(root, 1, "kept", NOW)
    found = health(root, DAY, NOW)
    assert found.line.endswith("; no model in production")
    assert found.troubles == [
        "artifacts/production: no model is in production; no night has promoted one"
    ]


def test_the_model_that_serves_is_not_the_one_that_should(root: Path) -> None:
    version = pass_night(root, 1, "promoted", NOW)
    manifest = root / PRODUCTION / "bundle.json"
    manifest.write_text("{}")
    (trouble,) = health(root, DAY, NOW).troubles
    assert trouble.startswith(
        f"artifacts/production/bundle.json: version {sha256_file(manifest)[:12]} found, version {version} expected by the tags"
    )
    remove(root / PRODUCTION)
    (trouble,) = health(root, DAY, NOW).troubles
    assert trouble.startswith(
        f"artifacts/production/bundle.json: nothing found, version {version} expected by the tags"
    )


def test_what_is_not_at_the_remote_yet(root: Path, tmp_path: Path) -> None:
    """... is told where there is a remote, and is no trouble: the next night tries again."""
    pass_night(root, 1, "promoted", NOW)
    assert "remote" not in health(root, DAY, NOW).line
    with Repo(str(root)) as repo, repo.config.edit() as config:
        config["remote"]["store"], config["core"]["remote"] = (
            {"url": str(tmp_path / "store")},
            "store",
        )
    found = health(root, DAY, NOW)
    assert found.line.endswith("; not at DVC's remote yet: night 1")
    assert found.troubles == []


def test_the_command_exits_by_what_it_found(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    pass_night(root, 1, "promoted", datetime.now(UTC))
    well = CliRunner().invoke(app, ["health"])
    assert (well.exit_code, well.stderr) == (0, "")
    assert well.stdout.startswith("Night 1, day_1: promoted v1.0.0; began 2")
    remove(root / PRODUCTION)
    ill = CliRunner().invoke(app, ["health"])
    assert (ill.exit_code, ill.stdout) == (1, well.stdout)
    assert ill.stderr.startswith(
        "clickmill: error: artifacts/production/bundle.json: nothing found"
    )
