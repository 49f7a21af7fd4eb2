"""`clickmill doctor` names each problem with its remedy, and reports a healthy checkout as such."""

import shutil
import tempfile
from pathlib import Path

import pytest
from dvc.repo import Repo

from common import threads
from common.config.params import load_params
from features.ingest.readers import compiled
from flows import doctor
from flows.doctor import Finding, examine
from flows.git_commands import Git
from tests.conftest import free_port, set_param
from tests.factories.support import ROOT, answer_with, serving
from training.kernels import choice


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git and DVC repository with params.yaml, and a home without settings."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    root = tmp_path / "project"
    root.mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        (root / name).write_text((ROOT / name).read_text())
    git = Git(root)
    git.run("init", "-q")
    Repo.init(str(root)).close()
    git.run("add", "-A")
    git.commit("all")
    return root


def findings_on(findings: list[Finding], subject: str) -> list[Finding]:
    """Return the findings on a subject."""
    return [finding for finding in findings if finding.subject == subject]


def test_a_healthy_checkout_has_no_error(root: Path) -> None:
    findings = examine(root)
    assert [finding for finding in findings if finding.status == "error"] == []
    subjects = {finding.subject for finding in findings}
    assert {"Python", "torch", "CPU features", "C++ compiler", "params.yaml"} <= subjects
    assert {"writable", "disk", "git identity", "Prefect server", "GPU"} <= subjects


def test_text_is_parsed_by_numpy_without_a_compiler(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "/nonexistent")
    compiled.library.cache_clear()
    (finding,) = findings_on(examine(root), "text parsing")
    monkeypatch.undo()
    compiled.library.cache_clear()
    assert finding.text.startswith("NumPy")
    assert "CXX is '/nonexistent'" in finding.remedy
    assert "compile " not in capsys.readouterr().out  # the finding is not logged as well
    (finding,) = findings_on(examine(root), "text parsing")
    assert (finding.text == "compiled") == (compiled.library() is not None)


def test_every_problem_has_a_remedy(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_param(root, "data", "source", "nowhere.tsv")
    monkeypatch.setattr(doctor, "FREE_GIB", 1 << 30)
    findings = examine(root)
    assert all(finding.remedy for finding in findings if finding.status in ("warning", "error"))
    (source,) = findings_on(findings, "data.source")
    assert source.status == "error"
    assert "'nowhere.tsv'" in source.text
    (disk,) = findings_on(findings, "disk")
    assert disk.status == "warning"
    (identity,) = findings_on(findings, "git identity")
    assert identity.status == "note"
    assert "git config user.name" in identity.remedy


def test_what_stops_dvc_or_a_nightly_run_is_named_with_its_remedy(root: Path) -> None:
    (ready,) = findings_on(examine(root), "nightly runs")
    (dvc,) = findings_on(examine(root), "DVC")
    assert (ready.status, dvc.status) == ("ok", "ok")
    text = (root / "dvc.yaml").read_text()
    (root / "dvc.yaml").write_text("<<<<<<< ours\n")
    (dvc,) = findings_on(examine(root), "DVC")
    assert dvc.status == "error"
    assert dvc.text == "dvc.yaml contains the markers of a merge conflict"
    assert dvc.remedy.startswith("edit it")
    (root / "dvc.yaml").write_text(text)
    Git(root).run("rm", "-q", "--cached", "dvc.yaml")
    Git(root).commit("without dvc.yaml")
    (ready,) = findings_on(examine(root), "nightly runs")
    assert ready.status == "warning"
    assert ready.text.startswith("dvc.yaml is not in the last commit")
    assert ready.remedy == "run `git add --force dvc.yaml` and `git commit`"
    shutil.rmtree(root / ".git")
    (git,) = findings_on(examine(root), "git")
    assert git.status == "error"
    assert git.text.endswith("is not in a git repository")


def test_signing_is_no_problem_for_nightly_runs(root: Path) -> None:
    assert findings_on(examine(root), "git signing") == []
    Git(root).run("config", "tag.gpgSign", "true")
    (signing,) = findings_on(examine(root), "git signing")
    assert signing.status == "ok"
    assert "not those of nightly runs" in signing.text


def test_a_typo_in_params_is_an_error(root: Path) -> None:
    set_param(root, "train", "bacth_size", 1)
    (finding,) = findings_on(examine(root), "params.yaml")
    assert finding.status == "error"
    assert "train.bacth_size" in finding.text


def test_a_place_that_cannot_be_written_is_an_error(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(dir: Path) -> None:
        raise PermissionError(13, "Permission denied")

    # A file mode would not do, because the user root may write everywhere.
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    findings = findings_on(examine(root), "writable")
    assert {finding.status for finding in findings} == {"error"}
    assert all("chown or chmod" in finding.remedy for finding in findings)


def test_a_server_that_does_not_answer_is_an_error(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"}):
        (finding,) = findings_on(examine(root), "Prefect server")
    assert finding.status == "error"
    assert "prefect server start" in finding.remedy


def test_a_server_that_takes_orders_from_anybody_is_a_warning(tmp_path: Path) -> None:
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    with (
        serving(answer_with(b'"3.8"')) as port,
        temporary_settings(
            {PREFECT_API_URL: f"http://bob:s3cret@127.0.0.1:{port}/api", PREFECT_HOME: tmp_path}
        ),
    ):
        server, warning = list(doctor._server())
    assert (server.status, server.text) == ("ok", f"http://***@127.0.0.1:{port}/api")
    assert warning.status == "warning"
    assert "asks for no login" in warning.text
    assert "prefect server start" in warning.remedy


def test_a_stranger_on_the_port_and_a_login_that_others_know_are_reported(tmp_path: Path) -> None:
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_HOME,
        PREFECT_SERVER_API_PORT,
        temporary_settings,
    )

    (tmp_path / "clickmill-login").write_text("clickmill:s3cret\n")
    (tmp_path / "clickmill-login").chmod(0o644)
    with serving(answer_with(b'"3.8"')) as port:
        settings = {
            PREFECT_API_URL: None,
            PREFECT_HOME: tmp_path,
            PREFECT_SERVER_API_PORT: port,
        }
        with temporary_settings(settings):
            login, server, stranger = list(doctor._server())
    assert (login.status, server.status, stranger.status) == ("error", "ok", "warning")
    assert "other users have access" in login.text
    assert login.remedy.startswith(f"remove it (rm {tmp_path}/clickmill-login)")
    assert f"what listens on port {port} does not know the login" in stranger.text
    assert not [finding for finding in (login, server, stranger) if "s3cret" in str(finding)]


def test_threads_follow_the_quota_of_the_container(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "cpu_quotas", lambda *_: [0.5])
    monkeypatch.setattr(doctor, "cpu_quotas", threads.cpu_quotas)
    (finding,) = findings_on(examine(root), "threads")
    assert finding.status == "ok"
    assert "0.5 by the quota of its control group: 1 thread" in finding.text


def test_the_implementations_of_the_operators_are_shown(root: Path) -> None:
    shown = {finding.subject: finding.text for finding in examine(root)}
    train = load_params(root / "params.yaml").train
    expected = choice.describe(train.batch_size, train.precision)
    assert {name: shown[name] for name in expected} == expected
