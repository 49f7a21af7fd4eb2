"""DVC's cache and remote, as nightly runs use them."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc_data.index import DataIndexDirError

from common.files import DataError
from common.masking import mask_passwords


class Deleted(NamedTuple):
    """The number of files that were deleted from DVC's cache, and of their bytes."""

    num_files: int
    num_bytes: int


def share_cache(source: Path, clone: Path) -> None:
    """Let the clone use source's cache and source's remotes with their credentials.

    Files are linked from the cache, because links keep the modification times by which DVC and the
    stage `collect` recognise a file that they need not read again.
    """
    with Repo(str(source)) as repo:
        cache = {"dir": repo.cache.local_cache_dir, "type": ["reflink", "hardlink", "copy"]}
        remotes, default = dict(repo.config["remote"]), repo.config["core"].get("remote")
    with Repo(str(clone)) as repo, repo.config.edit("local") as local:
        local["cache"], local["remote"] = cache, remotes
        if default:
            local["core"] = {"remote": default}
    (clone / ".dvc/config.local").chmod(0o600)


def check_out(root: Path) -> None:
    """Link the outputs of root's dvc.lock from the cache; those that are not in it are left out."""
    with Repo(str(root)) as repo:
        repo.checkout(force=True, allow_missing=True)


def fetch_output(root: Path, path: str, revision: str, target: Path) -> None:
    """Copy a stage's output, as it was at a git revision, from DVC's cache or remote to target.

    Raises:
        DataError: The output is neither in the cache nor at the remote.
    """
    try:
        Repo.get(str(root), path, out=str(target), rev=revision)
    except (DvcException, DataIndexDirError, FileNotFoundError) as error:
        raise DataError(
            f"{path} of {revision} is neither in DVC's cache nor at its remote "
            f"({mask_passwords(str(error))}); "
            "was it pruned?"
        ) from None


def has_remote(root: Path) -> bool:
    """Return whether DVC has a default remote."""
    with Repo(str(root)) as repo:
        return bool(repo.config["core"].get("remote"))


def push(root: Path, revision: str) -> None:
    """Push the outputs of a git revision to DVC's remote; each kind raises its own errors."""
    with Repo(str(root)) as repo:
        repo.push(revs=[revision], workspace=False)


def delete_unused(
    root: Path,
    revisions: Iterable[str],
    output: str,
    output_revisions: Sequence[str],
    *,
    dry_run: bool,
) -> Deleted:
    """Delete the files of DVC's cache that are not used. The remote is left alone.

    Args:
        root: The repository.
        revisions: Git revisions of which every output is kept. Outputs of the branches and of the
            checkout are kept as well.
        output: The output that is kept of the revisions in output_revisions.
        output_revisions: Git revisions of which only that output is kept.
        dry_run: Delete nothing, and only report what would be deleted.
    """
    # DVC would warn that stages of the checkout have not run, which does not matter here.
    logging.getLogger("dvc").setLevel(logging.ERROR)
    with Repo(str(root)) as repo, repo.lock:
        used = _object_ids(repo.used_objs(all_branches=True, revs=list(revisions)))
        if output_revisions:
            used |= _object_ids(repo.used_objs(targets=[output], revs=list(output_revisions)))
        cache = repo.cache.local
        unused = [oid for oid in cache.all() if oid not in used]
        num_bytes = sum(Path(cache.oid_to_path(oid)).stat().st_size for oid in unused)
        if not dry_run:
            for oid in unused:
                cache.delete(oid)
    return Deleted(len(unused), num_bytes)


def _object_ids(by_store: dict[Any, set[Any]]) -> set[str]:
    return {info.value for infos in by_store.values() for info in infos}
