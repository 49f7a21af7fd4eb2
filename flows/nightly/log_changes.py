"""How the log has changed since an earlier nightly run, and what the newest day's data is like."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from common.artifact import MANIFEST, Artifact
from common.config.base import NotNegative
from common.config.loading import check_json
from common.files import read_json
from common.layout import FEATURES, PARQUET, RAW
from common.natural_order import natural_order_key
from features.collect.manifest import RawManifest
from features.ingest.stage import shards_of
from features.quality.gate import FIGURES

DAY_FIGURES = ("name", "num_rows", "num_bad_rows", "label_rate")
DATA = FEATURES / "data.json"
REMEDY = "run the features stage again"


class _Read(BaseModel):
    """A part of the data profile; its other keys are not read."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class _Column(_Read):
    missing: float
    window_missing: float | None
    unseen: float | None
    drift: float | None


class _Day(_Read):
    name: str
    num_rows: NotNegative
    num_bad_rows: NotNegative
    label_rate: float | None
    columns: dict[str, _Column]


class _Days(_Read):
    days: list[Any] = Field(min_length=1)


class _Warnings(_Read):
    warnings: list[str]


def read_log_files(root: Path) -> dict[str, str]:
    """Return the SHA-256 of each file in artifacts/raw, by name; none before collect.

    Of files in folders named by day, all files of a day count as one, with the name of the day.
    """
    if not (root / RAW / MANIFEST).exists():
        return {}
    files: dict[str, dict[str, str]] = {}
    for file in RawManifest.read(root / RAW).files:
        files.setdefault(file.day_name, {})[file.name] = file.sha256
    return {name: _hash_of_day(name, of_day) for name, of_day in files.items()}


def _hash_of_day(name: str, files: Mapping[str, str]) -> str:
    """Return the SHA-256 of a file, or for the files of a day that of their names and hashes."""
    if [*files] == [name]:
        return files[name]
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def read_duplicates(root: Path) -> dict[str, str]:
    """Return the files whose rows an earlier file contains too, with that file.

    Of files in folders named by day, these are the days with no other rows, with one such day.
    """
    if not (root / PARQUET / MANIFEST).exists():
        return {}
    shards = shards_of(Artifact.open(root / PARQUET))
    day_of = {shard.name: next(iter(shard.days or [shard.name])) for shard in shards}
    used = {day_of[shard.name] for shard in shards if shard.same_rows_as is None}
    return {
        day_of[shard.name]: day_of[shard.same_rows_as]
        for shard in shards
        if shard.same_rows_as is not None and day_of[shard.name] not in used
    }


def read_warnings(root: Path) -> list[str]:
    """Return the warnings of the data profile."""
    data = Artifact.open(root / FEATURES).read_json(DATA.name)
    return check_json(_Warnings, data, root / DATA, REMEDY).warnings


def find_log_changes(
    before: Mapping[str, str], now: Mapping[str, str], duplicates: Mapping[str, str]
) -> dict[str, list[str]]:
    """Sort the changed log files by the kind of change.

    Args:
        before: SHA-256 of each log file of the earlier run, by name.
        now: SHA-256 of each log file now, by name.
        duplicates: The files whose rows another file contains too, with that file.

    Returns:
        Names of files by kind, without empty kinds: "new"; "late", a new file whose place is before
        one that was there; "delivered again" with other bytes; "removed"; and "duplicate", a
        changed file whose rows are counted only once.
    """
    newest = max(map(natural_order_key, before), default=[])
    added = [name for name in now if name not in before]
    changes = {
        "new": [name for name in added if natural_order_key(name) > newest],
        "late": [name for name in added if natural_order_key(name) < newest],
        "delivered again": [name for name in now if name in before and before[name] != now[name]],
        "removed": sorted(before.keys() - now.keys(), key=natural_order_key),
        "duplicate": [
            f"{name} (as {other})"
            for name, other in duplicates.items()
            if name in now and before.get(name) != now[name]
        ],
    }
    return {kind: names for kind, names in changes.items() if names}


def read_newest_day(root: Path, refused: bool) -> dict[str, Any] | None:
    """Return the newest day's name, rows, malformed rows, label rate and most conspicuous columns.

    Args:
        root: The clone of the run.
        refused: The data was refused, so data.json is still that of the run before.

    Returns:
        The figures of the day, and for "drift", "unseen" and "missing" (the change of the share of
        missing values) the column with the largest value and that value, or None where no column
        has one. None if the data was refused before its rows were counted.
    """
    path = root / (FIGURES if refused else DATA)
    if not refused:
        data = Artifact.open(root / FEATURES).read_json(DATA.name)
    elif path.exists():
        data = read_json(path)
    else:
        return None
    days = check_json(_Days, data, path, REMEDY).days
    day = check_json(_Day, days[-1], path, REMEDY)
    figures: dict[str, Any] = {name: getattr(day, name) for name in DAY_FIGURES}
    for name in ("drift", "unseen"):
        figures[name] = _find_largest(
            {key: getattr(column, name) for key, column in day.columns.items()}
        )
    changes = {
        key: abs(column.missing - column.window_missing)
        for key, column in day.columns.items()
        if column.window_missing is not None
    }
    return figures | {"missing": _find_largest(changes)}


def _find_largest(values: Mapping[str, float | None]) -> dict[str, Any] | None:
    """Return the column with the largest value, and that value."""
    present = {name: value for name, value in values.items() if value is not None}
    if not present:
        return None
    column = max(present, key=lambda name: present[name])
    return {"column": column, "value": present[column]}
