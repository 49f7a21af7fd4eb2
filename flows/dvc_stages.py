"""The stages of dvc.yaml: their names, whether they are up to date, and how to run one."""

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from dvc.repo import Repo
from networkx import lexicographical_topological_sort

from common.config.loading import ConfigError
from common.config.params import Params, load_params
from common.fault_file import FAULT_FILE, Fault, read_fault
from common.subprocess_tree import CommandFailed, run_streaming
from features.collect.stage import source_changed
from flows.adapters.dvc import (
    check_output_places,
    open_repo,
    remove_damaged_locks,
    wait_for_running_commands,
)

DVC_HINTS = re.compile(
    r"$|To track the changes|\tgit add|To enable auto|\tdvc config|Use `dvc push`"
    r"|Data and pipelines are up"
)
STAGES = ("collect", "ingest", "features", "train", "evaluate", "export")  # dvc.yaml may have more
FIRST_STAGE = STAGES[0]  # its input is outside the repository, where DVC does not look


class StageFailed(CommandFailed):
    """A stage exited with a code other than 0. The message has its name and its reason.

    Attributes:
        is_data_fault: The data is at fault (exit code EX_DATAERR), not the machine or the code.
        is_config_fault: params.yaml or the installation is at fault (exit code EX_CONFIG).
    """

    def __init__(self, stage: str, failed: CommandFailed, fault: Fault | None) -> None:
        super().__init__(failed.command, failed.code, failed.tail)
        reason = fault.message if fault else _last_words(failed.tail)
        self.args = (f"stage {stage} failed: {reason}",)
        self.is_data_fault = fault is not None and fault.code == os.EX_DATAERR
        self.is_config_fault = fault is not None and fault.code == os.EX_CONFIG


def stage_names(root: Path) -> list[str]:
    """Return the stages of dvc.yaml, each after the stages that it depends on.

    Raises:
        ConfigError: dvc.yaml lacks a stage, or see `open_repo`.
    """
    remove_damaged_locks(root)
    with open_repo(root) as repo:
        return _stage_names(repo)


def _stage_names(repo: Repo) -> list[str]:
    check_output_places(repo)
    # an edge leads to a stage that this one depends on; equal ones are in the order of the file
    stages = list(repo.index.stages)
    graph = repo.index.graph.reverse()  # type: ignore[no-untyped-call]
    names = [stage.name for stage in lexicographical_topological_sort(graph, stages.index)]
    if missing := [name for name in STAGES if name not in names]:
        raise ConfigError(
            f"dvc.yaml has no stage {', '.join(missing)}; restore it: `git checkout -- dvc.yaml`"
        )
    return names


def check_stages(root: Path) -> None:
    """Check that DVC can run the stages. Nothing is changed.

    Raises:
        ConfigError: See `stage_names`.
    """
    with open_repo(root) as repo:
        _stage_names(repo)


def up_to_date(params: Params, root: Path) -> bool:
    """Return whether no stage is stale, and the log at data.source is unchanged.

    Raises:
        DataError: There is no log at data.source.
        ConfigError: dvc.yaml lacks a stage, or see `open_repo`.
    """
    remove_damaged_locks(root)
    with open_repo(root) as repo:
        _stage_names(repo)
        return not source_changed(params, root) and not repo.status()


def repro(
    stage: str,
    root: Path,
    log: Callable[[str], None],
    *,
    again: bool = False,
    env: Mapping[str, str] | None = None,
) -> None:
    """Run one stage in a child process (`dvc repro --single-item`), if it is stale.

    Args:
        stage: A stage of dvc.yaml.
        root: The repository, whose code runs.
        log: Called with each line that the child prints.
        again: Run the stage even if it is not stale, and take no output of an earlier run.
        env: More environment variables for the child.

    Raises:
        StageFailed: The stage failed.
        ConfigError, DataError: The log cannot be compared with what was collected.
    """
    remove_damaged_locks(root)
    wait_for_running_commands(root, log)
    force: list[str] = []
    if again:
        force = ["--force", "--no-run-cache"]
    elif stage == FIRST_STAGE and source_changed(load_params(root / "params.yaml"), root):
        force = ["--force"]
    command = [sys.executable, "-m", "flows.adapters.dvc", "repro", "--single-item", *force, stage]

    def log_line(line: str) -> None:
        if not DVC_HINTS.match(line):
            log(line)

    run_child(stage, command, root, log_line, env=env)


def run_child(
    name: str,
    command: Sequence[str],
    root: Path,
    log: Callable[[str], None],
    *,
    env: Mapping[str, str] | None = None,
) -> None:
    """Run a command of clickmill in a child process.

    Args:
        name: The stage, or what else the command does, for the error.
        command: The command and its arguments.
        root: The repository, whose code runs.
        log: Called with each line that the child prints.
        env: More environment variables for the child.

    Raises:
        StageFailed: The command failed.
    """
    with TemporaryDirectory(prefix="clickmill-") as directory:
        fault_file = Path(directory) / "fault.json"
        variables = environment_of(root) | dict(env or {}) | {FAULT_FILE: str(fault_file)}
        try:
            run_streaming(command, log, cwd=root, env=variables)
        except CommandFailed as error:
            raise StageFailed(name, error, read_fault(fault_file)) from error


def environment_of(root: Path) -> dict[str, str]:
    """Return the environment variables with which a child process runs the code in root.

    The virtual environment of this process is used, whether it is activated or not.
    """
    path = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    python_path = [str(root.resolve()), os.environ.get("PYTHONPATH")]
    return {
        "PATH": os.pathsep.join(path),
        "PYTHONPATH": os.pathsep.join(filter(None, python_path)),
        "DO_NOT_TRACK": "1",
    }


def _last_words(tail: Sequence[str]) -> str:
    """Return the stage's last line, and DVC's with the exit code."""
    return "; ".join([line for line in tail if not DVC_HINTS.match(line)][-2:])
