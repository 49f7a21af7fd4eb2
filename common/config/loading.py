"""The reader of YAML files, and the messages about what is wrong in them.

It checks params.yaml, the presets and the schemas, each against its pydantic model.
"""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from common.printable import printable_lines

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

# pydantic's types of a fault in the key that chooses one of several models, such as `name`.
UNKNOWN_CHOICE, MISSING_CHOICE = "union_tag_invalid", "union_tag_not_found"

M = TypeVar("M", bound=BaseModel)


class ConfigError(ValueError):
    """A fault in params.yaml, a schema or a preset. The message names file, key and value."""

    def __init__(self, message: str) -> None:
        super().__init__(printable_lines(message))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML 1.2 file that contains a mapping.

    By YAML 1.2, unlike 1.1, `1e-3` is a number and `no` is a text.

    Raises:
        ConfigError: The file is missing, is not YAML, or contains something other than a mapping.
    """
    try:
        values = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} not found; run this in the repository's root") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark
        line = mark.line + 1 if mark else "?"
        raise ConfigError(
            f"{path} is not YAML: {error.problem}, in line {line} or the line above"
        ) from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping, found {type(values).__name__}")
    return values


def check(model: type[M], values: Any, path: Path, renamed: Mapping[str, str] | None = None) -> M:
    """Validate values against a model.

    Args:
        model: The model that describes the file.
        values: The contents of the file, as plain Python values.
        path: The file, for the messages.
        renamed: The new name of each key of earlier versions. Keys are written with dots, as in
            `train.seed`; `*` matches any key.

    Raises:
        ConfigError: With a line `PATH: KEY: FAULT (found VALUE)` for every fault.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = error.errors()
    keys = [_key_in_file(fault, values) for fault in faults]
    missing = {key for key, fault in zip(keys, faults, strict=True) if fault["type"] == "missing"}
    lines = []
    for key, fault in zip(keys, faults, strict=True):
        where = f"{path}: {key}" if key else str(path)
        lines.append(f"{where}: {_describe(fault, key, missing, renamed or {})}")
    raise ConfigError("\n".join(lines))


def _key_in_file(fault: "ErrorDetails", values: Any) -> str:
    """Return the key of a fault as the file has it, such as `model.interaction.rank`.

    pydantic's location has more parts where a field is a union: it also names the model that
    validated the value. On the other hand it lacks the key that chooses the model (`name`).
    """
    missing_key = fault["loc"][-1] if fault["type"] == "missing" else None
    key: list[int | str] = []
    for part in fault["loc"]:
        if isinstance(values, dict):
            is_in_file = part in values
        else:
            is_in_file = isinstance(values, list) and isinstance(part, int)
        if is_in_file or part == missing_key:
            key.append(part)
            values = values[part] if is_in_file else None
    if fault["type"] in (UNKNOWN_CHOICE, MISSING_CHOICE):
        key.append(_choosing_key(fault))
    return ".".join(map(str, key))


def _choosing_key(fault: "ErrorDetails") -> str:
    """Return the key that chooses one of several models, such as `name`."""
    quoted: str = fault["ctx"]["discriminator"]
    return quoted.strip("'")


def _describe(
    fault: "ErrorDetails", key: str, missing: set[str], renamed: Mapping[str, str]
) -> str:
    """Return what is wrong with the value of a key; missing: all keys that the file lacks."""
    kind, value = fault["type"], fault["input"]
    if kind in ("missing", MISSING_CHOICE):
        return "missing"
    if kind == "extra_forbidden":
        if new_name := _new_name(key, renamed):
            return f"this parameter is now called {new_name}; rename it"
        similar = get_close_matches(key, missing, n=1)
        return f"no such key; is it {similar[0]}?" if similar else f"no such key (found {value!r})"
    if kind == "value_error":  # from a validator of ours, whose message names the value
        return str(fault["ctx"]["error"])
    if kind == UNKNOWN_CHOICE:
        expected, found = fault["ctx"]["expected_tags"], value[_choosing_key(fault)]
        return f"Input should be one of {expected} (found {found!r})"
    if kind in ("model_type", "model_attributes_type"):
        return f"expected a mapping (found {value!r})"
    return f"{fault['msg']} (found {value!r})"


def _new_name(key: str, renamed: Mapping[str, str]) -> str | None:
    """Return the new name of a key of an earlier version, or None for any other key."""
    for old, new in renamed.items():
        if match := re.fullmatch(re.escape(old).replace(r"\*", "(.+)"), key):
            return new.replace("*", match[1]) if match.groups() else new
    return None
