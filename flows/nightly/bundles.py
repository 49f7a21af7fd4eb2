"""The bundles in artifacts/models: each is checked as a whole, and mended from DVC if need be.

Promotion, rollback, `clickmill nightly list`, `health`, `explain` and `replay` all call these
functions, so they agree on what a complete bundle is.
"""

from pathlib import Path

from common.bundle_layout import MODEL, version_of
from common.config.loading import ConfigError
from common.files import DataError, recover, remove, replaced
from common.logs import get_logger
from flows.git_commands import Git, GitError
from flows.locks import registry_lock
from flows.nightly.clone import DVC_LOCK, MODEL_OUTPUT, output_hashes
from flows.nightly.dvc_storage import drop_damaged, fetch_output
from flows.nightly.record import NightlyRun

MODELS = Path("artifacts/models")  # bundles that are or were in production, by model version
log = get_logger("models")


def find_damage(directory: Path, version: str) -> str | None:
    """Check every byte of a bundle, and load it.

    Returns:
        Why the folder is not the complete bundle of this model version, None if it is.
    """
    from training.inference.bundle import load_bundle  # it imports torch, which takes a second

    if directory.is_symlink():
        return f"{directory}: it is a link, not a folder"
    try:
        load_bundle(directory)
        actual = version_of(directory)
    except (DataError, OSError) as error:
        return str(error)
    return None if actual == version else f"{directory}: it contains model {actual}"


def restore_bundle(root: Path, run: NightlyRun) -> Path:
    """Return the bundle of a run in artifacts/models, which is complete and can be loaded.

    A bundle that is missing or damaged is fetched from DVC's cache or its remote. The caller holds
    the registry's lock (flows/locks.py).

    Raises:
        DataError: The bundle is missing or damaged, and DVC has no intact copy. The folder is then
            as it was.
    """
    assert run.version
    directory = root / MODELS / run.version
    recover(directory)
    is_missing = not directory.exists() and not directory.is_symlink()
    damage = None if is_missing else find_damage(directory, run.version)
    if not is_missing and not damage:
        return directory
    state = f"is damaged: {damage}" if damage else f"is not in {MODELS}"
    try:
        with replaced(directory) as scratch:
            _fetch(root, run, scratch)
            if directory.is_symlink():
                directory.unlink()  # a folder cannot take the place of a link
    except DataError as error:
        raise DataError(
            f"{run.model} {state}, and it cannot be mended: {error}; restore "
            f"{MODELS / run.version} from a backup, or make it again: "
            f"clickmill nightly replay {run.model}"
        ) from None
    if damage:
        log.warning(f"{run.model} was damaged, and has been mended from DVC's copy: {damage}")
    return directory


def check_bundle(root: Path, run: NightlyRun) -> str | None:
    """Check a run's bundle in artifacts/models, and mend it if it is missing or damaged.

    The registry is locked only while a bundle is mended. The caller must not hold its lock.

    Returns:
        Why the bundle cannot be loaded or mended, None if it is complete now.
    """
    assert run.version
    if not find_damage(root / MODELS / run.version, run.version):
        return None
    try:
        with registry_lock(root):
            restore_bundle(root, run)
    except (ConfigError, DataError, GitError, OSError) as error:
        return str(error)
    return None


def _fetch(root: Path, run: NightlyRun, target: Path) -> None:
    """Copy a run's bundle from DVC to target.

    DVC does not hash the files of its cache. If the copy is damaged, the damaged files are deleted
    from the cache, and a second attempt takes them from the remote.
    """
    version = str(run.version)
    fetch_output(root, MODEL_OUTPUT, run.tag, target)
    damage = find_damage(target, version)
    if not damage:
        return
    dvc_lock = Git(root).run("show", f"{run.tag}:./{DVC_LOCK}")
    md5 = output_hashes(dvc_lock, run.tag)[MODEL_OUTPUT]
    if dropped := drop_damaged(root, {MODEL_OUTPUT: md5}):
        remove(target)
        try:
            fetch_output(root, MODEL_OUTPUT, run.tag, target)
        except DataError as error:
            raise DataError(
                f"its copy in DVC's cache was damaged too and has been deleted "
                f"({', '.join(dropped)}); {error}"
            ) from None
        damage = find_damage(target, version)
    if damage:
        raise DataError(f"{run.tag}: {MODEL} is not model {version} ({damage}); was the tag moved?")
