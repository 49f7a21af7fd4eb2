"""The pipeline under DVC: which stages a change makes stale, and equal bytes in every checkout."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.conftest import Project
from tests.factories.support import STAGES


def stages_that_ran(output: str) -> list[str]:
    """Return the stages that `dvc repro` ran, according to its output."""
    return [stage for stage in STAGES if f"Running stage '{stage}'" in output]


def contents(directory: Path) -> dict[str, bytes]:
    """Return the files below a directory except DVC's .gitignore files, path -> bytes."""
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != ".gitignore")
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def test_stage_names_are_in_the_order_of_the_stages(finished: Project) -> None:
    code = "from flows.dvc_stages import *; print(*stage_names(Path()))"
    assert finished.run("python", "-c", code).split() == STAGES


def test_a_second_repro_does_nothing(finished: Project) -> None:
    before = finished.lock
    output = finished.run("dvc", "repro")
    assert "Data and pipelines are up to date." in output
    assert finished.lock == before
    # Every file that the stages write is ignored by git, except for dvc.lock.
    status = finished.run("git", "status", "--porcelain", "--untracked-files=all")
    assert status.splitlines() in ([], ["?? dvc.lock"])


@pytest.mark.parametrize(
    ("section", "name", "value", "expected"),
    [
        ("evaluate", "bootstrap_rounds", 50, ["evaluate"]),
        # The Parquet stays the same, so no later stage runs.
        ("ingest", "max_bad_fraction", 0.02, ["ingest"]),
        pytest.param(
            *("features", "min_count", 4, ["features", "train", "evaluate", "export"]),
            marks=pytest.mark.slow,
        ),
        ("export", "runtime", "onnx", ["export"]),
    ],
)
def test_a_parameter_makes_only_dependent_stages_stale(
    copy: Project, section: str, name: str, value: object, expected: list[str]
) -> None:
    copy.set_param(section, name, value)
    assert stages_that_ran(copy.run("dvc", "repro")) == expected


def test_a_checkout_that_pulls_has_nothing_to_run(
    finished: Project, project: Project, tmp_path: Path
) -> None:
    remote = ["dvc", "remote", "add", "--local", "--default", "store", str(tmp_path / "remote")]
    finished.run(*remote)
    finished.run("dvc", "push")
    project.run(*remote)
    (project.root / "dvc.lock").write_text(finished.lock)
    project.run("dvc", "pull")
    assert "up to date" in project.run("dvc", "repro")
    assert contents(project.root / "artifacts") == contents(finished.root / "artifacts")
    assert "Nothing changed since model" in project.run("clickmill", "run")


CHANGED_LOG = """
from flows.dvc_stages import *
root = Path()
print(source_changed(load_params(), root))
repro('collect', root, print)
"""


def test_a_changed_log_is_collected_again(copy: Project, tmp_path: Path) -> None:
    """DVC sees data.source only as a string; `clickmill run` and the flow compare the files."""
    log = tmp_path / "log.tsv"
    log.write_bytes((copy.root / "artifacts/raw/sample.tsv").read_bytes())
    copy.set_param("data", "source", str(log))
    copy.run("dvc", "repro", "collect")
    assert copy.run("python", "-c", CHANGED_LOG).splitlines()[0] == "False"
    with log.open("ab") as file:
        file.write(log.read_bytes().splitlines(keepends=True)[0])
    output = copy.run("python", "-c", CHANGED_LOG)
    assert output.splitlines()[0] == "True"
    assert "Running stage 'collect'" in output
    assert (copy.root / "artifacts/raw/log.tsv").read_bytes() == log.read_bytes()


def test_a_run_without_changes_starts_no_prefect_server(finished: Project) -> None:
    output = finished.run("clickmill", "run")
    assert output.splitlines()[1].startswith("Nothing changed since model ")
    assert "temporary server" not in output
    last = output.strip().splitlines()[-1]
    assert last.startswith("Report: ")
    assert Path(last.removeprefix("Report: ")).is_file()


@pytest.fixture(scope="module")
def useless(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, str]:
    """A checkout after a run whose model learned nothing, and the output of the run."""
    root = tmp_path_factory.mktemp("useless") / "project"
    shutil.copytree(finished.root, root, symlinks=True)
    project = Project(root, finished.environment)
    project.set_param("train", "embedding_optimizer", {"name": "rowwise_adagrad", "lr": 1e9})
    return project, project.run("clickmill", "run")


@pytest.mark.slow
def test_a_run_passes_on_the_lines_of_its_stages(useless: tuple[Project, str]) -> None:
    lines = useless[1].strip().splitlines()
    assert any("evaluate  test   AUC" in line for line in lines)
    # Prefect's own line is left out. Our line has other words and appears if the start takes long.
    assert not any("Starting temporary server" in line for line in lines)
    assert lines[-1].startswith("Report: ")


@pytest.mark.slow
def test_a_run_that_the_gate_stops_reports_the_reasons(copy: Project) -> None:
    copy.set_param("gate", "drift", {"warn": 1e-6, "block_promotion": None, "stop": 1e-6})
    lines = [
        line
        for line in copy.run("clickmill", "run", code=1).splitlines()
        if line.startswith("clickmill: error: ")
    ]
    assert "stage features failed: the data is not fit to train on" in lines[0]
    assert all("above gate.drift.stop" in line for line in lines[1:-1])
    assert len(lines) > 2
    assert "raise these thresholds" in lines[-1]


@pytest.mark.slow
def test_a_run_that_diverges_is_not_retried(copy: Project) -> None:
    copy.set_param("train", "dense_optimizer", {"name": "sgd", "lr": 1e38})
    output = copy.run("clickmill", "run", code=1)
    assert output.count("> clickmill stage train") == 1
    assert "Traceback" not in output
    last = output.splitlines()[-1]
    assert re.fullmatch(
        r"clickmill: error: stage train failed: training diverged: "
        r"train loss \w+ at step \d+ of .* in runs/diverged",
        last,
    )
    # It is in the output of the stage, the task's state, the flow's error, the flow's state and the
    # last line.
    assert output.count("training diverged") <= 5


@pytest.mark.slow
def test_a_model_that_learned_nothing_is_reported(useless: tuple[Project, str]) -> None:
    project, output = useless
    message = (
        r"the model is no better than a constant on the (valid|test) rows: "
        r"normalised entropy [1-9]\d*\.\d{4}; always predicting .* has 1"
    )
    assert re.findall(rf"evaluate  warning: {message}", output) == ["valid", "test"]
    assert re.findall(rf"\nWarning: {message}", output) == ["valid", "test"]
    page = (project.root / "artifacts/evaluation/report.html").read_text()
    assert page.count("no better than a constant on the") == 2


def test_dvc_shows_the_metrics_and_plots(finished: Project) -> None:
    (shown,) = json.loads(finished.run("dvc", "metrics", "show", "--json")).values()
    written = json.loads((finished.root / "artifacts/evaluation/metrics.json").read_text())
    assert shown["data"]["artifacts/evaluation/metrics.json"]["data"] == written
    plots = json.loads(finished.run("dvc", "plots", "show", "--json"))["data"]
    assert {"loss", "accuracy"} <= plots.keys()
    assert all(plot for plot in plots.values())
