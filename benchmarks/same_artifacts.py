"""Compare the artifacts of two checkouts: rows, ids, state and metrics must be the same.

    python benchmarks/same_artifacts.py OLD_CHECKOUT NEW_CHECKOUT

Run `dvc repro` in both first, with the same parameters and log. The Parquet files of
artifacts/parquet and artifacts/features must have the same columns, types and values; numbers in
metrics.json may differ by TOLERANCE. Keys that only one side has are reported, because a key may
have been renamed.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

TOLERANCE = 1e-6
PARQUET_FOLDERS = ("artifacts/parquet", "artifacts/features", "artifacts/evaluation")


def main(old: Path, new: Path) -> int:
    """Print what was compared and each difference; return the number of differences."""
    differences = [*parquet_differences(old, new), *metric_differences(old, new)]
    for difference in differences:
        print("DIFFERENT", difference)
    print(f"{len(differences)} differences")
    return len(differences)


def parquet_differences(old: Path, new: Path) -> Iterator[str]:
    """Compare every Parquet file of the stages' outputs, by name."""
    num_files = num_rows = num_same_bytes = 0
    for folder in PARQUET_FOLDERS:
        names = {
            path.relative_to(root)
            for root in (old, new)
            for path in (root / folder).rglob("*.parquet")
        }
        for name in sorted(names):
            if not (old / name).exists() or not (new / name).exists():
                yield f"{name}: only in one of the checkouts"
                continue
            before, after = pl.read_parquet(old / name), pl.read_parquet(new / name)
            num_files += 1
            num_rows += len(after)
            num_same_bytes += (old / name).read_bytes() == (new / name).read_bytes()
            if before.schema != after.schema:
                yield f"{name}: {before.schema} became {after.schema}"
            elif not before.equals(after) and not is_close(before, after):
                yield f"{name}: other values"
    print(f"{num_files} Parquet files with {num_rows:,} rows, {num_same_bytes} the same bytes")


def is_close(before: pl.DataFrame, after: pl.DataFrame) -> bool:
    """Return whether all columns are equal, float columns (scores) within TOLERANCE."""
    if len(before) != len(after):
        return False
    for name, dtype in before.schema.items():
        if dtype.is_float():
            if not (before[name] - after[name]).abs().max() <= TOLERANCE:  # type: ignore[operator]
                return False
        elif not before[name].equals(after[name]):
            return False
    return True


def metric_differences(old: Path, new: Path) -> Iterator[str]:
    """Compare the numbers of metrics.json, by their path."""
    name = "artifacts/evaluation/metrics.json"
    before = dict(numbers(json.loads((old / name).read_text())))
    after = dict(numbers(json.loads((new / name).read_text())))
    for key in sorted(before.keys() ^ after.keys()):
        print("only in one of the checkouts:", key)
    shared = before.keys() & after.keys()
    largest = max((abs(before[key] - after[key]) for key in shared), default=0.0)
    print(f"{len(shared)} numbers of metrics.json, the largest difference is {largest:.1e}")
    for key in sorted(shared):
        if abs(before[key] - after[key]) > TOLERANCE:
            yield f"{name}: {key}: {before[key]} became {after[key]}"


def numbers(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Yield each number in nested JSON with the path that leads to it."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from numbers(part, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for k, part in enumerate(value):
            yield from numbers(part, f"{path}.{k}")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, float(value)


if __name__ == "__main__":
    sys.exit(bool(main(Path(sys.argv[1]), Path(sys.argv[2]))))
