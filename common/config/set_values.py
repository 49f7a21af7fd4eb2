"""The change of single values of a YAML file; every other character of it stays as it is."""

from collections.abc import Mapping
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

from common.config.loading import ConfigError
from common.config.yaml_text import flow


def with_values(path: Path, values: Mapping[str, str]) -> str:
    """Return the text of a YAML file with other texts as the values of some keys.

    Args:
        path: The file, which can be read as YAML.
        values: The new value of each key, which is written with dots, as in `data.source`.

    Raises:
        ConfigError: The file has no such key, or its value is no text in one line.
    """
    text = path.read_text(encoding="utf-8")
    root = YAML(typ="safe", pure=True).compose(text)
    lines = text.splitlines(keepends=True)
    changes = []
    for key, value in values.items():
        node = _find(root, key.split("."))
        if not isinstance(node, ScalarNode) or node.start_mark.line != node.end_mark.line:
            raise ConfigError(f"{path}: {key}: a text in one line expected; set it by hand")
        changes.append((node.start_mark.line, node.start_mark.column, node.end_mark.column, value))
    for line, start, end, value in sorted(changes, reverse=True):
        lines[line] = lines[line][:start] + flow(value) + lines[line][end:]
    return "".join(lines)


def _find(node: Node | None, keys: list[str]) -> Node | None:
    for key in keys:
        if not isinstance(node, MappingNode):
            return None
        node = next((value for name, value in node.value if name.value == key), None)
    return node
