"""DVC's cache and remote, as nightly runs use them."""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc_data.index import DataIndexDirError

from common.files import DataError
from common.masking import mask_passwords
from flows.adapters.dvc import open_repo
from flows.git_commands import Git

DIRECTORY = ".dir"  # how the id of a folder ends in DVC


class Deleted(NamedTuple):
    """The number of files that were deleted from DVC's cache, and of their bytes."""

    num_files: int
    num_bytes: int


def share_cache(source: Path, clone: Path) -> None:
    """Let the clone use source's cache and source's remotes with their credentials.

    Files are linked from the cache, because links keep the modification times by which DVC and the
    stage `collect` recognise a file that they need not read again.
    """
    with open_repo(source) as repo:
        cache = {"dir": repo.cache.local_cache_dir, "type": ["reflink", "hardlink", "copy"]}
        remotes, default = dict(repo.config["remote"]), repo.config["core"].get("remote")
    with open_repo(clone) as repo, repo.config.edit("local") as local:
        local["cache"], local["remote"] = cache, remotes
        if default:
            local["core"] = {"remote": default}
    (clone / ".dvc/config.local").chmod(0o600)


def check_out(root: Path) -> None:
    """Link the outputs of root's dvc.lock from the cache; those that are not in it are left out."""
    with open_repo(root) as repo:
        repo.checkout(force=True, allow_missing=True)


def fetch_output(root: Path, path: str, revision: str, target: Path) -> None:
    """Copy a stage's output, as it was at a git revision, from DVC's cache or remote to target.

    The remote is that of root, which may have been added after the revision.

    Raises:
        DataError: The output is neither in the cache nor at the remote.
    """
    git, config = Git(root), _remote_config(root)
    inner = (git.prefix() / path).as_posix()  # DVC starts at the repository's directory
    try:
        Repo.get(str(git.top()), inner, out=str(target), rev=revision, config=config)
    except (DvcException, DataIndexDirError, FileNotFoundError) as error:
        raise DataError(
            f"{path} of {revision} is neither in DVC's cache nor at its remote "
            f"({mask_passwords(str(error))}); "
            "was it pruned?"
        ) from None


def drop_damaged(root: Path, outputs: Mapping[str, str]) -> dict[str, Path]:
    """Delete the damaged files of outputs from DVC's cache.

    DVC trusts every file of its cache without hashing it. It takes a deleted one from the remote,
    or runs the stage again that makes it.

    Args:
        root: The repository.
        outputs: The MD5 of each output in dvc.lock, by path. Every file of theirs is read.

    Returns:
        The deleted files by what they were the contents of: a file of an output, or an output whose
        list of files was damaged.
    """
    with open_repo(root) as repo, repo.lock:
        cache = repo.cache.local
        damaged = {
            str(PurePosixPath(output, name)): Path(cache.oid_to_path(oid))
            for output, md5 in outputs.items()
            for name, oid in _files_of(cache, md5).items()
            if _is_damaged(cache, oid)
        }
        for path in damaged.values():
            path.unlink(missing_ok=True)  # two files with the same contents are one in the cache
    return damaged


def is_cached(root: Path, md5: str) -> bool:
    """Return whether DVC's cache has every file of an output, intact."""
    with open_repo(root) as repo:
        cache = repo.cache.local
        return all(
            Path(cache.oid_to_path(oid)).is_file() and not _is_damaged(cache, oid)
            for oid in _files_of(cache, md5).values()
        )


def _is_damaged(cache: Any, oid: str) -> bool:
    path = Path(cache.oid_to_path(oid))
    if not path.is_file():
        return False
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    return digest.hexdigest() != oid.removesuffix(DIRECTORY)


def _files_of(cache: Any, md5: str) -> dict[str, str]:
    """Return the ids of an output in the cache: its own as "", and those of a folder's files."""
    path = Path(cache.oid_to_path(md5))
    if not md5.endswith(DIRECTORY) or not path.is_file() or _is_damaged(cache, md5):
        return {"": md5}
    return {"": md5} | {file["relpath"]: file["md5"] for file in json.loads(path.read_bytes())}


def has_remote(root: Path) -> bool:
    """Return whether DVC has a default remote."""
    with open_repo(root) as repo:
        return bool(repo.config["core"].get("remote"))


def push(root: Path, revision: str) -> None:
    """Push the outputs of a git revision to DVC's remote; each kind raises its own errors.

    The remote is that of root. DVC would read .dvc/config of the revision, and push nothing if the
    remote was added after it.
    """
    with open_repo(root, config=_remote_config(root)) as repo:
        repo.push(revs=[revision], workspace=False)


def _remote_config(root: Path) -> dict[str, Any] | None:
    """Return the part of root's configuration that names its remotes, None if it has none."""
    with open_repo(root) as repo:
        remotes, default = dict(repo.config["remote"]), repo.config["core"].get("remote")
    return {"remote": remotes, "core": {"remote": default}} if default else None


def delete_unused(
    root: Path,
    revisions: Iterable[str],
    hashes: Iterable[str],
    *,
    dry_run: bool,
) -> Deleted:
    """Delete the files of DVC's cache that are not used. The remote is left alone.

    Args:
        root: The repository.
        revisions: Git revisions of which every output is kept. Outputs of the branches and of the
            checkout are kept as well.
        hashes: The MD5 of other outputs that are kept.
        dry_run: Delete nothing, and only report what would be deleted.

    Raises:
        DataError: The cache's list of an output's files is damaged, so DVC would count all of them
            as unused.
    """
    # DVC would warn that stages of the checkout have not run, which does not matter here.
    logging.getLogger("dvc").setLevel(logging.ERROR)
    with open_repo(root) as repo, repo.lock:
        cache = repo.cache.local
        for oid in cache.all():
            if oid.endswith(DIRECTORY) and _is_damaged(cache, oid):
                raise DataError(
                    f"{cache.oid_to_path(oid)}: damaged: it has another MD5 than its name says, so "
                    "the files of the output that it lists are not known, and nothing was deleted; "
                    "delete it, and fetch it from DVC's remote: dvc fetch --all-tags"
                )
        used = _object_ids(repo.used_objs(all_branches=True, revs=list(revisions)))
        used |= {oid for md5 in hashes for oid in _files_of(cache, md5).values()}
        unused = [oid for oid in cache.all() if oid not in used]
        num_bytes = sum(Path(cache.oid_to_path(oid)).stat().st_size for oid in unused)
        if not dry_run:
            for oid in unused:
                cache.delete(oid)
    return Deleted(len(unused), num_bytes)


def _object_ids(by_store: dict[Any, set[Any]]) -> set[str]:
    return {info.value for infos in by_store.values() for info in infos}
