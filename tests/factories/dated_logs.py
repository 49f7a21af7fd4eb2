"""A log whose schema `shop` names the column of the day."""

from datetime import datetime
from pathlib import Path

import pytest

SCHEMA = """
format: {kind: text, separator: ",", quote: null, header: false, null_tokens: [""]}
columns:
  - {kind: time, names: [ts], parse: "%Y-%m-%d %H:%M:%S"}
  - {kind: label, names: [click]}
  - {kind: dense, names: [number], parse: integer, transform: log1p}
  - {kind: categorical, names: [shop], parse: string, policy: vocabulary}
days: {column: ts, zone: ZONE}
"""


def write_schema(folder: Path, zone: str = "UTC") -> None:
    """Write the schema, with days in a time zone, to folder/shop.yaml."""
    (folder / "shop.yaml").write_text(SCHEMA.replace("ZONE", zone))


def use_schemas_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the stages find schemas in a folder."""
    monkeypatch.setattr("features.schema.schema.SCHEMAS", folder)
    monkeypatch.setattr("features.collect.stage.SCHEMAS", folder)


def line(time: datetime, number: int, shop: object = None) -> str:
    """Return a row; a third of the numbers have a click, and there are four shops."""
    return f"{time},{number % 3 == 0:d},{number},shop {number % 4 if shop is None else shop}\n"
