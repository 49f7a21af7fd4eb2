"""The command line: its help, its old names, and errors in one line that names the fault."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from flows.cli.groups import MOVED
from flows.cli.main import app
from tests.conftest import set_param
from tests.factories.support import ROOT, STAGES

TOP_LEVEL = [
    *("run", "predict", "compress", "export", "sample", "bench", "params", "doctor"),
    *("serve", "served", "adopt"),
]
GROUPS = {
    "schema": ["infer", "check"],
    "stage": [
        *("collect", "ingest", "features", "compact", "train", "join"),
        *("evaluate", "export", "compare"),
    ],
    "nightly": [
        *("run", "backfill", "list", "rollback", "explain", "replay"),
        *("prune", "health", "alerts"),
    ],
    "tune": ["dims"],
}
COMMANDS = [
    *([name] for name in TOP_LEVEL),
    *([group, name] for group, names in GROUPS.items() for name in names),
]
CLICKMILL = str(Path(sys.executable).with_name("clickmill"))
HEAVY_PACKAGES = {"torch", "prefect", "dvc", "polars", "pyarrow", "numpy"}
INGEST_MODULES = (
    "flows.cli.main",
    "flows.dvc_stages",
    "flows.results",
    "features.collect.stage",
    "features.sample.generate",
    "features.ingest.stage",
    "features.dataset.stage",
)
CHECK_PARAMS = """
import sys
from features.schema.check_params import load_checked_params
try:
    load_checked_params()
