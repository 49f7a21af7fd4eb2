"""Log files as blocks of whole lines: plain or gzip, LF or CRLF, bounded memory whatever the file's size."""

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from features.files import DataError

BLOCK_BYTES = 32 << 20
MAX_LINE_BYTES = 64 << 20  # a longer "line" is no text log, and would not fit in memory with its copies
LF = b"\n"
GZIP_MAGIC = b"\x1f\x8b"
UTF8_BOM = b"\xef\xbb\xbf"
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Block:
    """Whole lines, each ended by one LF. first_line is the 1-based number of the first; read_bytes how far into the file it ends."""

    text: bytes
    first_line: int
    num_lines: int
    read_bytes: int


def read_blocks(path: Path) -> Iterator[Block]:
    """Blocks of about 32 MiB. A UTF-8 byte order mark is dropped, CRLF becomes LF, a missing last line end is added.

    Raises DataError for an empty file, UTF-16, a broken or truncated gzip, and a line over 64 MiB.
    """
    first_line = 1
    with path.open("rb") as file:
        is_gzip = file.read(2) == GZIP_MAGIC
        file.seek(0)
        stream: IO[bytes] = gzip.GzipFile(fileobj=file) if is_gzip else file  # type: ignore[assignment]
        rest = b""
        while True:
            try:
                data = stream.read(BLOCK_BYTES)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise DataError(f"{path}: broken gzip after line {first_line - 1:,} ({error}); fetch the file again") from None
            text = rest + data
            if first_line == 1:
                text = _without_bom(text, path)
            if not data:  # the end: what is left is a last line without its line end
                if text:
                    yield _block(text + b"\n", first_line, file.tell())
                elif first_line == 1:
                    raise DataError(f"{path} is empty; remove it from data.source or fetch it again")
                return
            cut = text.rfind(b"\n") + 1
            text, rest = text[:cut], text[cut:]
            if len(rest) > MAX_LINE_BYTES:
                raise DataError(
                    f"{path}: line {first_line + text.count(LF):,} is longer than {MAX_LINE_BYTES >> 20} MiB; this is no text log"
                )
            if text:
                block = _block(text, first_line, file.tell())
                first_line += block.num_lines
                yield block


def _block(text: bytes, first_line: int, read_bytes: int) -> Block:
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n")
    return Block(text, first_line, text.count(b"\n"), read_bytes)


def _without_bom(text: bytes, path: Path) -> bytes:
    if text.startswith(UTF16_BOMS):
        raise DataError(f"{path} is UTF-16; clickmill reads UTF-8: iconv -f UTF-16 -t UTF-8")
    return text.removeprefix(UTF8_BOM)
