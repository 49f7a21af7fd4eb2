"""The adoption of a trial: its values become those of params.yaml, and nothing else changes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.checked_json import parse_checked_json
from common.config.loading import ConfigError, check_json, shorten
from common.config.params import load_params
from common.config.set_values import with_values
from common.config.tune import Tune
from common.files import DataError, replaced
from common.layout import PARAMS
from training.tune.journal import Journal, Trial
from training.tune.space import with_keys
from training.tune.study import LAST_STUDY, SETTINGS, STUDIES, TRIALS


def adopt(root: Path, number: int, study: str | None) -> dict[str, Any]:
    """Write a trial's values into params.yaml.

    Args:
        root: The project folder.
        number: The number of the trial.
        study: The key of its study; None for the last one.

    Returns:
        The values that were changed: none if params.yaml has them already.

    Raises:
        ConfigError: There is no such trial, it failed, or params.yaml cannot be changed so.
        DataError: The study's files are damaged.
    """
    folder = study_folder(root, study)
    trials = {trial.number: trial for trial in Journal(folder / TRIALS, Trial).read()}
    if number not in trials:
        raise ConfigError(
            f"study {folder.name} has no trial {number}; it has {len(trials)} trials, from 0"
        )
    trial = trials[number]
    if trial.outcome.error:
        raise ConfigError(f"trial {number} failed ({trial.outcome.error}); take another one")
    path = root / PARAMS
    changes = changed_values(path, {**_tune_of(folder).set, **trial.values})
    _write(path, changes)
    return changes


def study_folder(root: Path, study: str | None) -> Path:
    """Return the folder of a study; None for the last one.

    Raises:
        ConfigError: There is none.
        DataError: The file that names the last one is damaged.
    """
    if study is None:
        path = root / STUDIES / LAST_STUDY
        if not path.exists():
            raise ConfigError(f"there is no study in {root / STUDIES}; run clickmill tune first")
        study = _read(path, "study")
    folder = root / STUDIES / str(study)
    if not (folder / SETTINGS).is_file():
        raise ConfigError(f"there is no study {shorten(study)} in {root / STUDIES}")
    return folder


def changed_values(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of some values that params.yaml has not, by their dotted keys.

    Raises:
        ConfigError: params.yaml has no such key any more.
    """
    present = load_params(path).model_dump(mode="json", by_alias=True)
    try:
        return {
            key: value
            for key, value in values.items()
            if with_keys(present, {key: value}) != present
        }
    except (KeyError, TypeError):
        keys = ", ".join(values)
        raise ConfigError(
            f"{path}: one of {keys} is not there any more, because the file has changed since the"
            " study; go back to its earlier contents, or run clickmill tune again"
        ) from None


def _write(path: Path, changes: Mapping[str, Any]) -> None:
    """Write values into params.yaml, after a check that nothing else changes."""
    expected = with_keys(load_params(path).model_dump(mode="json", by_alias=True), changes)
    text = with_values(path, changes)
    with replaced(path.resolve()) as scratch:
        scratch.write_bytes(text.encode())
        scratch.chmod(path.stat().st_mode)
        if load_params(scratch).model_dump(mode="json", by_alias=True) != expected:
            keys = ", ".join(changes)
            raise ConfigError(f"{path}: {keys} cannot be set by this command; set them by hand")


def _tune_of(folder: Path) -> Tune:
    path = folder / SETTINGS
    return check_json(Tune, _read(path, "tune"), path, "run clickmill tune again")


def _read(path: Path, key: str) -> Any:
    """Return a value of a JSON file of the study."""
    values = parse_checked_json(path.read_bytes())
    if values is None or key not in values:
        raise DataError(f"{path} is damaged; run clickmill tune again")
    return values[key]
