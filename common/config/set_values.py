"""The change of single values of a YAML file; every other character of it stays as it is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import StringMark
from ruamel.yaml.nodes import CollectionNode, MappingNode, Node

from common.config.loading import ConfigError
from common.config.yaml_text import flow


def with_values(path: Path, values: Mapping[str, Any]) -> str:
    """Return the text of a YAML file with other values of some keys, each in one line.

    A value that takes several lines is replaced as a whole, with the comments inside it.

    Args:
        path: The file, which can be read as YAML.
        values: The new value of each key, which is written with dots, as in `data.source`.

    Raises:
        ConfigError: The file has no such key, or its value is an alias.
    """
    text = path.read_bytes().decode()  # read_text would turn line ends of Windows into others
    root = YAML(typ="safe", pure=True).compose(text)
    changes = []
    for key, value in values.items():
        node = _find(root, key.split("."))
        if node is None or node.anchor:
            raise ConfigError(
                f"{path}: {key}: there is no such key with a value of its own (an anchor or alias"
                " is none); write the value out under this key"
            )
        changes.append((node.start_mark.index, _end(node).index, flow(value)))
    for start, end, new in sorted(changes, reverse=True):
        text = text[:start] + new + text[end:]
    return text


def _find(node: Node | None, keys: list[str]) -> Node | None:
    for key in keys:
        if not isinstance(node, MappingNode):
            return None
        node = next((value for name, value in node.value if name.value == key), None)
    return node


def _end(node: Node) -> StringMark:
    """Return where a value ends; what ruamel calls its end includes the comments after a block."""
    if not isinstance(node, CollectionNode) or node.flow_style or not node.value:
        end: StringMark = node.end_mark
        return end
    last = node.value[-1]
    return _end(last[1] if isinstance(node, MappingNode) else last)
