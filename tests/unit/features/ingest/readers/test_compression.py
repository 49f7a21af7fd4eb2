"""Compressed logs: the same rows as plain text, or one line with the place and the remedy."""

import bz2
import io
import lzma
import random
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from common.files import DataError
from features.ingest.readers import blocks
from features.ingest.readers.blocks import max_text_bytes, read_blocks
from features.ingest.readers.compression import CODECS
from features.ingest.readers.read_log import has_label, read_log
from features.schema.schema import Schema
from tests.factories.compressed import COMPRESS, as_zip
from tests.factories.raw_logs import CSV, JSON, csv_line, json_line
from tests.factories.support import ROOT

SEVERAL = [name for name in COMPRESS if name != "zip"]
SKIPPABLE = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
COMMANDS = {codec.name: codec.command for codec in CODECS}


def csv_lines(num_rows: int, seed: int = 0) -> bytes:
    """Return lines that do not compress well; each seventh is malformed."""
    draw = random.Random(seed)
    lines = [
        csv_line(code=f"{draw.getrandbits(32):08x}", stock="x" if k % 7 == 3 else str(k))
        for k in range(num_rows)
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def write(tmp_path: Path, data: bytes) -> Path:
    """Write a log whose name says nothing about its format."""
    (tmp_path / "log").write_bytes(data)
    return tmp_path / "log"


def text_of(path: Path) -> bytes:
    return b"".join(block.text for block in read_blocks(path))


def read(path: Path, schema: Schema) -> tuple[pl.DataFrame, pl.DataFrame]:
    parsed = list(read_log(path, schema, labelled=True, short_rows="quarantine"))
    return pl.concat([one.rows for one in parsed]), pl.concat([one.bad_rows for one in parsed])


@pytest.mark.parametrize("name", COMPRESS)
@pytest.mark.parametrize("block_bytes", [1000, 1 << 23])
def test_rows_and_bad_rows_are_those_of_the_plain_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, block_bytes: int
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
    json = "".join(f"{json_line(stock=k)}\n" for k in range(300)).encode() + b"no object\n"
    for data, schema, num_bad in ((csv_lines(700), CSV, 100), (json, JSON, 1)):
        rows, bad_rows = read(write(tmp_path, data), schema)
        assert rows.height + bad_rows.height == data.count(b"\n")
        assert bad_rows.height == num_bad
        log = write(tmp_path, COMPRESS[name](data))
        assert has_label(log, schema)
        found_rows, found_bad_rows = read(log, schema)
        assert found_rows.equals(rows)
        assert found_bad_rows.equals(bad_rows)


@pytest.mark.parametrize("name", SEVERAL)
def test_several_streams_are_read_as_one(tmp_path: Path, name: str) -> None:
    compress, text = COMPRESS[name], csv_lines(300)
    parts = [text[:10], b"", text[10:5000], text[5000:]]
    assert text_of(write(tmp_path, b"".join(map(compress, parts)))) == text


def test_what_the_tools_write_between_streams_is_skipped(tmp_path: Path) -> None:
    """The tool pzstd begins with a skippable frame, and xz may pad streams with zeros."""
    text = csv_lines(300)
    for name in ("zstd", "lz4"):
        data = COMPRESS[name](text)
        assert text_of(write(tmp_path, data + SKIPPABLE + data)) == text + text
    data = COMPRESS["zstd"](text)
    assert text_of(write(tmp_path, SKIPPABLE + data + SKIPPABLE)) == text
    padded = lzma.compress(text[:99]) + bytes(8) + lzma.compress(text[99:]) + bytes(4)
    assert text_of(write(tmp_path, padded)) == text
    with pytest.raises(DataError, match="broken xz"):
        text_of(write(tmp_path, padded + bytes(3)))


@pytest.mark.parametrize("name", COMPRESS)
def test_a_file_that_is_cut_off_is_refused_at_each_place(tmp_path: Path, name: str) -> None:
    data = COMPRESS[name](csv_lines(400))
    places = {
        *range(1, 40),
        *range(40, len(data), len(data) // 200),
        *range(len(data) - 40, len(data)),
    }
    for place in sorted(places):
        with pytest.raises(DataError) as found:
            read(write(tmp_path, data[:place]), CSV)
        if place >= 10:  # fewer bytes do not show what it was
            assert f"broken {name} after line 0 (" in str(found.value)
            assert str(found.value).endswith("fetch the file again")


@pytest.mark.parametrize("name", SEVERAL)
def test_bytes_after_a_stream_are_no_end(tmp_path: Path, name: str) -> None:
    """The file classes of bz2 and lzma would end there, and lose the rows that follow."""
    compress, text = COMPRESS[name], csv_lines(50)
    broken = bytearray(compress(text))
    broken[0] ^= 1
    for rest in (bytes(broken), b"rubbish", compress(text)[:3]):
        with pytest.raises(DataError, match=f"log: broken {name} after line 0"):
            text_of(write(tmp_path, compress(text) + rest))


@pytest.mark.parametrize("name", COMPRESS)
def test_the_message_names_the_last_line_that_could_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1 << 18)
    data = bytearray(COMPRESS[name](csv_lines(12_000) * (3 if name == "bz2" else 1)))
    place = len(data) * 3 // 4
    if name == "zip":  # it ends with the list of its files
        data[place : place + 64] = bytes(64)
    else:
        del data[place:]
    with pytest.raises(DataError, match=rf"broken {name} after line [1-9],?\d") as found:
        text_of(write(tmp_path, bytes(data)))
    assert "\n" not in str(found.value)


def tar_of(text: bytes) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        info = tarfile.TarInfo("log.csv")
        info.size = len(text)
        archive.addfile(info, io.BytesIO(text))
    return target.getvalue()


def encrypted(archive: bytes) -> bytes:
    """Set the flag that says that the only member is encrypted."""
    changed = bytearray(archive)
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        changed[archive.rindex(magic) + offset] |= 1
    return bytes(changed)


TEXT = b"a,b\n" * 1000
TWO_FILES = ("a.csv", "b.csv")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tar_of(TEXT), r"is a tar archive; unpack it .*: tar -xf log$"),
        *[
            (COMPRESS[name](tar_of(TEXT)), r"is a tar archive; .*: tar -xf log$")
            for name in COMPRESS
        ],
        (b"7z\xbc\xaf\x27\x1c" + bytes(100), "is a 7z archive; .*: 7z x log$"),
        (b"Rar!\x1a\x07\x01\x00" + bytes(100), "is a rar archive; .*: unrar x log$"),
        (
            as_zip(TEXT, 8, *TWO_FILES),
            "this zip has 2 files, and one log is expected; .*: unzip log$",
        ),
        (as_zip(TEXT, 8, "folder/"), "this zip has 0 files"),
        # A zstd frame of four bytes of text, with the dictionary 5.
        (
            b"\x28\xb5\x2f\xfd\x21\x05\x04\x21\0\0a,b\n",
            "this zstd was compressed with a dictionary .*: zstd -d --long=31 -D DICTIONARY log$",
        ),
        (encrypted(as_zip(TEXT)), "this zip is encrypted; unpack it: unzip log$"),
        (
            as_zip(TEXT, zipfile.ZIP_BZIP2),
            "this zip uses compression method 12; unpack it: unzip log$",
        ),
        (bz2.compress(COMPRESS["gzip"](TEXT)), r"is gzip inside bz2; .*: bzip2 -d log$"),
        (as_zip(b"PAR1\x15\x04" + bytes(90)), "is a Parquet file inside zip; .*: unzip log$"),
    ],
)
def test_what_is_no_log_is_refused_with_the_command_that_unpacks_it(
    tmp_path: Path, data: bytes, message: str
) -> None:
    with pytest.raises(DataError, match=f"log:? {message}"):
        text_of(write(tmp_path, data))


