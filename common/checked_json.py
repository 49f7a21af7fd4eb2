"""JSON files that contain the SHA-256 of their own contents, so that damage to them is noticed."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.files import json_text, write_json

HASH_KEY = "sha256"


def write_checked_json(path: Path, contents: Mapping[str, Any]) -> None:
    """Write a mapping as `write_json` does, with its SHA-256 under the key `sha256`.

    A value that `contents` has under that key is replaced.
    """
    write_json(path, _with_hash(contents))


def checked_json_text(contents: Mapping[str, Any]) -> str:
    """Return the text that `write_checked_json` writes."""
    return json_text(_with_hash(contents))


def is_as_written(path: Path, value: Mapping[str, Any]) -> bool:
    """Return whether every byte of a file is as `write_checked_json` wrote it.

    Args:
        path: The file.
        value: What `read_json` returned for it.
    """
    return path.read_bytes() == json_text(_with_hash(value)).encode()


def parse_checked_json(data: bytes) -> dict[str, Any] | None:
    """Return the mapping that `write_checked_json` wrote as these bytes; None if a byte differs."""
    try:
        value: dict[str, Any] = json.loads(data)
        return value if data == json_text(_with_hash(value)).encode() else None
    except (ValueError, RecursionError, AttributeError):  # it may be of another type
        return None


def _with_hash(contents: Mapping[str, Any]) -> dict[str, Any]:
    others = {key: value for key, value in contents.items() if key != HASH_KEY}
    text = json.dumps(others, sort_keys=True)
    return {**others, HASH_KEY: hashlib.sha256(text.encode()).hexdigest()}
