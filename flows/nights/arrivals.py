"""What came since the night before, by the names and the bytes of the log files, and what the newest day is like."""

from pathlib import Path
from typing import Any

from features.collect import RAW, Entry, Manifest, natural
from features.files import read_json
from features.gate import FIGURES
from features.ingest import PARQUET

DATA = Path("artifacts/features/data.json")


def log_files(root: Path) -> list[Entry]:
    """Those in artifacts/raw; none before the first night."""
    return Manifest.read(root / RAW).files if (root / RAW / "manifest.json").exists() else []


def arrivals(before: list[Entry], now: list[Entry]) -> dict[str, list[str]]:
    """Names of files by what happened: new, late (its place is before one that was there), delivered again (with other bytes), gone."""
    old, newest = {file.name: file.sha256 for file in before}, max((natural(file.name) for file in before), default=[])
    new = [file.name for file in now if file.name not in old]
    found = {
        "new": [name for name in new if natural(name) > newest],
        "late": [name for name in new if natural(name) < newest],
        "delivered again": [file.name for file in now if old.get(file.name, file.sha256) != file.sha256],
        "gone": sorted(old.keys() - {file.name for file in now}, key=natural),
    }
    return {what: names for what, names in found.items() if names}


def duplicates(root: Path) -> list[str]:
    """Files that hold the rows of another one, which are counted once."""
    files = read_json(root / PARQUET / "manifest.json")["files"]
    return [f"{file['name']} (as {file['same_rows_as']})" for file in files if file["same_rows_as"] is not None]


def newest_day(clone: Path, refused: bool) -> dict[str, Any] | None:
    """Name, rows, malformed rows and label rate; column and value of the largest drift, unseen share, and change of a missing share.

    A figure is None where no column has it (features/profile.py), all of them where data was refused before its rows were counted.
    """
    path = clone / (FIGURES if refused else DATA)  # refused, the artifact is still that of the night before
    if refused and not path.exists():
        return None
    day = read_json(path)["days"][-1]
    figures = {
        "drift": {name: column["drift"] for name, column in day["columns"].items()},
        "unseen": {name: column["unseen"] for name, column in day["columns"].items()},
        "missing": {name: _apart(column["missing"], column["window_missing"]) for name, column in day["columns"].items()},
    }
    largest = {figure: _largest(values) for figure, values in figures.items()}
    return {name: day[name] for name in ("name", "num_rows", "num_bad_rows", "label_rate")} | largest


def _apart(ours: float, theirs: float | None) -> float | None:
    return None if theirs is None else abs(ours - theirs)


def _largest(values: dict[str, float | None]) -> dict[str, Any] | None:
    told = {name: value for name, value in values.items() if value is not None}
    column = max(told, key=lambda name: told[name], default=None)
    return None if column is None else {"column": column, "value": told[column]}
