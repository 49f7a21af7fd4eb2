"""Log files as blocks of whole lines: plain or compressed, LF or CRLF, in bounded memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from common.files import DataError
from common.lookahead import read_ahead
from features.ingest.readers.compression import STREAM_ERRORS, Codec
from features.ingest.readers.contents import (
    HEAD_BYTES,
    broken,
    check_is_text,
    check_kind,
    codec_of,
)

# From 2 to 32 MiB the differences are small. In blocks of 8 MiB the fields are still in the CPU's
# cache when they are parsed.
BLOCK_BYTES = 8 << 20
# A file with a longer line is not a text log. The limit bounds what is made of one line: a list of
# its fields, or the objects of its JSON.
MAX_LINE_BYTES = 16 << 20
# Each line costs memory, however short it is: a number, a reason and a place in each column.
MAX_BLOCK_LINES = 1 << 16
SMALL_FILE_BYTES = BLOCK_BYTES >> 4
LF = b"\n"
CR_LF = b"\r\n"
UTF8_BOM = b"\xef\xbb\xbf"
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
UTF16_BYTES = 16  # of ASCII text without a byte order mark; each second one is 0


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
            compressed file these are compressed bytes.
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


def read_blocks(path: Path, num_columns: int = 1) -> Iterator[Block]:
    """Yield a log as blocks of up to about 8 MiB; a thread reads the next while one is in use.

    A UTF-8 byte order mark is removed, CRLF becomes LF, and a missing last line end is added.

    Args:
        path: The log file.
        num_columns: The number of its columns. A block has at most BLOCK_BYTES / num_columns lines.
            In a text log a good row has at least one byte for each column, so only bad rows make
            smaller blocks.

    Raises:
        NoRowsError: The file is empty.
        DataError: The file is UTF-16, an archive or a columnar file, its compressed stream is
            broken or cut off, or a line is longer than 16 MiB.
    """
    max_lines = max(min(MAX_BLOCK_LINES, BLOCK_BYTES // num_columns), 1)
    blocks = _read_blocks(path, max_lines)
    # There is nothing to read ahead in a small file, and a log may have thousands of them.
    return blocks if path.stat().st_size < SMALL_FILE_BYTES else read_ahead(blocks)


def block_of_text(text: bytes) -> Block:
    """Return a whole text as one block, read as a log file of these bytes would be.

    Raises:
        DataError: The text is empty, is UTF-16, or its lines end with CR alone.
    """
    name = Path("the text")
    without_bom = _without_bom(text, name)
    if not without_bom:
        raise NoRowsError(f"{name} is empty")
    return _block(without_bom, 1, len(text))


def cut_block(block: Block, max_lines: int) -> Iterator[Block]:
    """Cut a block into blocks of at most `max_lines` lines."""
    if block.num_lines <= max_lines:
        yield block
        return
    line_ends = np.flatnonzero(np.frombuffer(block.text, np.uint8) == LF[0])
    starts = [0, *(line_ends[max_lines - 1 :: max_lines] + 1).tolist()]
    for number, start in enumerate(starts):
        text = block.text[start : starts[number + 1] if number + 1 < len(starts) else None]
        if text:
            first_line = block.first_line + number * max_lines
            yield Block(text, first_line, text.count(LF), block.bytes_read)


def max_text_bytes(path: Path) -> int:
    """Return the largest number of bytes of text that a log file can contain."""
    with path.open("rb") as file:
        codec = codec_of(file.read(HEAD_BYTES))
    return path.stat().st_size * (codec.max_ratio if codec else 1)


def is_utf8(text: bytes) -> bool:
    """Return whether bytes are valid UTF-8."""
    if text.isascii():
        return True
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _read_blocks(path: Path, max_lines: int) -> Iterator[Block]:
    first_line = 1
    with path.open("rb") as file:
        check_kind(file, path, "text")
        codec = codec_of(file.read(HEAD_BYTES))
        file.seek(0)
        stream = _open(file, path, codec) if codec else file
        while True:
            text = _read_whole_lines(stream, first_line, path, codec)
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
            yield from cut_block(block, max_lines)


def _open(file: IO[bytes], path: Path, codec: Codec) -> IO[bytes]:
    try:
        return codec.open(file)
    except STREAM_ERRORS as error:
        raise broken(path, codec, error, 0) from None


def _read_whole_lines(stream: IO[bytes], first_line: int, path: Path, codec: Codec | None) -> bytes:
    """Read about BLOCK_BYTES up to a line end; empty at the end of the stream."""
    rest_of_line = b""
    try:
        text = stream.read(BLOCK_BYTES)
        if codec and first_line == 1:
            check_is_text(text[:HEAD_BYTES], path, codec)
        if text and not text.endswith(LF):
            rest_of_line = stream.readline(MAX_LINE_BYTES)
    except STREAM_ERRORS as error:
        if codec is None:
            raise
        raise broken(path, codec, error, first_line - 1) from None
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
    start = text[:UTF16_BYTES]
    one, other = start[::2], start[1::2]
    for encoding, letters, zeros in (("UTF-16LE", one, other), ("UTF-16BE", other, one)):
        if len(start) == UTF16_BYTES and all(letters) and not any(zeros):
            raise DataError(
                f"{path} seems to be UTF-16, but clickmill reads UTF-8; convert it: "
                f"iconv -f {encoding} -t UTF-8"
            )
    if b"\r" in text[:-1] and LF not in text:
        raise DataError(
            f"{path}: its lines end with CR alone, but clickmill reads LF and CRLF; convert it: "
            "tr '\\r' '\\n'"
        )
    return text.removeprefix(UTF8_BOM)
