"""The names of files that are named after columns of a log."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable

PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
# Letters that are safe whatever the file system does with capital letters.
SAFE_BYTES = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789_.-")
MAX_CHARS = 200  # a file's name has at most 255 bytes, with its ending
NUM_HASH_CHARS = 32  # 128 bits of SHA-256


def file_names(names: Iterable[str]) -> dict[str, str]:
    """Return a safe file name, without an ending, for each of some distinct names.

    A name of ASCII letters, digits, `_`, `-` and `.` is its own file name. In any other name, each
    byte of UTF-8 that is no small letter, digit, `_`, `-` or `.` becomes `%` and two hex digits, as
    in a URL, and a point or hyphen at the beginning as well. So do the capital letters of names
    that are the same but for capital letters, because some file systems take these for one name. A
    file name that would be longer than 200 characters ends with a hash of the name. No two names
    have the same file name, also without regard to capital letters.

    Args:
        names: The names, any text.

    Returns:
        The file name of each name.
    """
    names = list(names)
    num_equal = Counter(name.lower() for name in names)
    return {
        name: name
        if PLAIN_NAME.fullmatch(name) and len(name) <= MAX_CHARS and num_equal[name.lower()] == 1
        else _encoded(name)
        for name in names
    }


def _encoded(name: str) -> str:
    encoded = "".join(
        chr(byte) if byte in SAFE_BYTES and (k or byte not in b".-") else f"%{byte:02X}"
        for k, byte in enumerate(name.encode())
    )
    if not encoded:
        return "%"
    if len(encoded) <= MAX_CHARS:
        return encoded
    digest = hashlib.sha256(name.encode()).hexdigest()[:NUM_HASH_CHARS]
    return f"{encoded[: MAX_CHARS - NUM_HASH_CHARS - 1]}~{digest}"
