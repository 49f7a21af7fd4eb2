"""What came since the night before, by the names and the bytes of the log files, and what the newest day is like."""

from pathlib import Path
from typing import Any

from common.files import read_json
from features.collect.stage import RAW, Manifest, natural
from features.ingest.stage import PARQUET
from features.quality.gate import FIGURES

DATA = Path("artifacts/features/data.json")


def log_files(root: Path) -> dict[str, str]:
    """Name -> SHA-256 of those in artifacts/raw; none before the first night."""
    return (
        {file.name: file.sha256 for file in Manifest.read(root / RAW).files}
        if (root / RAW / "manifest.json").exists()
        else {}
    )


def arrivals(
    before: dict[str, str], now: dict[str, str], same_rows: dict[str, str]
) -> dict[str, list[str]]:
    """Names of files by what happened: new, late (its place is before one that was there), delivered again (with other bytes), gone, and
    of those that came the ones that hold the rows of another, which are counted once (twice).

    before, now: name -> SHA-256. same_rows: name -> the other file's.
    """
    newest = max(map(natural, before), default=[])
    found = {
        "new": [name for name in now if name not in before and natural(name) > newest],
        "late": [name for name in now if name not in before and natural(name) < newest],
        "delivered again": [
            name for name, sha256 in now.items() if before.get(name, sha256) != sha256
        ],
        "gone": sorted(before.keys() - now.keys(), key=natural),
        "twice": [
            f"{name} (as {other})"
            for name, other in same_rows.items()
            if name in now and before.get(name) != now[name]
        ],
    }
    return {what: names for what, names in found.items() if names}


def duplicates(root: Path) -> dict[str, str]:
    """Name -> the earlier file that holds the same rows; none where nothing is ingested yet."""
    manifest = root / PARQUET / "manifest.json"
    files = read_json(manifest)["files"] if manifest.exists() else []
    return {
        file["name"]: file["same_rows_as"] for file in files if file["same_rows_as"] is not None
    }


def newest_day(clone: Path, refused: bool) -> dict[str, Any] | None:
    """Name, rows, malformed rows and label rate; column and value of the largest drift, unseen share, and change of a missing share.

    A figure is None where no column has it (features/quality/data_profile.py), all of them where data was refused before its rows were counted.
    """
    path = clone / (
        FIGURES if refused else DATA
    )  # refused, the artifact is still that of the night before
    if refused and not path.exists():
        return None
    day = read_json(path)["days"][-1]
    figures = {
        "drift": {name: column["drift"] for name, column in day["columns"].items()},
        "unseen": {name: column["unseen"] for name, column in day["columns"].items()},
        "missing": {
            name: _apart(column["missing"], column["window_missing"])
            for name, column in day["columns"].items()
        },
    }
    largest = {figure: _largest(values) for figure, values in figures.items()}
    return {
        name: day[name] for name in ("name", "num_rows", "num_bad_rows", "label_rate")
    } | largest


def _apart(ours: float, theirs: float | None) -> float | None:
    return None if theirs is None else abs(ours - theirs)


def _largest(values: dict[str, float | None]) -> dict[str, Any] | None:
    told = {name: value for name, value in values.items() if value is not None}
    column = max(told, key=lambda name: told[name], default=None)
    return None if column is None else {"column": column, "value": told[column]}
