"""A full disk, a disk quota and a limit of file sizes: the errors that mean them, as one line.

Libraries report them in many ways: as an OSError with its number, as a text, or as an error about
something else, for which a write beside the file shows whether the disk is full.
"""

import errno
import os
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import clear_frames

from common.printable import first_line

REMEDIES = {
    errno.ENOSPC: "free space on that disk, then run the command again",
    errno.EDQUOT: "free space, or ask for a larger quota, then run the command again",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), then run the command again",
}
# what the operating system, SQLite and git say
TEXTS = {
    **{os.strerror(code).lower(): code for code in REMEDIES},
    "database or disk is full": errno.ENOSPC,
    "out of diskspace": errno.ENOSPC,
}
PROBE_BYTES = 1 << 20
BLOCK_BYTES = 1 << 16  # what a library writes at once: a file ends at most so far below its limit


class FullDiskError(OSError):
    """A disk is full, or a limit is reached. The message is one line with the path and remedy."""

    @property
    def reason(self) -> str:
        """The words of the operating system, such as `No space left on device`."""
        return str(self).partition(":")[0]


def find_full_disk(
    error: BaseException, path: Path | None = None, scratch: Path | None = None
) -> FullDiskError | None:
    """Return the full disk that an error is about or was caused by, None if there is none.

    Args:
        error: The error.
        path: What was being written, if it is known.
        scratch: Where it was written until it was complete. If the error itself does not say that
            the disk is full, this function tries to write beside it.
    """
    for cause in _chain(error):
        if isinstance(cause, FullDiskError):
            return cause
        if isinstance(cause, OSError) and cause.errno is not None and cause.errno in REMEDIES:
            return _full(cause.errno, path or cause.filename or first_line(cause))
    for cause in _chain(error):
        text = str(cause).lower()
        for words, code in TEXTS.items():
            if words in text:
                return _full(code, path or first_line(cause, words))
    return full_disk_at(scratch, path) if scratch is not None else None


def full_disk_at(scratch: Path, path: Path | None = None) -> FullDiskError | None:
    """Return the full disk that prevents a write beside `scratch`, None if that succeeds.

    Args:
        scratch: A file or a folder, which need not exist.
        path: The path to name; `scratch` by default.
    """
    code = _failure_of_a_write(scratch)
    return _full(code, path or scratch) if code else None


@contextmanager
def full_disk_named(path: Path, scratch: Path) -> Iterator[None]:
    """Raise a FullDiskError in the place of any error that a full disk caused in the block.

    Args:
        path: What the block writes.
        scratch: Where it writes it until it is complete. It may be removed only afterwards, because
            not all libraries say that the disk is full.
    """
    try:
        yield
    except Exception as error:
        is_clear = isinstance(error, (OSError, ValueError))  # a DataError is a ValueError
        if full := find_full_disk(error, path, None if is_clear else scratch):
            # An object of one of the frames may keep the file open, and the disk full with it.
            for cause in _chain(error):
                clear_frames(cause.__traceback__)
            raise full from error
        raise


def _full(code: int, where: object) -> FullDiskError:
    return FullDiskError(f"{os.strerror(code)}: {where}; {REMEDIES[code]}")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, its causes, and the errors of other threads that it contains."""
    found: list[BaseException] = [error]
    for cause in found:
        yield cause
        others: list[object] = [cause.__cause__, cause.__context__]
        if isinstance(cause, BaseExceptionGroup):
            others += cause.exceptions
        found += [
            other for other in others if isinstance(other, BaseException) and other not in found
        ]


def _failure_of_a_write(path: Path) -> int | None:
    """Return the error number of a full disk that writing beside a path gives, if it does."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    files = path.rglob("*") if path.is_dir() else [path]
    if limit != resource.RLIM_INFINITY and any(
        file.is_file() and file.stat().st_size > limit - BLOCK_BYTES for file in files
    ):
        return errno.EFBIG
    try:
        with tempfile.TemporaryFile(dir=path.parent) as probe:
            os.posix_fallocate(probe.fileno(), 0, PROBE_BYTES)
    except OSError as error:
        return error.errno if error.errno in REMEDIES else None
    return None
