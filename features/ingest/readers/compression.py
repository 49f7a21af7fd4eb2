"""Compressed files as streams of bytes, in bounded memory.

A file that is cut off or broken is never taken for a complete one.
"""

import bz2
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import IO, Protocol

import pyarrow as pa
from isal import igzip
from isal.isal_zlib import IsalError

COMPRESSED_CHUNK_BYTES = 1 << 16
BUFFER_BYTES = 1 << 17
# The most memory that a decompressor of xz may take; zstd's own limit is the same. `xz -9` needs
# half of it.
MAX_DECOMPRESSOR_BYTES = 128 << 20


class UnreadableArchiveError(Exception):
    """A zip archive is whole, but it cannot be read as one log."""


# The errors of the streams if a file cannot be read, or not to its end.
STREAM_ERRORS: tuple[type[Exception], ...] = (
    UnreadableArchiveError,
    EOFError,
    OSError,
    IsalError,  # type: ignore[assignment]
    lzma.LZMAError,
    zipfile.BadZipFile,
    zlib.error,
    pa.ArrowException,
)


@dataclass(frozen=True)
class Codec:
    """A format of compressed files.

    Attributes:
        name: Its name in messages.
        magics: One of these is at the beginning of each file.
        max_ratio: The largest possible ratio of decompressed to compressed bytes.
        command: The command that decompresses a file.
        open: Returns the decompressed bytes of an open file as a stream.
    """

    name: str
    magics: tuple[bytes, ...]
    max_ratio: int
    command: str
    open: Callable[[IO[bytes]], IO[bytes]]


class _Decompressor(Protocol):
    """The decompressor of one stream, as of `bz2` and `lzma`."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _JoinedStreams(io.RawIOBase):
    """The bytes of the compressed streams of a file, one after the other.

    The file classes of `bz2` and `lzma` do the same, but they take a second stream that is broken
    at its beginning for the end of the file.

    Args:
        file: The compressed file.
        make: Makes the decompressor of one stream.
        padding: Bytes that may be repeated after a stream; empty if nothing but a stream may follow
            a stream.
    """

    def __init__(
        self, file: IO[bytes], make: Callable[[], _Decompressor], padding: bytes = b""
    ) -> None:
        self.file, self.make, self.padding = file, make, padding
        self.decompressor = make()

    def readable(self) -> bool:
        return True

    def readinto(self, target: memoryview) -> int:  # type: ignore[override]
        while True:
            data = b""
            if self.decompressor.eof:
                data = self._start_of_next_stream()
                if not data:
                    return 0
                self.decompressor = self.make()
            elif self.decompressor.needs_input:
                data = self.file.read(COMPRESSED_CHUNK_BYTES)
                if not data:
                    raise EOFError("the file is cut off")
            text = self.decompressor.decompress(data, len(target))
            if text:
                target[: len(text)] = text
                return len(text)

    def _start_of_next_stream(self) -> bytes:
        """Return the first bytes after a stream; empty at the end of the file."""
        data = self.decompressor.unused_data or self.file.read(COMPRESSED_CHUNK_BYTES)
        while self.padding and data[:1] == self.padding[:1]:
            data += self.file.read(max(len(self.padding) - len(data), 0))
            if not data.startswith(self.padding):
                break
            data = data.removeprefix(self.padding) or self.file.read(COMPRESSED_CHUNK_BYTES)
        return data


def _open_bz2(file: IO[bytes]) -> IO[bytes]:
    return io.BufferedReader(_JoinedStreams(file, bz2.BZ2Decompressor), BUFFER_BYTES)


def _open_xz(file: IO[bytes]) -> IO[bytes]:
    make = partial(lzma.LZMADecompressor, lzma.FORMAT_XZ, MAX_DECOMPRESSOR_BYTES)
    return io.BufferedReader(_JoinedStreams(file, make, padding=bytes(4)), BUFFER_BYTES)


def _open_by_arrow(file: IO[bytes], codec: str) -> IO[bytes]:
    stream = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), codec)
    return io.BufferedReader(stream, BUFFER_BYTES)


# macOS writes a file of attributes for each file of an archive.
MACOS_FOLDER = "__MACOSX/"


def _open_zip(file: IO[bytes]) -> IO[bytes]:
    archive = zipfile.ZipFile(file)
    members = [
        member
        for member in archive.infolist()
        if not member.is_dir() and not member.filename.startswith(MACOS_FOLDER)
    ]
    if len(members) != 1:
        raise UnreadableArchiveError(f"has {len(members):,} files, and one log is expected")
    if members[0].flag_bits & 1:
        raise UnreadableArchiveError("is encrypted")
    # The other methods are decompressed by `zipfile` without a bound.
    if members[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UnreadableArchiveError(f"uses compression method {members[0].compress_type}")
    return archive.open(members[0])


def _open_gzip(file: IO[bytes]) -> IO[bytes]:
    return igzip.IGzipFile(fileobj=file)  # type: ignore[return-value,no-untyped-call]


# A skippable frame may be before the first frame of zstd; pzstd writes one.
ZSTD_MAGICS = (b"\x28\xb5\x2f\xfd", *(bytes([first]) + b"\x2a\x4d\x18" for first in range(80, 96)))
BZ2_BLOCKS = (b"\x31\x41\x59\x26\x53\x59", b"\x17\x72\x45\x38\x50\x90")
BZ2_MAGICS = tuple(b"BZh%d%b" % (level, block) for level in range(1, 10) for block in BZ2_BLOCKS)
ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
# The ratios are limits of the formats. deflate: https://zlib.net/zlib_tech.html. zstd: a block of 4
# bytes has at most 128 KiB. lz4: each byte of a length adds 255. xz: 273 bytes are repeated by 14
# decisions of at least 0.022 bits. bz2: 900,000 bytes are runs of 259 in 5 bytes, in a block of 20
# bytes or more.
CODECS = (
    Codec("gzip", (b"\x1f\x8b",), 1032, "gzip -d", _open_gzip),
    Codec("zstd", ZSTD_MAGICS, 1 << 15, "zstd -d --long=31", partial(_open_by_arrow, codec="zstd")),
    Codec("lz4", (b"\x04\x22\x4d\x18",), 255, "lz4 -d", partial(_open_by_arrow, codec="lz4")),
    Codec("xz", (b"\xfd7zXZ\x00",), 7100, "xz -d", _open_xz),
    Codec("bz2", BZ2_MAGICS, 900_000 // 5 * 259 // 20, "bzip2 -d", _open_bz2),
    Codec("zip", ZIP_MAGICS, 1032, "unzip", _open_zip),
)
