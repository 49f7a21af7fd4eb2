"""The bundles in artifacts/models: each is checked as a whole, and mended from DVC if need be.

Promotion, rollback, `clickmill nightly list`, `health`, `explain` and `replay` all call these
functions, so they agree on what a complete bundle is. The serving bundle of VERSION is in
VERSION.serving beside it, so that the link artifacts/production leads to both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.bundle_layout import version_of
from common.config.loading import ConfigError
from common.files import DataError, recover, remove, replaced
from common.layout import SERVING
from common.logs import get_logger
from flows.git_commands import Git, GitError
from flows.locks import registry_lock
from flows.nightly.clone import DVC_LOCK, MODEL_OUTPUT, output_hashes
from flows.nightly.dvc_storage import drop_damaged, fetch_output
from flows.nightly.record import NightlyRun
from serving.serving_bundle import (
    NOT_EXPORTED,
    SUFFIX,
    load_serving_bundle,
    reason_not_exported,
)

MODELS = Path("artifacts/models")  # bundles that are or were in production, by model version
SERVING_OUTPUT = SERVING.as_posix()  # the path of the serving bundle in dvc.lock
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


def find_serving_damage(directory: Path, version: str) -> str | None:
    """Check every byte of a serving bundle, or of the reason why a model has none.

    Returns:
        Why the folder is not what the stage `export` wrote for this model version, None if it is.
    """
    if directory.is_symlink():
        return f"{directory}: it is a link, not a folder"
    try:
        if (reason := reason_not_exported(directory)) is not None:
            whole = reason.startswith(f"model {version}: ")
            return None if whole else f"{directory}/{NOT_EXPORTED}: it is of another model"
        actual = load_serving_bundle(directory).manifest.model_version
    except (DataError, OSError) as error:
        return str(error)
    return None if actual == version else f"{directory}: it was exported from model {actual}"


@dataclass(frozen=True)
class Kind:
    """A kind of folder in artifacts/models.

    Attributes:
        output: The path of the stage's output that it is a copy of, in dvc.lock.
        suffix: The end of its name, after the model version.
        find_damage: Returns why a folder is not the complete one of a version, None if it is.
    """

    output: str
    suffix: str
    find_damage: Callable[[Path, str], str | None]


BUNDLE = Kind(MODEL_OUTPUT, "", find_damage)
SERVING_BUNDLE = Kind(SERVING_OUTPUT, SUFFIX, find_serving_damage)


def restore_bundle(root: Path, run: NightlyRun) -> Path:
    """Return the bundle of a run in artifacts/models, which is complete and can be loaded.

    A bundle that is missing or damaged is fetched from DVC's cache or its remote. The caller holds
    the registry's lock (flows/locks.py).

    Raises:
        DataError: The bundle is missing or damaged, and DVC has no intact copy. The folder is then
            as it was.
    """
    return _restore(root, run, BUNDLE)


def restore_serving_bundle(root: Path, run: NightlyRun) -> Path | None:
    """Return the serving bundle of a run in artifacts/models, as `restore_bundle` does.

    Returns:
        The folder; None if the run exported none, as runs of earlier versions did not.
    """
    return _restore(root, run, SERVING_BUNDLE) if has_exported(root, run) else None


def has_exported(root: Path, run: NightlyRun) -> bool:
    """Return whether a run made a serving bundle."""
    return SERVING_OUTPUT in _hashes_of_outputs(root, run)


def check_bundle(root: Path, run: NightlyRun) -> str | None:
    """Check a run's bundles in artifacts/models, and mend those that are missing or damaged.

    The registry is locked only while a bundle is mended. The caller must not hold its lock.

    Returns:
        Why a bundle cannot be loaded or mended, None if all are complete now.
    """
    kinds = [BUNDLE, *([SERVING_BUNDLE] if has_exported(root, run) else [])]
    for kind in kinds:
        if not kind.find_damage(_directory(root, run, kind), str(run.version)):
            continue
        try:
            with registry_lock(root):
                _restore(root, run, kind)
        except (ConfigError, DataError, GitError, OSError) as error:
            return str(error)
    return None


def _directory(root: Path, run: NightlyRun, kind: Kind) -> Path:
    assert run.version
    return root / MODELS / (run.version + kind.suffix)


def _restore(root: Path, run: NightlyRun, kind: Kind) -> Path:
    directory = _directory(root, run, kind)
    recover(directory)
    is_missing = not directory.exists() and not directory.is_symlink()
    damage = None if is_missing else kind.find_damage(directory, str(run.version))
    if not is_missing and not damage:
        return directory
    name = f"{run.model}" if kind is BUNDLE else f"the serving bundle of {run.model}"
    state = f"is damaged: {damage}" if damage else f"is not in {MODELS}"
    try:
        with replaced(directory) as scratch:
            _fetch(root, run, kind, scratch)
            if directory.is_symlink():
                directory.unlink()  # a folder cannot take the place of a link
    except DataError as error:
        raise DataError(
            f"{name} {state}, and it cannot be mended: {error}; restore "
            f"{MODELS / directory.name} from a backup, or make it again: "
            f"clickmill nightly replay {run.model}"
        ) from None
    if damage:
        log.warning(f"{name} was damaged, and has been mended from DVC's copy: {damage}")
    return directory


def _hashes_of_outputs(root: Path, run: NightlyRun) -> dict[str, str]:
    """Return the MD5 of every output in the run's dvc.lock, by path; none where it has no lock."""
    name = f"{run.tag}:./{DVC_LOCK}"
    git = Git(root)
    return output_hashes(git.run("show", name), run.tag) if git.exists(name) else {}


def _fetch(root: Path, run: NightlyRun, kind: Kind, target: Path) -> None:
    """Copy a run's output from DVC to target.

    DVC does not hash the files of its cache. If the copy is damaged, the damaged files are deleted
    from the cache, and a second attempt takes them from the remote.
    """
    version = str(run.version)
    fetch_output(root, kind.output, run.tag, target)
    damage = kind.find_damage(target, version)
    if not damage:
        return
    md5 = _hashes_of_outputs(root, run)[kind.output]
    if dropped := drop_damaged(root, {kind.output: md5}):
        remove(target)
        try:
            fetch_output(root, kind.output, run.tag, target)
        except DataError as error:
            raise DataError(
                f"its copy in DVC's cache was damaged too and has been deleted "
                f"({', '.join(dropped)}); {error}"
            ) from None
        damage = kind.find_damage(target, version)
    if damage:
        raise DataError(
            f"{run.tag}: {kind.output} is not that of model {version} ({damage}); was the tag"
            " moved?"
        )
