"""The reader of YAML files, and the messages about what is wrong in them.

It checks params.yaml, the presets and the schemas, each against its pydantic model, and JSON files
as well.
"""

import re
import warnings
from collections.abc import Mapping
from copy import deepcopy
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLWarning
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

from common.files import DataError, other_kind, read_json
from common.masking import mask_passwords
from common.printable import printable, printable_lines

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

# pydantic's types of a fault in the key that chooses one of several models, such as `name`.
UNKNOWN_CHOICE, MISSING_CHOICE = "union_tag_invalid", "union_tag_not_found"
# Limits of a YAML file. A schema of 10,000 columns is below all of them.
MAX_YAML_BYTES = 1 << 18
MAX_YAML_VALUES = 50_000
MAX_YAML_DEPTH = 50
MAX_DIGITS = 100
PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str")}
COLLECTION_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("map", "seq")}
INT_TAG = "tag:yaml.org,2002:int"
MERGE_TAG = "tag:yaml.org,2002:merge"
# Limits of what a message shows.
MAX_FAULTS = 20
MAX_SHOWN = 200
MAX_COMPARED = 100  # the characters of a key for which a similar one is looked for

M = TypeVar("M", bound=BaseModel)


class ConfigError(ValueError):
    """A fault in params.yaml, a schema or a preset. The message names file, key and value.

    Passwords in URLs are masked.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable_lines(mask_passwords(message)))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML 1.2 file that contains a mapping.

    By YAML 1.2, unlike 1.1, `1e-3` is a number and `no` is a text. All keys are texts.

    Raises:
        ConfigError: The file is missing, is not YAML, is too large, or contains something other
            than a mapping of plain values.
    """
    try:
        values = deepcopy(_parse(_read_text(path), path))
    except ConfigError:
        raise
    except FileNotFoundError:
        raise ConfigError(f"{path} not found; run this in the repository's root") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark
        line = mark.line + 1 if mark else "?"
        problem = one_line(error.problem or "")
        raise ConfigError(
            f"{path} is not YAML: {problem}, in line {line} or the line above"
        ) from None
    except RecursionError:
        raise _too_much(path, f"values are nested in more than {MAX_YAML_DEPTH} levels") from None
    except Exception as error:  # ruamel also raises what Python's int() and date() raise
        raise ConfigError(f"{path} is not YAML: {one_line(str(error))}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping, found {type(values).__name__}")
    return values


def _read_text(path: Path) -> str:
    if kind := other_kind(path, link_allowed=True):
        raise ConfigError(f"{path} is {kind}; a file expected")
    num_bytes = path.stat().st_size
    if num_bytes > MAX_YAML_BYTES:
        raise _too_much(path, f"it has {num_bytes:,} bytes, and at most {MAX_YAML_BYTES:,}")
    return path.read_text(encoding="utf-8")


