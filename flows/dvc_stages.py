"""DVC's own graph: which stages there are, whether they are up to date, and how one of them is run."""

import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from dvc.dvcfile import Lockfile
from dvc.lock import make_lock
from dvc.repo import Repo
from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK
from dvc.utils.strictyaml import YAMLSyntaxError, YAMLValidationError
from networkx import topological_sort

from common.config.params import Params, load_params
from common.subprocess_tree import CommandFailed, run_streaming
from features.collect.stage import source_changed

ERROR = "clickmill: error: "  # how the command line begins the line that says why a stage failed
DVC_HINTS = re.compile(
    r"$|To track the changes|\tgit add|To enable auto|\tdvc config|Use `dvc push`|Data and pipelines are up"
)
FIRST = "collect"  # the stage whose input lies outside the repository, where DVC does not look


class StageFailed(CommandFailed):
    """A stage exited with another code than 0. The message is the stage and its own last word, as many lines as that has.

    of_data, of_setup: whether it was the data, or params.yaml and what is installed, that was at fault, and not the machine or the code.
    """

    def __init__(self, stage: str, failed: CommandFailed) -> None:
        super().__init__(failed.command, failed.code, failed.tail)
        self.args = (f"stage {stage} failed: {_reason(failed.tail)}",)
        self.of_data, self.of_setup = (
            _exited_with(code, failed.tail) for code in (os.EX_DATAERR, os.EX_CONFIG)
        )


def mend_lock(root: Path) -> None:
    """Remove a dvc.lock or a table of DVC's running processes that a kill cut short: DVC writes both in place, and refuses them then.

    Stages that are not in the lock are run again and leave the same, so nothing is lost but time. A merge conflict in it is left alone.
    """
    path = root / "dvc.lock"
    with Repo(str(root)) as repo, repo.lock:  # another DVC may be writing it at this moment
        _mend_table(repo)
        try:
            Lockfile(repo, str(path)).load()  # type: ignore[no-untyped-call]
        except (YAMLSyntaxError, YAMLValidationError):
            if "<<<<<<< " not in path.read_text():
                path.unlink()


def _mend_table(repo: Repo) -> None:
    """Who reads and writes which outputs at present. DVC itself takes those out of it that were killed."""
    directory, by_link = Path(repo.tmp_dir), repo.config["core"].get("hardlink_lock", False)
    lock = make_lock(str(directory / RWLOCK_LOCK), tmp_dir=str(directory), hardlink_lock=by_link)  # type: ignore[no-untyped-call]
    with lock, suppress(FileNotFoundError):
        try:
            json.loads((directory / RWLOCK_FILE).read_text(encoding="utf-8"))
        except ValueError:
            (directory / RWLOCK_FILE).unlink()


def stage_names(root: Path) -> list[str]:
    """The stages of dvc.yaml, each after those it depends on."""
    mend_lock(root)
    with Repo(str(root)) as repo:
        return [stage.name for stage in reversed(list(topological_sort(repo.index.graph)))]


def up_to_date(params: Params, root: Path) -> bool:
    """Whether every artifact is what the code, params.yaml and the log at data.source would make. Raises DataError when there is no log."""
    mend_lock(root)
    with Repo(str(root)) as repo:
        return not source_changed(params, root) and not repo.status()


def repro(stage: str, root: Path, log: Callable[[str], None], *, again: bool = False) -> None:
    """Run one stage as a child, `dvc repro --single-item`, if DVC or a changed log says it is stale; log gets each line it prints.

    again: run it even if it is not stale, and take no output of an earlier run.

    Raises StageFailed; ConfigError or DataError when the log cannot be compared with what was collected.
    """
    mend_lock(root)
    force = (
        ["--force"]
        if stage == FIRST and source_changed(load_params(root / "params.yaml"), root)
        else []
    )
    force = ["--force", "--no-run-cache"] if again else force
    command = [sys.executable, "-m", "flows.dvc_command", "repro", "--single-item", *force, stage]
    try:
        run_streaming(
            command,
            lambda line: None if DVC_HINTS.match(line) else log(line),
            cwd=root,
            env=code_of(root),
        )
    except CommandFailed as error:
        raise StageFailed(stage, error) from error


def code_of(root: Path) -> dict[str, str]:
    """The environment in which a child runs the code that stands in root, which may be a night's clone. .venv need not be activated."""
    return {
        "PATH": os.pathsep.join(
            [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
        ),
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(root.resolve()), os.environ.get("PYTHONPATH")])
        ),
        "DO_NOT_TRACK": "1",
    }


def _exited_with(code: int, tail: Sequence[str]) -> bool:
    return any(line.endswith(f"exited with {code}") for line in tail)  # as DVC says it


def _reason(tail: Sequence[str]) -> str:
    lines = [line for line in tail if not DVC_HINTS.match(line)]
    explained = [line.removeprefix(ERROR) for line in lines if line.startswith(ERROR)]
    return (
        "\n".join(explained) if explained else "; ".join(lines[-2:])
    )  # the stage's last line and DVC's, which has the exit code
