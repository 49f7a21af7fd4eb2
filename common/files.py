"""Files that are whole or absent: written beside their place, then renamed over it."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHUNK_BYTES = 1 << 20


class DataError(ValueError):
    """Something is wrong with the user's data. The message names the value, where it came from and the remedy."""


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what was written there (a file or a directory) takes its place, or vanishes on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch, old = path.with_name(f".{path.name}.tmp"), _aside(path)
    recover(path)
    remove(scratch)
    remove(old)
    try:
        yield scratch
        if scratch.is_dir() and path.exists():
            path.rename(
                old
            )  # a directory cannot be renamed over a full one, and one that is being removed is neither whole nor absent
        scratch.replace(path)
    finally:
        recover(path)
        remove(scratch)
        remove(old)


def recover(path: Path) -> None:
    """Put back what a run that was killed between the two renames of `replaced` had moved aside."""
    if _aside(path).exists() and not path.exists():
        _aside(path).rename(path)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old.tmp")


def remove(path: Path) -> None:
    """Remove a file or a tree; nothing there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sha256_file(path: Path) -> str:
    """SHA-256 of the file's bytes, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_with_sha256(source: Path, target: Path) -> str:
    """Copy the bytes, reading them once, and return their SHA-256, hex."""
    digest = hashlib.sha256()
    with source.open("rb") as read, target.open("wb") as write:
        while chunk := read.read(CHUNK_BYTES):
            digest.update(chunk)
            write.write(chunk)
    return digest.hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Sorted keys, so that the same value is the same bytes; NaN is refused."""
    with replaced(path) as scratch:
        scratch.write_text(
            json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n",
            encoding="utf-8",
        )


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises DataError when it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{path} not found; run the stage that makes it (clickmill run does them all)"
        ) from None
    except ValueError as error:
        raise DataError(
            f"{path} is not JSON ({error}); remove it and run its stage again"
        ) from None
