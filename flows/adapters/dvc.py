"""Changes to DVC, and accesses to its private files.

`python -m flows.adapters.dvc COMMAND ...` is `dvc` with these changes:

1. Before DVC runs a stage, it replaces persistent outputs that are links into its cache by copies,
   so that the stage cannot write through the link. Our stages build each output beside its place
   and rename it, so the copies are not needed, and for a log that grows by a day they would be all
   days before, three times (https://github.com/treeverse/dvc/issues/6562).
2. DVC writes dvc.lock and .dvc/tmp/rwlock in place, and refuses to start after a kill damaged one
   (https://github.com/treeverse/dvc/issues/7615). We remove the damaged file: the stages concerned
   run again and leave the same outputs.
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import psutil
from dvc.cli import main
from dvc.config import Config
from dvc.config import ConfigError as DvcConfigError
from dvc.dvcfile import Lockfile
from dvc.exceptions import DvcException, NotDvcRepoError
from dvc.lock import LockBase, LockError, make_lock
from dvc.output import Output
from dvc.repo import Repo
from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK
from dvc.scm import SCMError
from dvc.utils.serialize import EncodingError
from dvc.utils.strictyaml import YAMLSyntaxError, YAMLValidationError
from ruamel.yaml.error import MarkedYAMLError

from common.config.loading import ConfigError
from common.layout import ARTIFACTS
from common.logs import get_logger
from common.printable import join_lines
from common.startup import search_garbage_less_often

MERGE_CONFLICT = "<<<<<<< "
ASK_EVERY_S = 1.0
# PYTHONPATH is split at colons, DVC's progress bar is formatted with the braces, and Prefect's log
# takes only text. The last two are line breaks and the like, and bytes that are not UTF-8.
UNUSABLE = re.compile("[:{}\\x00-\\x1f\\x7f\\ud800-\\udfff]")
DVC_LOCK, CONFIG_FILES = "dvc.lock", (".dvc/config", ".dvc/config.local")

log = get_logger("dvc")


@contextmanager
def open_repo(root: Path, config: dict[str, Any] | None = None) -> Iterator[Repo]:
    """Open the DVC repository of a project. What DVC finds wrong is reported in one line.

    If another DVC command holds the repository's lock, what needs the lock waits for it.

    Args:
        root: The project.
        config: Settings that go before those of the project, at every revision.

    Raises:
        ConfigError: There is no DVC repository, one of its files is damaged, or DVC refuses what is
            done with it.
    """
    check_folder_name(root)
    try:
        with Repo(str(root), config=config, _wait_for_lock=True) as repo:
            if Path(repo.root_dir).resolve() != root.resolve():
                raise ConfigError(_no_dvc(root, f"the one that DVC found is in {repo.root_dir}"))
            yield repo
    except DvcException as error:
        raise ConfigError(_describe(error, root)) from None


def check_folder_name(root: Path) -> None:
    """Refuse a project whose path DVC, or the search path of a child process, cannot contain.

    Raises:
        ConfigError: The path has such a character.
    """
    path = str(root.resolve())
    if found := UNUSABLE.search(path):
        raise ConfigError(
            f"the path {path!r} contains {found[0]!r}, which DVC, Prefect or PYTHONPATH cannot "
            "handle; rename the folder"
        )


def check_output_places(repo: Repo) -> None:
    """Refuse a repository in which DVC could not keep the outputs of the stages.

    Raises:
        ConfigError: The folder of the outputs is a link, or DVC's cache cannot be written.
    """
    artifacts = Path(repo.root_dir) / ARTIFACTS
    if artifacts.is_symlink():
        raise ConfigError(
            f"{artifacts} is a link to {artifacts.readlink()}, and DVC keeps only outputs that are "
            "inside the repository; make it a folder, and to use another disk, put DVC's cache "
            "there: `dvc cache dir PATH` and `dvc config cache.type symlink`"
        )
    cache = Path(repo.cache.local_cache_dir)
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(
            f"DVC's cache {cache} cannot be written, because {existing} is not a folder that this "
            "user may write; chown or chmod it, or choose another place: `dvc cache dir PATH`"
        )


def _describe(error: DvcException, root: Path) -> str:
    """Return one line that says what DVC found wrong, and what to do."""
    if isinstance(error, NotDvcRepoError):
        return _no_dvc(root, str(error))
    if isinstance(error, SCMError) and "is not a git repository" in str(error):
        return f"{error}, and DVC needs one; run `git init` there"
    if isinstance(error, YAMLSyntaxError):
        name = Path(error.relpath).name
        if error.hint:
            return f"{name} contains the markers of a merge conflict; {_how_to_merge(name)}"
        cause = error.exc.__cause__
        where = ""
        if isinstance(cause, MarkedYAMLError) and cause.problem_mark:
            where = f": {cause.problem}, in line {cause.problem_mark.line + 1} or the line above"
        return f"{name} is not YAML{where}; {_how_to_restore(name)}"
    if isinstance(error, YAMLValidationError):
        name = Path(error.path).name
        if MERGE_CONFLICT in error.text:
            return f"{name} contains the markers of a merge conflict; {_how_to_merge(name)}"
        faults = ", ".join(
            f"{'.'.join(map(str, fault.path)) or 'the file'}: {fault.error_message}"
            for fault in error.exc.errors
        )
        return f"{name} is not as DVC expects it: {faults}; {_how_to_restore(name)}"
    if isinstance(error, EncodingError):
        name = Path(error.path).name
        return f"{name} is not UTF-8; {_how_to_restore(name)}"
    if isinstance(error, DvcConfigError):
        return f"{_damaged_config(root)}: {join_lines(str(error))}; correct it"
    if isinstance(error, LockError):
        return f"another DVC command works in {root.resolve()}: {join_lines(str(error))}"
    return f"DVC: {join_lines(str(error))}"


def _no_dvc(root: Path, reason: str) -> str:
    return (
        f"{root.resolve()} has no folder .dvc ({reason}); restore it: `git checkout -- .dvc`, or "
        "make it: `dvc init`, and in a folder of a larger git repository `dvc init --subdir`"
    )


def _how_to_merge(name: str) -> str:
    if name == DVC_LOCK:
        return (
            "take one side (`git checkout --ours dvc.lock`, or --theirs), or remove the file: the "
            "next run makes it again"
        )
    return "edit it, and remove the lines that begin with <<<<<<<, ======= and >>>>>>>"


def _how_to_restore(name: str) -> str:
    if name == DVC_LOCK:
        return "remove it: the next run makes it again"
    return f"correct it, or restore it: `git checkout -- {name}`"


def _damaged_config(root: Path) -> str:
    """Return the name of the configuration file of DVC that cannot be read."""
    for name in CONFIG_FILES:
        try:
            Config.load_file(str(root / name))
        except FileNotFoundError:
            continue
        except DvcConfigError:
            return name
    return " or ".join(CONFIG_FILES)


def keep_links() -> None:
    """Let DVC leave linked outputs as they are, for the rest of this process."""

    def unprotect(self: Output) -> None:
        """Leave the output as it is."""

    Output.unprotect = unprotect  # type: ignore[method-assign]


def remove_damaged_locks(root: Path) -> None:
    """Remove dvc.lock, and DVC's table of running processes, where a kill has cut them short.

    A dvc.lock with a merge conflict is left alone. If another DVC command holds the lock of the
    repository, this function waits for its end.

    Raises:
        ConfigError: See `open_repo`; or dvc.lock has a merge conflict.
    """
    path = root / DVC_LOCK
    with open_repo(root) as repo:
        try:
            with _make_lock(repo, repo.lock.lockfile):
                pass
        except LockError:
            log.info(
                f"another DVC command holds {repo.lock.lockfile}; this one waits for its end "
                "(if no DVC command runs, remove that file)"
            )
        # The lock of the repository: another DVC process may be writing dvc.lock right now.
        with repo.lock:
            _running_commands(repo)
            try:
                Lockfile(repo, str(path)).load()  # type: ignore[no-untyped-call]
            except EncodingError:
                path.unlink()
            except (YAMLSyntaxError, YAMLValidationError):
                if MERGE_CONFLICT in path.read_text(encoding="utf-8"):
                    raise
                path.unlink()


def wait_for_running_commands(root: Path, say: Callable[[str], None]) -> None:
    """Wait until no other DVC command reads or writes outputs in root.

    Args:
        root: The repository.
        say: Gets a line if this function has to wait.
    """
    said: set[str] = set()
    with open_repo(root) as repo:
        while running := _running_commands(repo):
            if running != said:
                said = running
                say(f"another DVC command is active: {', '.join(sorted(running))}; this one waits")
            time.sleep(ASK_EVERY_S)


def _running_commands(repo: Repo) -> set[str]:
    """Return the DVC commands that read or write outputs, by DVC's table of them.

    The table is removed if it is damaged, or if none of its processes runs any more. DVC takes a
    process that has got the id of a killed one for that one, as happens in a new container.
    """
    directory = Path(repo.tmp_dir)
    path = directory / RWLOCK_FILE
    with _make_lock(repo, str(directory / RWLOCK_LOCK)), suppress(FileNotFoundError):
        written_s = path.stat().st_mtime
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
            processes = [*table.get("write", {}).values(), *chain(*table.get("read", {}).values())]
            running = {
                f"process {process['pid']} ({process['cmd']})"
                for process in processes
                if _still_runs(process["pid"], process["cmd"], written_s)
            }
        except (ValueError, LookupError, TypeError, AttributeError):
            running = set()
        if not running:
            path.unlink()
        return running
    return set()


def _still_runs(pid: int, command: str, written_s: float) -> bool:
    """Return whether the process of an entry runs, and not one that has got its id later.

    A clock that is set forward moves the start of every process, so that a command may seem to have
    begun after its entry was written. It is then known by its last argument. If the clock is set
    back, a process that has got the id may be waited for: that is safe, and the line names it.

    Args:
        pid: The id of the process.
        command: Its arguments, as the entry has them.
        written_s: When the table was written, in seconds since the epoch.
    """
    try:
        process = psutil.Process(pid)
        arguments = process.cmdline()  # none if it is a zombie
        return bool(arguments) and (
            process.create_time() <= written_s or command.endswith(f" {arguments[-1]}")
        )
    except psutil.Error:
        return False


def _make_lock(repo: Repo, path: str) -> LockBase:
    """Make one of DVC's locks, for which this process waits three seconds."""
    lock: LockBase = make_lock(  # type: ignore[no-untyped-call]
        path,
        tmp_dir=repo.tmp_dir,
        hardlink_lock=repo.config["core"].get("hardlink_lock", False),
    )
    return lock


if __name__ == "__main__":
    search_garbage_less_often()
    keep_links()
    sys.exit(main(sys.argv[1:]))  # type: ignore[no-untyped-call]
