"""Compressed bytes in each format that logs may have."""

import bz2
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable

import pyarrow as pa

Compress = Callable[[bytes], bytes]


def by_arrow(codec: str) -> Compress:
    """Return a function that compresses to one frame."""

    def compress(data: bytes) -> bytes:
        target = pa.BufferOutputStream()
        with pa.CompressedOutputStream(target, codec) as stream:
            stream.write(data)
        return target.getvalue().to_pybytes()

    return compress


def as_zip(data: bytes, method: int = zipfile.ZIP_DEFLATED, *names: str) -> bytes:
    """Return an archive in which each name has the data."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        for name in names or ("folder/", "folder/log.csv"):
            archive.writestr(name, b"" if name.endswith("/") else data)
    return target.getvalue()


COMPRESS: dict[str, Compress] = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "zstd": by_arrow("zstd"),
    "lz4": by_arrow("lz4"),
    "xz": lzma.compress,
    "bz2": bz2.compress,
    "zip": as_zip,
}