def test_the_attributes_that_macos_adds_to_a_zip_are_no_log(tmp_path: Path) -> None:
    archive = as_zip(TEXT, 8, "log.csv", "__MACOSX/._log.csv")
    assert text_of(write(tmp_path, archive)) == TEXT


def test_a_text_that_begins_like_another_format_is_a_text(tmp_path: Path) -> None:
    for text in (b"BZh,1\n", b"PAR1,2\n", b"ORC,3\n", b"PK,4\n", b"x" * 257 + b"ustar,5\n"):
        assert text_of(write(tmp_path, text)) == text


def test_a_dictionary_that_takes_much_memory_is_refused(tmp_path: Path) -> None:
    """The decompressor would take as much as the file asks for."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 29}]
    log = write(tmp_path, lzma.compress(TEXT, filters=filters))
    with pytest.raises(DataError, match=r"takes more than 128 MiB \(Memory.*\); .*: xz -d log$"):
        text_of(log)
    # A zstd frame with a window of 2 GiB and no size: descriptor 0, exponent 21.
    log = write(tmp_path, b"\x28\xb5\x2f\xfd\x00\xa8" + bytes(20))
    with pytest.raises(
        DataError, match=r"takes more than 128 MiB \(.*memory.*: zstd -d --long=31 log$"
    ):
        text_of(log)


def zeros(name: str, num_mib: int) -> bytes:
    """Compress many zeros without making them all at once."""
    chunk = bytes(1 << 20)
    if name == "zip":
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w", 8) as archive, archive.open("log", "w") as file:
            for _ in range(num_mib):
                file.write(chunk)
        return target.getvalue()
    if name in ("gzip", "zstd", "lz4"):
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, name) as stream:
            for _ in range(num_mib):
                stream.write(chunk)
        return sink.getvalue().to_pybytes()
    compressor = lzma.LZMACompressor(preset=0) if name == "xz" else bz2.BZ2Compressor()
    return b"".join(compressor.compress(chunk) for _ in range(num_mib)) + compressor.flush()


READ_IN_CHILD = """
import resource, sys
from pathlib import Path
from common.files import DataError
from features.ingest.readers.blocks import read_blocks
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    for block in read_blocks(Path(sys.argv[1])):
        pass
except DataError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.mark.parametrize("name", COMPRESS)
def test_memory_is_bounded_whatever_the_ratio(tmp_path: Path, name: str) -> None:
    num_mib = 160
    log = write(tmp_path, zeros(name, num_mib))
    assert max_text_bytes(log) >= num_mib << 20
    run = subprocess.run(
        [sys.executable, "-c", READ_IN_CHILD, str(log)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "line 1 is longer than 16 MiB" in run.stdout
    assert int(run.stdout.splitlines()[-1]) < 100, run.stdout
