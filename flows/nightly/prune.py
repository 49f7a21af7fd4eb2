"""Deletes the data of old nightly runs from DVC's cache. Tags and records always stay."""

from pathlib import Path
from typing import NamedTuple

from common.files import remove
from flows.nightly.clone import MODEL_OUTPUT
from flows.nightly.dvc_storage import delete_unused
from flows.nightly.repository import MODELS, NightlyRepository

NUM_BUNDLES_KEPT = 3  # in artifacts/models, where a rollback needs no copy from the cache


class Pruned(NamedTuple):
    """The runs whose data was deleted, and the number of deleted files and bytes."""

    runs: list[int]
    num_files: int
    num_bytes: int


def prune(root: Path, num_runs: int, *, dry_run: bool) -> Pruned:
    """Delete the data of old nightly runs from DVC's cache. The remote is left alone.

    These stay: all data of the last runs and of runs that are not at DVC's remote yet, every model
    that was ever in production, and what branches and the checkout use.

    Args:
        root: The repository.
        num_runs: The number of last runs whose data stays.
        dry_run: Delete nothing, and only report what would be deleted.
    """
    repository = NightlyRepository(root)
    runs, unpushed = repository.runs(), repository.unpushed()
    old = [run for run in runs[:-num_runs] if run.number not in unpushed]
    served = [assignment.run for assignment in repository.assignments()]
    deleted = delete_unused(
        root,
        [run.tag for run in runs if run not in old],
        MODEL_OUTPUT,
        [run.tag for run in old if run.number in served],
        dry_run=dry_run,
    )
    if not dry_run:
        latest = list(dict.fromkeys(reversed(served)))[:NUM_BUNDLES_KEPT]
        _delete_bundles(root, {run.version for run in runs if run.number in latest})
    return Pruned([run.number for run in old], deleted.num_files, deleted.num_bytes)


def _delete_bundles(root: Path, kept_versions: set[str | None]) -> None:
    """Delete other bundles from artifacts/models; a rollback takes them from DVC's cache again."""
    if not (root / MODELS).exists():
        return
    for directory in (root / MODELS).iterdir():
        if directory.name not in kept_versions:
            remove(directory)
