"""`clickmill doctor` names each problem with its remedy, and reports a healthy checkout as such."""

import subprocess
from pathlib import Path

import pytest

from flows import doctor
from flows.doctor import Finding, examine
from tests.conftest import free_port, set_param
from tests.factories.support import ROOT


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with params.yaml, and a home without settings."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    root = tmp_path / "project"
    root.mkdir()
    (root / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    return root


def of(findings: list[Finding], subject: str) -> list[Finding]:
    return [finding for finding in findings if finding.subject == subject]


def test_a_healthy_checkout_has_no_error(root: Path) -> None:
    findings = examine(root)
    assert [finding for finding in findings if finding.status == "error"] == []
    subjects = {finding.subject for finding in findings}
    assert {"Python", "torch", "CPU features", "C++ compiler", "params.yaml"} <= subjects
    assert {"writable", "disk", "git identity", "Prefect server", "GPU"} <= subjects


def test_every_problem_has_a_remedy(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_param(root, "data", "source", "nowhere.tsv")
    monkeypatch.setattr(doctor, "FREE_GIB", 1 << 30)
    findings = examine(root)
    assert all(finding.remedy for finding in findings if finding.status in ("warning", "error"))
    (source,) = of(findings, "data.source")
    assert source.status == "error"
    assert "'nowhere.tsv'" in source.text
    (disk,) = of(findings, "disk")
    assert disk.status == "warning"
    (identity,) = of(findings, "git identity")
    assert identity.status == "note"
    assert "git config user.name" in identity.remedy


def test_a_typo_in_params_is_an_error(root: Path) -> None:
    set_param(root, "train", "bacth_size", 1)
    (finding,) = of(examine(root), "params.yaml")
    assert finding.status == "error"
    assert "train.bacth_size" in finding.text


def test_a_place_that_cannot_be_written_is_an_error(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(dir: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)  # root may write everywhere
    findings = of(examine(root), "writable")
    assert {finding.status for finding in findings} == {"error"}
    assert all("chown or chmod" in finding.remedy for finding in findings)


def test_a_server_that_does_not_answer_is_an_error(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"}):
        (finding,) = of(examine(root), "Prefect server")
    assert finding.status == "error"
    assert "prefect server start" in finding.remedy


@pytest.mark.parametrize(("content", "quota"), [("max 100000", None), ("150000 100000", 1.5)])
def test_the_quota_of_a_container(
    content: str, quota: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: content)
    assert doctor._cpu_quota() == quota
