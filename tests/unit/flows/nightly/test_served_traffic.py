"""Served traffic in a nightly run: which logs and days it reads, and that no failure is its end."""

import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from common.bundle_layout import MODEL
from common.config.params import Serve
from common.layout import RAW
from flows.nightly import served_traffic
from flows.nightly.bundles import MODELS
from flows.nightly.provenance import explain_run
from flows.nightly.record import NightlyRun
from flows.nightly.served_traffic import NOTHING, compare_served
from tests.factories.nightly_runs import finish_run, make_repository, make_run
from tests.factories.served_figures import make_served
from tests.factories.served_project import KEY, NAME, NUM_SERVED, WRONG, write_served_project
from tests.factories.support import ROOT

PARAMS = Serve(request_log="requests", log_key=KEY)
NEW: dict[str, list[str]] = {"new": ["log.tsv"]}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone after its stages; beside it is the repository, with the request log and the model."""
    clone = tmp_path_factory.mktemp("nightly") / "clone"
    clone.mkdir()
    version = write_served_project(clone)
    shutil.copy(ROOT / "params.yaml", clone)
    repository = clone.parent / "repository"
    (repository / MODELS).mkdir(parents=True)
    (clone / "requests").rename(repository / "requests")
    (clone / MODEL).rename(repository / MODELS / version)
    return clone


def compare(
    clone: Path,
    changes: Mapping[str, Sequence[str]] = NEW,
    base: NightlyRun | None = None,
    params: Serve = PARAMS,
) -> served_traffic.Served:
    return compare_served(clone, clone.parent / "repository", params, base, changes, print)


def test_the_figures_of_the_new_days(clone: Path) -> None:
    """The request log is relative to the repository, and the models are those in artifacts/models."""
    figures, warnings = compare(clone)
    assert figures
    assert figures.main
    assert (figures.main.model, figures.main.num_joined) == (NAME, NUM_SERVED)
    assert figures.main.metrics
    assert figures.main.drift
    assert figures.main.skew
    assert figures.main.skew.column == WRONG
    (warning,) = warnings
    assert warning.startswith(f"served traffic: {NAME} ")


@pytest.mark.parametrize("problem", ["no log", "no folder", "other key", "damaged manifest"])
def test_a_failure_is_a_warning(clone: Path, tmp_path: Path, problem: str) -> None:
    params, place = PARAMS, clone
    if problem == "no folder":
        params = Serve(request_log="elsewhere", log_key=KEY)
    if problem == "other key":
        params = Serve(request_log="requests", log_key="impression")
    if problem == "no log":
        place = tmp_path / "clone"
    if problem == "damaged manifest":
        place = tmp_path / "clone"
        (place / RAW).mkdir(parents=True)
        (place / RAW / "manifest.json").write_text("{")
    figures, (warning,) = compare(place, params=params)
    assert figures is None
    assert warning.startswith("served traffic was not compared: ")
    assert "\n" not in warning


def test_nothing_is_compared_where_nothing_is_new(clone: Path) -> None:
    base = make_run(1, "promoted")
    assert compare(clone, {}, base) == NOTHING
    assert compare(clone, {"removed": ["log.tsv"]}, base) == NOTHING
    assert compare(clone, params=Serve(request_log=None, log_key=None)) == NOTHING


def test_which_files_and_days_are_read(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a later run all new days; the request log since the day on which the run before began."""
    commands: list[list[str]] = []
    monkeypatch.setattr(
        served_traffic, "run_child", lambda name, command, *_: commands.append(command)
    )
    base = make_run(
        1, "promoted", started=datetime(2026, 3, 4, 23, tzinfo=UTC) + timedelta(hours=2)
    )
    for changes in ({"new": ["log.tsv"]}, {"late": ["log.tsv"]}, {"delivered again": ["log.tsv"]}):
        compare(clone, changes, base)
    compare(clone, {"new": ["earlier.tsv"]}, None)  # the first run: the newest day alone
    options = [dict(zip(command[2::2], command[3::2], strict=True)) for command in commands]
    assert [one.get("--since") for one in options] == ["2026-03-05"] * 3 + [None]
    assert {one["--log"] for one in options} == {str((clone / RAW / "log.tsv").resolve())}


def test_explain_has_a_line(tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "repository")
    changes: dict[str, Any] = {"served": make_served(ratio=1.25)}
    started = datetime(2026, 3, 4, tzinfo=UTC)
    finish_run(repository, 1, "promoted", started, **changes)
    lines = list(explain_run(repository, repository.runs()[0]))
    assert (
        "served      shop<1> aaaaaaaaaaaa: 1,000 rows, 90.0% joined, predicted / observed clicks "
        "1.250, logloss 0.4567, largest drift site 0.3"
    ) in lines
