"""What came since the night before, by the names and the bytes of the log files."""

from pathlib import Path

from features.collect import RAW, Manifest, natural
from features.files import read_json
from features.ingest import PARQUET


def log_files(root: Path) -> dict[str, str]:
    """Name -> SHA-256 of those in artifacts/raw; none before the first night."""
    return {file.name: file.sha256 for file in Manifest.read(root / RAW).files} if (root / RAW / "manifest.json").exists() else {}


def arrivals(before: dict[str, str], now: dict[str, str]) -> dict[str, list[str]]:
    """Names of files by what happened: new, late (its place is before one that was there), delivered again (with other bytes), gone.

    before, now: name -> SHA-256.
    """
    newest = max(map(natural, before), default=[])
    found = {
        "new": [name for name in now if name not in before and natural(name) > newest],
        "late": [name for name in now if name not in before and natural(name) < newest],
        "delivered again": [name for name, sha256 in now.items() if before.get(name, sha256) != sha256],
        "gone": sorted(before.keys() - now.keys(), key=natural),
    }
    return {what: names for what, names in found.items() if names}


def duplicates(root: Path) -> list[str]:
    """Files that hold the rows of another one, which are counted once."""
    files = read_json(root / PARQUET / "manifest.json")["files"]
    return [f"{file['name']} (as {file['same_rows_as']})" for file in files if file["same_rows_as"] is not None]
