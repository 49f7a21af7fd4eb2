"""The search space of tune.yaml, checked against params.yaml before the first trial."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from common.config.loading import ConfigError, check, read_yaml
from common.config.params import Params
from common.config.tune import Choice, Range, Tune
from features.schema.check_params import check_against_schema

DIGITS = 3  # of a number that a sampler has drawn; more would claim a precision that no trial shows
# The first part of the parameters that a trial may change.
SECTIONS = ("model", "train", "features")
# Parameters that have no effect on a model's quality, or that would change what it is measured by.
NOT_SEARCHED = {
    "features.split": "decides which rows the logloss is measured on",
    "train.accelerator": "is the same for all trials",
    "train.checkpoint_minutes": "has no effect on the model",
    "train.devices": "is 1 in a trial",
    "train.ensemble_size": "is 1 in a trial",
    "train.last_days": "decides which rows a trial is trained on",
    "train.logger": "has no effect on the model",
    "train.nodes": "is 1 in a trial",
    "train.parallel": "has no effect on the model",
    "train.profile": "has no effect on the model",
    "train.seed": "is a choice of luck",
    "train.servers": "is not used: a trial trains on one device",
    "train.threads": "is `threads` of tune.yaml",
}


def load_tune(path: Path, params: Params) -> Tune:
    """Read tune.yaml and check every value that a trial can have.

    Args:
        path: The file.
        params: The parameters of params.yaml, which the trials change.

    Raises:
        ConfigError: The message names the file, the key, the value found and what is allowed.
    """
    tune = check(Tune, read_yaml(path), path)
    _check_apart(path, [*tune.set, *tune.space])
    base = params.model_dump(mode="json", by_alias=True)
    for key, value in tune.set.items():
        _check_value(base, tune, key, value, Path(f"{path}: set"))
    for key, values in tune.space.items():
        for value in end_values(values):
            _check_value(base, tune, key, value, Path(f"{path}: space"))
    return tune


def end_values(values: Choice | Range) -> list[Any]:
    """Return the values of a parameter to check: each choice, or both ends of a range."""
    return values.choice if isinstance(values, Choice) else [values.low, values.high]


def trial_params(base: Mapping[str, Any], tune: Tune, values: Mapping[str, Any]) -> Params:
    """Return the parameters of a trial.

    Args:
        base: The values of params.yaml.
        tune: The search.
        values: The trial's value of each key of the space.

    Raises:
        ConfigError: The values do not go together.
    """
    params = check(Params, with_keys(base, {**tune.set, **values}), Path("params.yaml"))
    check_against_schema(params)
    return params


def with_keys(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of nested mappings with other values under some dotted keys.

    Raises:
        KeyError: A key is not there.
    """
    result = deepcopy(dict(base))
    for key, value in values.items():
        *sections, last = key.split(".")
        inner: Any = result
        for section in sections:
            inner = inner[section]
        if last not in inner:
            raise KeyError(key)
        inner[last] = deepcopy(value)
    return result


def rounded(value: float, values: Range) -> float:
    """Return a number of a range with DIGITS significant digits, inside the range."""
    return min(max(float(f"{value:.{DIGITS}g}"), float(values.low)), float(values.high))


def _check_value(base: Mapping[str, Any], tune: Tune, key: str, value: Any, where: Path) -> None:
    for name in _beginnings(key):
        if reason := NOT_SEARCHED.get(name):
            raise ConfigError(f"{where}: {key}: {name} {reason}; remove it")
    if fixed := next((name for name in NOT_SEARCHED if name.startswith(f"{key}.")), None):
        raise ConfigError(
            f"{where}: {key}: {fixed} {NOT_SEARCHED[fixed]}; write single parameters of {key}"
        )
    if key.split(".")[0] not in SECTIONS:
        raise ConfigError(f"{where}: {key}: a trial changes only {', '.join(SECTIONS)}; remove it")
    others = {name: other for name, other in tune.set.items() if name != key}
    try:
        values = with_keys(base, {**others, key: value})
    except (KeyError, TypeError):
        raise ConfigError(
            f"{where}: {key}: params.yaml has no such key; write parameters as in"
            " model.embedding_dim"
        ) from None
    check_against_schema(check(Params, values, Path(f"{where}: {key}")))


def _check_apart(path: Path, keys: Sequence[str]) -> None:
    """Check that no key is part of another one: which of the two holds would be unclear."""
    for key in keys:
        for name in _beginnings(key):
            if name != key and name in keys:
                raise ConfigError(
                    f"{path}: {key} is a part of {name}, which is there as well; remove one of the"
                    " two"
                )


def _beginnings(key: str) -> Iterator[str]:
    parts = key.split(".")
    for length in range(1, len(parts) + 1):
        yield ".".join(parts[:length])
