"""Log files as blocks of whole lines: plain or gzip, LF or CRLF, in bounded memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from isal import igzip
from isal.isal_zlib import IsalError

from common.files import DataError
from common.lookahead import read_ahead

# From 2 to 32 MiB the differences are small. In blocks of 8 MiB the fields are still in the CPU's
# cache when they are parsed.
BLOCK_BYTES = 8 << 20
# A file with a longer line is not a text log, and the copies of that line would not fit in memory.
MAX_LINE_BYTES = 64 << 20
LF = b"\n"
CR_LF = b"\r\n"
GZIP_MAGIC = b"\x1f\x8b"
UTF8_BOM = b"\xef\xbb\xbf"
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


class NoRowsError(DataError):
    """A log file has no rows. It may be a day on which nothing happened."""


@dataclass(frozen=True)
class Block:
    """Consecutive whole lines of a log.

    Attributes:
        text: The lines, each of them ended by one LF.
        first_line: The number of the first line in the log, from 1.
        num_lines: The number of lines.
        bytes_read: The number of bytes of the file that are read up to the end of the block. For a
            gzip file these are compressed bytes.
    """

    text: bytes
    first_line: int
    num_lines: int
    bytes_read: int

    def lines(self) -> list[bytes]:
        """Return the lines without their line ends."""
        return self.text[:-1].split(LF)

    def lines_at(self, positions: list[int]) -> list[bytes]:
        """Return some lines, without their line ends; position 0 is the block's first line."""
        lines = self.lines()
        return [lines[position] for position in positions]


def read_blocks(path: Path) -> Iterator[Block]:
    """Yield a log as blocks of about 8 MiB; a thread reads the next one while one is in use.

    A UTF-8 byte order mark is removed, CRLF becomes LF, and a missing last line end is added.

    Raises:
        NoRowsError: The file is empty.
        DataError: The file is UTF-16, its gzip stream is broken or cut off, or a line is
            longer than 64 MiB.
    """
    return read_ahead(_read_blocks(path))


def is_utf8(text: bytes) -> bool:
    """Return whether bytes are valid UTF-8."""
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
        stream = _decompressed(file)
        while True:
            text = _read_whole_lines(stream, first_line, path)
            if first_line == 1:
                text = _without_bom(text, path)
                if not text:
                    raise NoRowsError(
                        f"{path} is empty; remove it from data.source or fetch it again"
                    )
            if not text:
                return
            block = _block(text, first_line, file.tell())
            first_line += block.num_lines
            yield block


def _decompressed(file: IO[bytes]) -> IO[bytes]:
    is_gzip = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    file.seek(0)
    if is_gzip:
        return igzip.IGzipFile(fileobj=file)  # type: ignore[return-value,no-untyped-call]
    return file


def _read_whole_lines(stream: IO[bytes], first_line: int, path: Path) -> bytes:
    """Read about BLOCK_BYTES up to a line end; empty at the end of the stream."""
    try:
        text = stream.read(BLOCK_BYTES)
        rest_of_line = b"" if text.endswith(LF) else stream.readline(MAX_LINE_BYTES)
    except (EOFError, igzip.BadGzipFile, IsalError) as error:  # type: ignore[misc]
        raise DataError(
            f"{path}: broken gzip after line {first_line - 1:,} ({error}); fetch the file again"
        ) from None
    if len(rest_of_line) == MAX_LINE_BYTES:
        number = first_line + text.count(LF)
        raise DataError(
            f"{path}: line {number:,} is longer than {MAX_LINE_BYTES >> 20} MiB; "
            "is this a text log? Name the log itself in data.source"
        )
    return text + rest_of_line


def _block(text: bytes, first_line: int, bytes_read: int) -> Block:
    if not text.endswith(LF):
        text += LF
    if b"\r" in text:
        text = text.replace(CR_LF, LF)
    return Block(text, first_line, text.count(LF), bytes_read)


def _without_bom(text: bytes, path: Path) -> bytes:
    if text.startswith(UTF16_BOMS):
        raise DataError(
            f"{path} is UTF-16, but clickmill reads UTF-8; convert it: iconv -f UTF-16 -t UTF-8"
        )
    return text.removeprefix(UTF8_BOM)
