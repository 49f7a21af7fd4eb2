"""Log files as blocks of whole lines: plain or gzip, LF or CRLF, bounded memory whatever the file's size."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from isal import igzip
from isal.isal_zlib import IsalError

from common.files import DataError
from common.lookahead import read_ahead

BLOCK_BYTES = (
    8 << 20
)  # of 2 to 32 MiB the fastest, by a little: what is parsed is still in the cache
MAX_LINE_BYTES = (
    64 << 20
)  # a longer "line" is no text log, and would not fit in memory with its copies
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

    def lines(self) -> list[bytes]:
        return self.text[:-1].split(LF)

    def lines_at(self, places: list[int]) -> list[bytes]:
        """0 is the first."""
        lines = self.lines()
        return [lines[place] for place in places]


def read_blocks(path: Path) -> Iterator[Block]:
    """Blocks of about 8 MiB, the next one read while the caller works on this one.

    A UTF-8 byte order mark is dropped, CRLF becomes LF, a missing last line end is added. Raises DataError for an empty file, UTF-16, a
    broken or truncated gzip, and a line over 64 MiB.
    """
    return read_ahead(_read_blocks(path))


def is_utf8(text: bytes) -> bool:
    if text.isascii():
        return True
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _read_blocks(path: Path) -> Iterator[Block]:
    first_line = 1
    with path.open("rb") as file:
        is_gzip = file.read(2) == GZIP_MAGIC
        file.seek(0)
        stream: IO[bytes] = igzip.IGzipFile(fileobj=file) if is_gzip else file  # type: ignore[assignment,no-untyped-call]
        while True:
            try:
                text = stream.read(BLOCK_BYTES)
                line_rest = b"" if text.endswith(LF) else stream.readline(MAX_LINE_BYTES)
            except (EOFError, igzip.BadGzipFile, IsalError) as error:  # type: ignore[misc]
                raise DataError(
                    f"{path}: broken gzip after line {first_line - 1:,} ({error}); fetch the file again"
                ) from None
            if len(line_rest) == MAX_LINE_BYTES:
                number = first_line + text.count(LF)
                raise DataError(
                    f"{path}: line {number:,} is longer than {MAX_LINE_BYTES >> 20} MiB; this is no text log"
                )
            text += line_rest
            if first_line == 1:
                text = _without_bom(text, path)
                if not text:
                    raise DataError(
                        f"{path} is empty; remove it from data.source or fetch it again"
                    )
            if not text:
                return
            block = _block(text if text.endswith(LF) else text + LF, first_line, file.tell())
            first_line += block.num_lines
            yield block


def _block(text: bytes, first_line: int, read_bytes: int) -> Block:
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n")
    return Block(text, first_line, text.count(LF), read_bytes)


def _without_bom(text: bytes, path: Path) -> bytes:
    if text.startswith(UTF16_BOMS):
        raise DataError(f"{path} is UTF-16; clickmill reads UTF-8: iconv -f UTF-16 -t UTF-8")
    return text.removeprefix(UTF8_BOM)
