"""The adoption of a trial: its values become those of params.yaml, and nothing else changes."""

from collections.abc import Mapping
from difflib import unified_diff
from pathlib import Path
from typing import Any

from common.config.loading import ConfigError
from common.config.params import load_params
from common.config.set_values import with_values
from common.files import replaced
from common.layout import PARAMS
from training.tune.journal import Journal, Trial
from training.tune.space import with_keys
from training.tune.study_files import TRIALS, read_tune, study_folder


def adopt(root: Path, number: int, study: str | None) -> str:
    """Write a trial's values into params.yaml.

    Args:
        root: The project folder.
        number: The number of the trial.
        study: The key of its study; None for the last one.

    Returns:
        The diff of params.yaml; empty if it has these values already.

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
    values = {**read_tune(folder).set, **trial.values}
    diff = diff_of(path, values)
    _write(path, changed_values(path, values))
    return diff


def diff_of(path: Path, values: Mapping[str, Any]) -> str:
    """Return the diff of params.yaml that sets some values; empty if it has them already.

    Raises:
        ConfigError: params.yaml has no such key any more, or its value cannot be set.
    """
    old, new = path.read_text(encoding="utf-8"), with_values(path, changed_values(path, values))
    lines = unified_diff(old.splitlines(), new.splitlines(), path.name, path.name, n=0, lineterm="")
    return "\n".join(lines)


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
