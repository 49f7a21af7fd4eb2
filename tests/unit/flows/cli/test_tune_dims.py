"""`clickmill tune dims` prints a section that params.yaml takes."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from common.config.loading import ConfigError
from common.config.yaml_text import flow
from flows import tune_stages
from flows.cli.main import app
from tests.factories.features import training_params, write_features

DAYS = {"train": [300, 200], "valid": [150], "test": [50]}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the command runs in, with features of the schema criteo."""
    write_features(tmp_path, DAYS)
    params = training_params({"embedding_dim": 4}, epochs=1, logger="none")
    lines = [
        f"{section}: {flow(values)}"
        for section, values in params.model_dump(mode="json", by_alias=True).items()
    ]
    (tmp_path / "params.yaml").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    # The features are there, and the folder is no repository for DVC.
    monkeypatch.setattr(tune_stages, "bring_features_up_to_date", lambda root: None)
    return tmp_path


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["tune", "dims", *arguments], catch_exceptions=True)


def test_the_section_that_is_printed_is_valid(project: Path) -> None:
    result = run("--budget", "0.5", "--seeds", "2")
    assert result.exit_code == 0, result.output
    shown = result.output[result.output.index("model:\n") :]
    tables = yaml.safe_load(shown)["model"]["tables"]
    assert tables["name"] == "per_column"
    params = training_params({"embedding_dim": 4, "tables": tables})
    assert params.model.tables.name == "per_column"
    lines = result.output.splitlines()
    (searched,) = [line for line in lines if line.startswith("searched ")]
    assert searched.count("0.") == 3  # the mean, and the figure of each seed
    assert [line for line in lines if line.startswith("uniform 2 ")]
    assert (project / "runs/tune/dims.json").exists()


def test_a_budget_out_of_range_is_refused() -> None:
    result = run("--budget", "0")
    assert result.exit_code == 2
    assert "budget" in result.output


def test_a_mistake_in_the_budget_is_one_line(project: Path) -> None:
    result = run("--budget", "0.001")
    assert isinstance(result.exception, SystemExit | ConfigError)
    assert not (project / "runs/tune/dims.json").exists()


def test_ctrl_c_writes_nothing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.tune import dims

    def interrupted(*_: Any) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise SystemExit(1)  # noqa: B904 - as Lightning does

    monkeypatch.setattr(dims, "_evolve", interrupted)
    result = run()
    assert "stopped; nothing was written" in result.output
    assert result.exit_code == 130 or isinstance(result.exception, KeyboardInterrupt)
    assert not (project / "runs/tune/dims.json").exists()
