"""Retention: what DVC's cache keeps of past nights. Tags and records stay for ever; data and models can be given up."""

import logging
from pathlib import Path
from typing import NamedTuple

from dvc.repo import Repo

from common.files import remove
from flows.nightly.record import nights
from flows.nightly.record_commit import unpushed
from flows.nightly.registry import MODEL_OUTPUT, MODELS, assignments

SERVED_KEPT = (
    3  # models that served last, the present one included: what a rollback reaches in seconds
)


class Pruned(NamedTuple):
    """nights: whose data goes; num_files, num_bytes: of the cache."""

    nights: list[int]
    num_files: int
    num_bytes: int


def prune(root: Path, num_nights: int, *, dry_run: bool) -> Pruned:
    """Keep all of the last num_nights nights and of those that are not at DVC's remote yet, the models of others that have ever served, and
    what branches and the checkout use.

    Everything else in DVC's cache is removed, with dry_run nothing. The remote is left alone.
    """
    logging.getLogger("dvc").setLevel(
        logging.ERROR
    )  # that a checkout has not run its stages is nothing to warn of here
    done, late = nights(root), unpushed(root)
    old = [night for night in done[:-num_nights] if night.number not in late]
    whole = [night for night in done if night not in old]
    served = [one.night for one in assignments(root)]
    with Repo(str(root)) as repo, repo.lock:
        used = _used(repo.used_objs(all_branches=True, revs=[night.tag for night in whole]))
        if models := [night.tag for night in old if night.number in served]:
            used |= _used(repo.used_objs(targets=[MODEL_OUTPUT], revs=models))
        cache = repo.cache.local
        unused = [oid for oid in cache.all() if oid not in used]
        sizes = [Path(cache.oid_to_path(oid)).stat().st_size for oid in unused]
        if not dry_run:
            for oid in unused:
                cache.delete(oid)
    if not dry_run:
        _forget_copies(root, served)
    return Pruned([night.number for night in old], len(unused), sum(sizes))


def _used(by_store: dict[object, set[object]]) -> set[str]:
    return {info.value for infos in by_store.values() for info in infos}  # type: ignore[attr-defined]


def _forget_copies(root: Path, served: list[int]) -> None:
    """Of artifacts/models those that did not serve of late; they come back from the cache."""
    latest = list(dict.fromkeys(reversed(served)))[:SERVED_KEPT]
    kept = {night.version for night in nights(root) if night.number in latest}
    for directory in (root / MODELS).iterdir() if (root / MODELS).exists() else ():
        if directory.name not in kept:
            remove(directory)
