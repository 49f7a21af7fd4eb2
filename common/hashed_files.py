"""The check that files still have the SHA-256 hashes that were recorded for them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.files import sha256_file


@dataclass(frozen=True)
class Mismatch:
    """A file that is missing or has other contents than were recorded.

    Attributes:
        path: The file.
        expected: The SHA-256 that was recorded, in hex.
        actual: The SHA-256 of the file as it is, in hex; None if there is no such file.
    """

    path: Path
    expected: str
    actual: str | None


def find_mismatch(directory: Path, sha256_by_name: Mapping[str, str]) -> Mismatch | None:
    """Return the first file that does not have its recorded hash, or None if all files have it.

    Args:
        directory: The folder that the names are relative to.
        sha256_by_name: The recorded SHA-256 of each file, in hex. The files are read in this order,
            up to the first mismatch.

    Raises:
        OSError: A file cannot be read.
    """
    for name, expected in sha256_by_name.items():
        path = directory / name
        actual = sha256_file(path) if path.is_file() else None
        if actual != expected:
            return Mismatch(path, expected, actual)
    return None
