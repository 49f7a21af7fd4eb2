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
import sys
from contextlib import suppress
from pathlib import Path

from dvc.cli import main
from dvc.dvcfile import Lockfile
from dvc.lock import make_lock
from dvc.output import Output
from dvc.repo import Repo
from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK
from dvc.utils.strictyaml import YAMLSyntaxError, YAMLValidationError

from common.startup import search_garbage_less_often

MERGE_CONFLICT = "<<<<<<< "


def keep_links() -> None:
    """Let DVC leave linked outputs as they are, for the rest of this process."""

    def unprotect(self: Output) -> None:
        """Leave the output as it is."""

    Output.unprotect = unprotect  # type: ignore[method-assign]


def remove_damaged_locks(root: Path) -> None:
    """Remove dvc.lock, and DVC's table of running processes, where a kill has cut them short.

    A dvc.lock with a merge conflict is left alone.
    """
    path = root / "dvc.lock"
    # The lock of the repository: another DVC process may be writing dvc.lock right now.
    with Repo(str(root)) as repo, repo.lock:
        _remove_damaged_rwlock(repo)
        try:
            Lockfile(repo, str(path)).load()  # type: ignore[no-untyped-call]
        except (YAMLSyntaxError, YAMLValidationError):
            if MERGE_CONFLICT not in path.read_text():
                path.unlink()


def _remove_damaged_rwlock(repo: Repo) -> None:
    """Remove the table of which process reads or writes which output."""
    directory = Path(repo.tmp_dir)
    lock = make_lock(  # type: ignore[no-untyped-call]
        str(directory / RWLOCK_LOCK),
        tmp_dir=str(directory),
        hardlink_lock=repo.config["core"].get("hardlink_lock", False),
    )
    with lock, suppress(FileNotFoundError):
        try:
            json.loads((directory / RWLOCK_FILE).read_text(encoding="utf-8"))
        except ValueError:
            (directory / RWLOCK_FILE).unlink()


if __name__ == "__main__":
    search_garbage_less_often()
    keep_links()
    sys.exit(main(sys.argv[1:]))  # type: ignore[no-untyped-call]
