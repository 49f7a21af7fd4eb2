"""Files that are complete or absent: they are written under another name and then renamed."""

import hashlib
import json
import math
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from isal import isal_zlib

from common.full_disk import full_disk_named
from common.masking import mask_passwords
from common.printable import printable

CHUNK_BYTES = 1 << 20
KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class DataError(ValueError):
    """The user's data is at fault. The message names the value, where it is and the remedy.

    A value or a file name in the message cannot break its line, see `printable`. Passwords in URLs
    are masked.

    Args:
        lines: The lines of the message, in most cases one.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__(*(printable(mask_passwords(line)) for line in lines))

    def __str__(self) -> str:
        return "\n".join(self.args)

    def __reduce__(self) -> Any:
        # A subclass may be made from other arguments than its lines.
        return _restore_error, (type(self), self.args, vars(self))


def _restore_error(kind: type[DataError], lines: Sequence[str], attributes: Any) -> DataError:
    """Return an error that another process has raised, as it was there."""
    error = kind.__new__(kind, *lines)
    vars(error).update(attributes)
    return error


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Replace a file or a directory as a whole, or not at all.

    Yields a temporary path in the same folder. What the caller wrote there, a file or a directory,
    takes the place of `path` when the block ends. If the block raises, it is removed and `path`
    stays as it was.

    Args:
        path: The file or directory to replace. Its folder is created if need be.

    Raises:
        FileNotFoundError: The caller wrote nothing.
        FullDiskError: The disk is full, whatever the block raised about that.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.tmp")
    old = _moved_aside(path)
    recover(path)
    remove(scratch)
    remove(old)
    try:
        with full_disk_named(path, scratch):
            yield scratch
            if scratch.is_dir() and path.exists():
                # A directory cannot be renamed over one that is not empty, and removing that one
                # first would leave neither of the two if the process were killed.
                path.rename(old)
            scratch.replace(path)
    finally:
        recover(path)
        remove(scratch)
        remove(old)


def recover(path: Path) -> None:
    """Put back what `replaced` had moved aside when its process was killed between two renames."""
    old = _moved_aside(path)
    if old.exists() and not path.exists():
        old.rename(path)


def _moved_aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old.tmp")


def remove(path: Path) -> None:
    """Remove a file or a directory with its contents, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def other_kind(path: Path, *, link_allowed: bool = False) -> str | None:
    """Return what a path is if it is anything but a file, such as `a named pipe`; else None.

    The path is not opened: to open a pipe may wait forever, and a device may act.

    Args:
        path: The path.
        link_allowed: Whether a symbolic link counts as what it leads to.

    Raises:
        OSError: There is nothing at the path, or it cannot be looked at.
    """
    mode = path.stat(follow_symlinks=link_allowed).st_mode
    return None if stat.S_ISREG(mode) else KINDS[stat.S_IFMT(mode)]


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def crc32_file(path: Path, num_bytes: int | None = None) -> int:
    """Return the CRC-32 of a file, or of its first bytes.

    It finds any damage of up to 32 consecutive bits, and other damage with a probability of
    1 - 2^-32. It takes a fraction of the time of a SHA-256.
    """
    left = path.stat().st_size if num_bytes is None else num_bytes
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(min(CHUNK_BYTES, left)):
            checksum = isal_zlib.crc32(chunk, checksum)
            left -= len(chunk)
    return checksum


def copy_with_sha256(source: Path, target: Path) -> str:
    """Copy a file, reading it once, and return the SHA-256 of its bytes, in hex."""
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(CHUNK_BYTES):
            digest.update(chunk)
            writer.write(chunk)
    return digest.hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON. Equal values give equal bytes, because keys are sorted.

    Raises:
        ValueError: The value contains NaN or an infinite number.
        TypeError: The value contains something that JSON cannot express.
    """
    with replaced(path) as scratch:
        scratch.write_text(json_text(value), encoding="utf-8")


def json_text(value: Any) -> str:
    """Return the text that `write_json` writes; it raises the same errors."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def read_json(path: Path, remedy: str = "remove it and run its stage again") -> Any:
    """Return the value in a JSON file. Its numbers are finite and its texts are valid Unicode.

    Args:
        path: The file.
        remedy: What the user can do if the file is damaged, for the error.

    Raises:
        DataError: The file is missing, cannot be read or is not JSON.
    """
    try:
        if kind := other_kind(path, link_allowed=True):
            raise DataError(f"{path} is {kind}, not a file; {remedy}")
        text = path.read_text(encoding="utf-8")
        value = json.loads(text, parse_constant=_finite, parse_float=_finite)
        if "\\u" in text:  # an escape can stand for half a character, which cannot be written again
            json.dumps(value, ensure_ascii=False).encode()
    except FileNotFoundError:
        raise DataError(
            f"{path} not found; run the stage that makes it (clickmill run does them all)"
        ) from None
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); check who may read it and its folders"
        ) from None
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}); {remedy}") from None
    return value


def _finite(text: str) -> float:
    """Return the number; JSON has no NaN, and 1e999 would become infinite."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is no finite number")
    return number