@lru_cache(maxsize=16)  # a stage reads the same schema several times, .1 s each
def _parse(text: str, path: Path) -> Any:
    """Return the values of a YAML text, after its nodes are checked."""
    yaml = YAML(typ="safe", pure=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", YAMLWarning)  # an anchor may be used again in YAML 1.2
        node: Node | None = yaml.compose(text)
    if node is None:
        return None
    _count_values(node, path, {}, 0)
    return yaml.constructor.construct_document(node)


def _count_values(node: Node, path: Path, known: dict[int, int], depth: int) -> int:
    """Return the number of values of a node, with each alias counted as what it stands for.

    Args:
        node: The node.
        path: The file, for the messages.
        known: The number for each node that was counted before, by its id. A node that is being
            counted has MAX_YAML_VALUES, so that one that contains itself is refused.
        depth: The number of nodes that this one is in.

    Raises:
        ConfigError: There are too many values or levels, or something that is not plain.
    """
    if depth > MAX_YAML_DEPTH:
        raise _too_much(path, f"values are nested in more than {MAX_YAML_DEPTH} levels")
    if id(node) in known:
        return known[id(node)]
    known[id(node)], num_values = MAX_YAML_VALUES, 1
    _check_plain(node, path)
    if not isinstance(node, ScalarNode):
        is_mapping = isinstance(node, MappingNode)
        for key, value in node.value if is_mapping else ((None, each) for each in node.value):
            if key is not None:
                _check_key(key, path)
            num_values += _count_values(value, path, known, depth + 1)
            if num_values > MAX_YAML_VALUES:
                raise _too_much(path, f"it has more than {MAX_YAML_VALUES:,} values")
    known[id(node)] = num_values
    return num_values


def _check_plain(node: Node, path: Path) -> None:
    is_plain = node.tag in (PLAIN_TAGS if isinstance(node, ScalarNode) else COLLECTION_TAGS)
    if not is_plain:
        shown = shorten(node.value) if isinstance(node, ScalarNode) else "a collection"
        kind = str(node.tag).removeprefix("tag:yaml.org,2002:")
        raise ConfigError(
            f"{path}: line {node.start_mark.line + 1}: {shown} is of the kind {shorten(kind)};"
            " only texts, numbers, true, false and null are expected: put it in quotes"
        )
    if isinstance(node, ScalarNode):
        node.value.encode()  # an escape can stand for half a character
        if node.tag == INT_TAG and len(node.value) > MAX_DIGITS:
            raise ConfigError(
                f"{path}: line {node.start_mark.line + 1}: a number of {len(node.value):,} digits;"
                f" at most {MAX_DIGITS} are expected"
            )


def _check_key(key: Node, path: Path) -> None:
    is_text = isinstance(key, ScalarNode) and str(key.tag) in ("tag:yaml.org,2002:str", MERGE_TAG)
    if not is_text:
        shown = shorten(key.value) if isinstance(key, ScalarNode) else "of a collection"
        raise ConfigError(
            f"{path}: line {key.start_mark.line + 1}: the key {shown} is no text; put it in quotes"
        )
    key.value.encode()


def _too_much(path: Path, found: str) -> ConfigError:
    return ConfigError(f"{path}: {found}; simplify it")


def read_json_as(model: type[M], path: Path, remedy: str) -> M:
    """Read a JSON file that was written from a model.

    Args:
        model: The model that describes the file.
        path: The file.
        remedy: What the user can do if the file is damaged, for the error.

    Raises:
        DataError: The file is missing, is not JSON, or does not fit the model. The message is one
            line with the first fault.
    """
    return check_json(model, read_json(path, remedy), path, remedy)


def check_json(model: type[M], value: Any, path: Path, remedy: str) -> M:
    """Validate the value in a JSON file against a model; see `read_json_as`."""
    try:
        return check(model, value, path)
    except ConfigError as error:
        raise as_data_error(error, remedy) from None


def as_data_error(error: ConfigError, remedy: str) -> DataError:
    """Make the error about a file that no user has written: one line, with the first fault."""
    first, *others = str(error).splitlines()
    more = f" (and {len(others)} more)" if others else ""
    return DataError(f"{first}{more}; {remedy}")


def check(model: type[M], values: Any, path: Path, renamed: Mapping[str, str] | None = None) -> M:
    """Validate values against a model.

    Args:
        model: The model that describes the file.
        values: The contents of the file, as plain Python values.
        path: The file, for the messages.
        renamed: The new name of each key of earlier versions. Keys are written with dots, as in
            `train.seed`; `*` matches any key.

    Raises:
        ConfigError: With a line `PATH: KEY: FAULT (found VALUE)` for each of the first faults.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = error.errors(include_url=False)
    keys = [_key_in_file(fault, values) for fault in faults]
    missing = {key for key, fault in zip(keys, faults, strict=True) if fault["type"] == "missing"}
    lines = []
    for key, fault in zip(keys, faults[:MAX_FAULTS], strict=False):
        where = f"{path}: {one_line(key)}" if key else str(path)
        lines.append(f"{where}: {one_line(_describe(fault, key, missing, renamed or {}))}")
    if len(faults) > MAX_FAULTS:
        lines.append(f"{path}: {len(faults) - MAX_FAULTS:,} more faults")
    raise ConfigError("\n".join(lines))


def shorten(value: Any) -> str:
    """Return a value as Python writes it, in one line; only the start of a long one."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # too deep, or an integer of too many digits
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def one_line(text: str) -> str:
    """Return a text without line breaks and control characters; only the start of a long one."""
    shown = printable(text[: 5 * MAX_SHOWN])
    return shown if len(text) <= 5 * MAX_SHOWN else f"{shown}…"


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
    shown = shorten(value)
    if kind in ("missing", MISSING_CHOICE):
        return "missing"
    if kind == "extra_forbidden":
        if new_name := _new_name(key, renamed):
            return f"this parameter is now called {new_name}; rename it"
        similar = get_close_matches(key, missing, n=1) if len(key) < MAX_COMPARED else []
        return f"no such key; is it {similar[0]}?" if similar else f"no such key (found {shown})"
    if kind == "value_error":  # from a validator of ours, whose message names the value
        return str(fault["ctx"]["error"])
    if kind == UNKNOWN_CHOICE:
        expected, found = fault["ctx"]["expected_tags"], value[_choosing_key(fault)]
        return f"Input should be one of {expected} (found {shorten(found)})"
    if kind in ("model_type", "model_attributes_type"):
        return f"expected a mapping (found {shown})"
    return f"{fault['msg']} (found {shown})"


def _new_name(key: str, renamed: Mapping[str, str]) -> str | None:
    """Return the new name of a key of an earlier version, or None for any other key."""
    for old, new in renamed.items():
        if match := re.fullmatch(re.escape(old).replace(r"\*", "(.+)"), key):
            return new.replace("*", match[1]) if match.groups() else new
    return None
