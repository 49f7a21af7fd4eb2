"""The format of a log file, found by its bytes. The name of a file says nothing about it."""

import shlex
from pathlib import Path
from typing import IO

from common.files import DataError
from common.printable import printable
from common.user_files import path_as_text
from features.ingest.readers.compression import (
    CODECS,
    MAX_DECOMPRESSOR_BYTES,
    Codec,
    UnreadableArchiveError,
)

HEAD_BYTES = 512
TAIL_BYTES = 8
# Files that are no logs: an offset, the bytes there, the format, and the command that unpacks it.
ARCHIVES = (
    (257, b"ustar\0", "a tar archive", "tar -xf"),
    (257, b"ustar  \0", "a tar archive", "tar -xf"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x"),
    (0, b"Rar!\x1a\x07", "a rar archive", "unrar x"),
    (0, b"\x1f\x9d", "compressed by `compress`", "uncompress"),
    (0, b"\x02\x21\x4c\x18", "lz4 of the legacy format", "lz4 -d"),
)
# The names of columnar formats, by the kind in a schema.
COLUMNAR_NAMES = {"parquet": "a Parquet", "orc": "an ORC", "arrow": "an Arrow"}
ARROW_FILE_MAGIC = b"ARROW1\0\0"
ARROW_STREAM_MAGIC = b"\xff\xff\xff\xff"


def codec_of(head: bytes) -> Codec | None:
    """Return the codec of a file with these first bytes; None if it is not compressed."""
    return next((codec for codec in CODECS if head.startswith(codec.magics)), None)


def columnar_kind(head: bytes, tail: bytes) -> str | None:
    """Return the kind of a columnar file: `parquet`, `orc` or `arrow`; None if it is none.

    Args:
        head: The first bytes of the file.
        tail: Its last bytes, which tell a text that begins with `ORC` from an ORC file.
    """
    if head.startswith(b"PAR1") and (head[4:5] == b"\x15" or tail.endswith(b"PAR1")):
        return "parquet"
    if head.startswith(b"ORC") and tail[-4:-1] == b"ORC":
        return "orc"
    if head.startswith((ARROW_FILE_MAGIC, ARROW_STREAM_MAGIC)):
        return "arrow"
    return None


def read_ends(file: IO[bytes]) -> tuple[bytes, bytes]:
    """Return the first HEAD_BYTES and the last TAIL_BYTES of an open file, and rewind it."""
    head = file.read(HEAD_BYTES)
    num_bytes = file.seek(0, 2)
    file.seek(max(num_bytes - TAIL_BYTES, 0))
    tail = file.read(TAIL_BYTES)
    file.seek(0)
    return head, tail


def check_kind(file: IO[bytes], path: Path, kind: str) -> None:
    """Check that an open file is not of another format than the schema's.

    Args:
        file: The file, which is rewound.
        path: Its path, for the message.
        kind: `format.kind` of the schema.

    Raises:
        DataError: It is an archive or a columnar file of another kind; or it is compressed, and the
            kind is a columnar one.
    """
    head, tail = read_ends(file)
    found = columnar_kind(head, tail)
    if found and found != kind:
        raise DataError(
            f"{path} is {COLUMNAR_NAMES[found]} file; set format.kind: {found} in its schema"
        )
    check_no_archive(head, path)
    codec = codec_of(head)
    if codec and kind in COLUMNAR_NAMES:
        raise DataError(
            f"{path} is compressed by {codec.name}, but {COLUMNAR_NAMES[kind]} file is compressed "
            f"inside; decompress it: {codec.command} {_shell_name(path)}"
        )


def check_no_archive(head: bytes, path: Path) -> None:
    """Check that a file, or the text of a compressed file, is not an archive.

    Raises:
        DataError: Its first bytes are those of an archive.
    """
    for offset, magic, name, command in ARCHIVES:
        if head[offset : offset + len(magic)] == magic:
            raise DataError(
                f"{path} is {name}; unpack it and name the log itself: "
                f"{command} {_shell_name(path)}"
            )


def check_is_text(head: bytes, path: Path, codec: Codec) -> None:
    """Check that a compressed file contains text, by the text's first bytes.

    Raises:
        DataError: It is an archive, a columnar file, or compressed twice.
    """
    check_no_archive(head, path)
    inner = codec_of(head)
    found = columnar_kind(head, b"")
    if inner or found:
        name = inner.name if inner else f"{COLUMNAR_NAMES[found or '']} file"
        raise DataError(
            f"{path} is {name} inside {codec.name}; decompress it before: "
            f"{codec.command} {_shell_name(path)}"
        )


def broken(path: Path, codec: Codec, error: Exception, num_lines: int) -> DataError:
    """Return the error of a compressed file that cannot be read on.

    Args:
        path: The file.
        codec: Its codec.
        error: What the codec's stream has raised.
        num_lines: The number of lines that could be read.

    Raises:
        OSError: The file system, not the file, is at fault.
    """
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    reason = printable(str(error))
    if isinstance(error, UnreadableArchiveError):
        return DataError(
            f"{path}: this {codec.name} {reason}; unpack it: {codec.command} {_shell_name(path)}"
        )
    if "memory" in reason.lower():
        return DataError(
            f"{path}: to decompress this {codec.name} takes more than "
            f"{MAX_DECOMPRESSOR_BYTES >> 20} MiB ({reason}); decompress it before: "
            f"{codec.command} {_shell_name(path)}"
        )
    if "dictionary" in reason.lower():
        return DataError(
            f"{path}: this {codec.name} was compressed with a dictionary ({reason}); decompress it "
            f"before: {codec.command} -D DICTIONARY {_shell_name(path)}"
        )
    return DataError(
        f"{path}: broken {codec.name} after line {num_lines:,} ({reason}); fetch the file again"
    )


def _shell_name(path: Path) -> str:
    """Return the name of a log as an argument of a shell, without its folder.

    The path may be that of a copy in artifacts/, which nobody should unpack.
    """
    return shlex.quote(path_as_text(Path(path.name)))
