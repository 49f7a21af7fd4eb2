"""Deletes the data of old nightly runs from DVC's cache. Tags and records always stay."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from common.files import recover, remove
from common.logs import get_logger
from flows.nightly.bundles import MODELS, SERVING_OUTPUT
from flows.nightly.clone import MODEL_OUTPUT
from flows.nightly.dvc_storage import delete_unused, is_cached
from flows.nightly.record import PRODUCTION, NightlyRun
from flows.nightly.repository import NightlyRepository
from serving.serving_bundle import SUFFIX

NUM_BUNDLES_KEPT = 3  # in artifacts/models, where a rollback needs no copy from the cache

log = get_logger("prune")


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
    kept = [md5 for run in old if run.number in served for md5 in _model_hashes(repository, run)]
    deleted = delete_unused(
        root, [run.tag for run in runs if run not in old], kept, dry_run=dry_run
    )
    if not dry_run:
        _delete_bundles(repository, runs, served)
    return Pruned([run.number for run in old], deleted.num_files, deleted.num_bytes)


def _delete_bundles(
    repository: NightlyRepository, runs: Sequence[NightlyRun], served: Sequence[int]
) -> None:
    """Delete bundles from artifacts/models, and the serving bundles beside them.

    A rollback takes them from DVC's cache again.

    Those of the last models in production stay, and those of which the cache has no intact copy.
    """
    models = repository.root / MODELS
    if not models.exists():
        return
    latest = list(dict.fromkeys(reversed(served)))[:NUM_BUNDLES_KEPT]
    run_of = {run.version: run for run in runs if run.version and run.number in served}
    kept = {run.version for run in run_of.values() if run.number in latest}
    kept.add((repository.root / PRODUCTION).resolve().name)
    for version in run_of:
        for suffix in ("", SUFFIX):
            recover(models / f"{version}{suffix}")
    for directory in models.iterdir():
        version = directory.name.removesuffix(SUFFIX)
        run = run_of.get(version)
        if version in kept:
            continue
        if run and not _is_cached(repository, run):
            log.warning(f"{MODELS / directory.name} stays: DVC's cache has no intact copy of it")
            continue
        remove(directory)


def _is_cached(repository: NightlyRepository, run: NightlyRun) -> bool:
    hashes = _model_hashes(repository, run)
    return bool(hashes) and all(is_cached(repository.root, md5) for md5 in hashes)


def _model_hashes(repository: NightlyRepository, run: NightlyRun) -> list[str]:
    """Return the MD5 of the bundle and of the serving bundle that a run has in DVC."""
    hashes = repository.output_hashes(run.tag)
    return [hashes[output] for output in (MODEL_OUTPUT, SERVING_OUTPUT) if output in hashes]
