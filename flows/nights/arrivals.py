"""What came since the night before, by the names and the bytes of the log files."""

from pathlib import Path

from features.collect import RAW, Entry, Manifest, natural
from features.files import read_json
from features.ingest import PARQUET


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
