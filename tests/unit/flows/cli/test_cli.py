"""The command line: help everywhere and at once, and one clear last line when something is wrong."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.cli.groups import MOVED
from tests.conftest import set_param
from tests.factories.support import ROOT

TOP_LEVEL = ["run", "predict", "sample", "bench", "params", "doctor"]
GROUPS = {
    "stage": ["collect", "ingest", "features", "compact", "train", "join", "evaluate", "compare"],
    "nightly": [
        *("run", "backfill", "list", "rollback", "explain", "replay"),
        *("prune", "health", "alerts"),
    ],
}
COMMANDS = [
    *([name] for name in TOP_LEVEL),
    *([group, name] for group, names in GROUPS.items() for name in names),
]
CLICKMILL = str(Path(sys.executable).with_name("clickmill"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory with nothing but params.yaml."""
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    return tmp_path


def clickmill(
    root: Path, *arguments: str, columns: int = 200
) -> "subprocess.CompletedProcess[str]":
    """Run a command in root, in a terminal of this width."""
    environment = {name: value for name, value in os.environ.items() if name != "DVC_STAGE"}
    environment["COLUMNS"] = str(columns)
    return subprocess.run(
        [CLICKMILL, *arguments],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def listed_commands(help_text: str) -> list[str]:
    """Return the names in the section Commands of a help text."""
    lines = help_text.split("Commands:")[1].splitlines()
    return [line.split()[0] for line in lines if re.match(r"  \w", line)]


def test_help_lists_every_command(tmp_path: Path) -> None:
    result = clickmill(tmp_path, "--help")
    assert result.returncode == 0
    assert listed_commands(result.stdout) == [*TOP_LEVEL, *GROUPS]
    for group, names in GROUPS.items():
        assert listed_commands(clickmill(tmp_path, group, "--help").stdout) == names


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(tmp_path: Path, command: list[str]) -> None:
    result = clickmill(tmp_path, *command, "--help")
    assert result.returncode == 0
    assert f"clickmill {' '.join(command)}" in result.stdout
    assert f"Example: clickmill {' '.join(command)}" in result.stdout


@pytest.mark.parametrize("group", [[], *([group] for group in GROUPS)], ids=" ".join)
def test_no_description_is_cut_off_in_a_narrow_terminal(tmp_path: Path, group: list[str]) -> None:
    result = clickmill(tmp_path, *group, "--help", columns=80)
    assert "..." not in result.stdout
    assert all(len(line) <= 80 for line in result.stdout.splitlines())


@pytest.mark.parametrize("old_name", MOVED)
def test_an_old_name_works_and_prints_the_new_one(tmp_path: Path, old_name: str) -> None:
    result = clickmill(tmp_path, old_name, "--help")
    assert result.returncode == 0
    new_name = MOVED[old_name]
    assert result.stdout == clickmill(tmp_path, *new_name.split(), "--help").stdout
    assert result.stderr == (
        f"clickmill: `clickmill {old_name}` is now `clickmill {new_name}`; "
        "the old name works until the next release\n"
    )


def test_params_prints_what_is_used_and_its_schema(root: Path) -> None:
    set_param(root, "features", None, "bars-x4")
    values = json.loads(clickmill(root, "params").stdout)
    assert values["features"]["dense"] == "floor_ln2"
    schema = json.loads(clickmill(root, "params", "--schema").stdout)
    assert set(schema["properties"]) == set(values)


def test_nothing_heavy_is_imported_for_help() -> None:
    """The ingest image has no torch, and help should not take seconds."""
    heavy = {"torch", "prefect", "dvc", "polars", "pyarrow", "numpy"}
    code = f"import sys, flows.cli.main; print(*sorted({heavy} & set(sys.modules)))"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        == "\n"
    )


def test_no_torch_up_to_the_features() -> None:
    """The ingest image runs these commands without torch."""
    rooms = "features.collect.stage, features.sample.generate, features.ingest.stage, features.encode.stage"
    code = f"import sys, flows.cli.main, flows.dvc_stages, flows.results, {rooms}; print('torch' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        == "False\n"
    )


@pytest.mark.parametrize(
    "command",
    [
        ["run"],
        *(["stage", name] for name in ("collect", "ingest", "features", "train", "evaluate")),
    ],
    ids=" ".join,
)
def test_outside_the_repository(tmp_path: Path, command: list[str]) -> None:
    result = clickmill(tmp_path, *command)
    assert result.returncode == os.EX_CONFIG
    assert (
        result.stderr
        == "clickmill: error: params.yaml not found; run this in the repository's root\n"
    )


def test_a_typo_is_one_line_that_names_it(root: Path) -> None:
    set_param(root, "train", "bacth_size", 1)
    result = clickmill(root, "stage", "train")
    assert result.returncode == os.EX_CONFIG
    assert (
        result.stderr == "clickmill: error: params.yaml: train.bacth_size: no such key (found 1)\n"
    )


@pytest.mark.parametrize(
    ("section", "name", "value", "code", "said"),
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
def test_what_cannot_be_trained_is_refused_before_any_stage(
    root: Path, section: str, name: str, value: Any, code: int, said: str
) -> None:
    """Nothing is there but params.yaml, and torch is not imported."""
    set_param(root, section, name, value)
    result = clickmill(root, "stage", "train")
    assert (result.returncode, result.stdout) == (code, "")
    assert re.match(rf"clickmill: error: params.yaml: .*{said}", result.stderr)
    script = "import sys; from features.schema.check_params import *\ntry: load_declared()\nfinally: print('torch' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False
        ).stdout
        == "False\n"
    )


def test_a_missing_log_is_one_line_that_names_it(root: Path) -> None:
    set_param(root, "data", "source", "nowhere.tsv")
    result = clickmill(root, "stage", "collect")
    assert result.returncode == os.EX_DATAERR
    assert result.stderr.splitlines()[-1].startswith(
        "clickmill: error: data.source: no log found at 'nowhere.tsv'"
    )
    assert "Traceback" not in result.stderr


def test_a_stage_before_its_turn_says_what_is_missing(root: Path) -> None:
    result = clickmill(root, "stage", "ingest")
    assert result.returncode == os.EX_DATAERR
    assert result.stderr.splitlines()[-1].startswith("clickmill: error: ")
    assert "Traceback" not in result.stderr


def test_sample_takes_days_and_seed_from_params(root: Path) -> None:
    """Defaults stand in params.yaml alone; an option goes before them."""
    set_param(root, "sample", "seed", 5)
    logs = {}
    for name, options in {
        "default": [],
        "same": ["--seed", "5", "--days", "7"],
        "other": ["--seed", "6"],
        "days": ["--days", "3"],
    }.items():
        assert (
            clickmill(
                root, "sample", "--rows", "300", "--output", f"{name}.tsv", *options
            ).returncode
            == 0
        )
        logs[name] = (root / f"{name}.tsv").read_bytes()
    assert logs["default"] == logs["same"]
    assert len(set(logs.values())) == 3
    assert all(log.count(b"\n") == 300 for log in logs.values())


def test_sample_refuses_no_rows(root: Path) -> None:
    result = clickmill(root, "sample", "--rows", "0", "--output", "log.tsv")
    assert result.returncode == 2
    assert "--rows" in result.stderr
    assert not (root / "log.tsv").exists()