finally:
    print("torch" in sys.modules)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory with params.yaml alone."""
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    return tmp_path


def clickmill(root: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a command in root, in a wide terminal."""
    environment = {name: value for name, value in os.environ.items() if name != "DVC_STAGE"}
    environment["COLUMNS"] = "200"
    return subprocess.run(
        [CLICKMILL, *arguments],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def run_python(code: str, directory: Path) -> "subprocess.CompletedProcess[str]":
    """Run code in a Python process in a directory."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=directory, capture_output=True, text=True, check=False
    )


def listed_commands(help_text: str) -> list[str]:
    """Return the names in the section Commands of a help text."""
    lines = help_text.split("Commands:")[1].splitlines()
    return [line.split()[0] for line in lines if re.match(r"  [\w-]+( |$)", line)]


def help_of(*words: str, columns: int = 200) -> Result:
    """Ask for the help of a command in this process, in a terminal of this width."""
    runner = CliRunner(env={"COLUMNS": str(columns)})
    result = runner.invoke(app, [*words, "--help"], prog_name="clickmill")
    assert result.exit_code == 0
    return result


def test_help_lists_every_command(tmp_path: Path) -> None:
    result = clickmill(tmp_path, "--help")
    assert result.returncode == 0
    assert result.stdout.split() == help_of().stdout.split()
    assert listed_commands(result.stdout) == [*TOP_LEVEL, *GROUPS]
    for group, names in GROUPS.items():
        assert listed_commands(help_of(group).stdout) == names


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(command: list[str]) -> None:
    text = help_of(*command).stdout
    assert f"clickmill {' '.join(command)}" in text
    assert f"Example: clickmill {' '.join(command)}" in text


@pytest.mark.parametrize("group", [[], *([group] for group in GROUPS)], ids=" ".join)
def test_no_description_is_cut_off_in_a_narrow_terminal(group: list[str]) -> None:
    help_text = help_of(*group, columns=80).stdout
    assert "..." not in help_text.split("Commands:")[1]
    assert all(len(line) <= 80 for line in help_text.splitlines())


@pytest.mark.parametrize("old_name", MOVED)
def test_an_old_name_works_and_prints_the_new_one(old_name: str) -> None:
    result = help_of(old_name)
    new_name = MOVED[old_name]
    assert result.stdout == help_of(*new_name.split()).stdout
    assert result.stderr == (
        f"clickmill: `clickmill {old_name}` is now `clickmill {new_name}`; "
        "the old name works until the next release\n"
    )


def test_params_prints_the_used_values_and_their_schema(root: Path) -> None:
    set_param(root, "features", None, "bars-x4")
    values = json.loads(clickmill(root, "params").stdout)
    assert values["features"]["dense"] == "floor_ln2"
    schema = json.loads(clickmill(root, "params", "--schema").stdout)
    assert set(schema["properties"]) == set(values)


def test_help_imports_no_heavy_package() -> None:
    """The ingest image has no torch, and help should not take seconds."""
    code = f"import sys, flows.cli.main; print(sorted({HEAVY_PACKAGES} & set(sys.modules)))"
    assert run_python(code, ROOT).stdout == "[]\n"


def test_the_stages_up_to_features_import_no_torch() -> None:
    """The ingest image runs them without torch."""
    code = f"import sys, {', '.join(INGEST_MODULES)}; print('torch' in sys.modules)"
    assert run_python(code, ROOT).stdout == "False\n"


@pytest.mark.parametrize(
    "command",
    [
        ["run"],
        *(["stage", name] for name in STAGES),
    ],
    ids=" ".join,
)
def test_a_command_outside_a_repository_is_refused(tmp_path: Path, command: list[str]) -> None:
    result = clickmill(tmp_path, *command)
    assert result.returncode == os.EX_CONFIG
    assert (
        result.stderr
        == "clickmill: error: params.yaml not found; run this in the repository's root\n"
    )


def test_a_typo_in_params_is_reported_in_one_line(root: Path) -> None:
    set_param(root, "train", "bacth_size", 1)
    result = clickmill(root, "stage", "train")
    assert result.returncode == os.EX_CONFIG
    assert (
        result.stderr == "clickmill: error: params.yaml: train.bacth_size: no such key (found 1)\n"
    )


@pytest.mark.parametrize(
    ("section", "name", "value", "code", "message"),
    [
        (
            "model",
            "interaction",
            {"name": "cross", "layers": 3, "rank": 432},
            os.EX_CONFIG,
            "rank is 432, but the matrices are 432 wide",
        ),
        (
            "evaluate",
            "frequency_bucket_column",
            "C27",
            os.EX_CONFIG,
            "frequency_bucket_column: 'C27' is no categorical feature",
        ),
        (
            "train",
            "warm_start_from",
            "runs/models/none",
            os.EX_DATAERR,
            "train.warm_start_from: no directory 'runs/models/none'",
        ),
    ],
)
def test_params_that_cannot_be_trained_with_are_refused_before_any_stage(
    root: Path, section: str, name: str, value: Any, code: int, message: str
) -> None:
    """The check needs only params.yaml, and does not import torch."""
    set_param(root, section, name, value)
    result = clickmill(root, "stage", "train")
    assert (result.returncode, result.stdout) == (code, "")
    assert re.match(rf"clickmill: error: params.yaml: .*{message}", result.stderr)
    assert run_python(CHECK_PARAMS, root).stdout == "False\n"


def test_a_missing_log_is_reported_in_one_line(root: Path) -> None:
    set_param(root, "data", "source", "nowhere.tsv")
    result = clickmill(root, "stage", "collect")
    assert result.returncode == os.EX_DATAERR
    assert result.stderr.splitlines()[-1].startswith(
        "clickmill: error: data.source: no log found at 'nowhere.tsv'"
    )
    assert "Traceback" not in result.stderr


def test_a_stage_whose_input_is_missing_is_reported_in_one_line(root: Path) -> None:
    result = clickmill(root, "stage", "ingest")
    assert result.returncode == os.EX_DATAERR
    assert result.stderr.splitlines()[-1].startswith("clickmill: error: ")
    assert "Traceback" not in result.stderr


def test_sample_takes_days_and_seed_from_params(root: Path) -> None:
    """params.yaml has the only defaults; an option replaces one."""
    set_param(root, "sample", "seed", 5)

    def sample(*options: str) -> bytes:
        """Write a log with these options, and return its bytes."""
        result = clickmill(root, "sample", "--rows", "300", "--output", "log.tsv", *options)
        assert result.returncode == 0
        log = (root / "log.tsv").read_bytes()
        assert log.count(b"\n") == 300
        return log

    default = sample()
    assert sample("--seed", "5", "--days", "7") == default
    assert len({default, sample("--seed", "6"), sample("--days", "3")}) == 3


def test_sample_refuses_no_rows(root: Path) -> None:
    result = clickmill(root, "sample", "--rows", "0", "--output", "log.tsv")
    assert result.returncode == 2
    assert "--rows" in result.stderr
    assert not (root / "log.tsv").exists()
