"""Log files are read as blocks of whole lines."""

import gzip
from pathlib import Path

import pytest

from common.files import DataError
from features.ingest.readers import blocks
from features.ingest.readers.blocks import read_blocks


def text_of(path: Path) -> bytes:
    """Return the text of all blocks, whose line numbers are checked."""
    next_line = 1
    text = b""
    for block in read_blocks(path):
        assert block.first_line == next_line
        assert block.num_lines == block.text.count(b"\n")
        next_line += block.num_lines
        text += block.text
    return text


@pytest.mark.parametrize("block_bytes", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    ("written", "read"),
    [
        (b"a\tb\nc\td\n", b"a\tb\nc\td\n"),
        (b"a\nlast", b"a\nlast\n"),
        (b"a\r\nb\r\n", b"a\nb\n"),
        (b"a\r\nlast\r", b"a\nlast\n"),
        (b"\xef\xbb\xbfa\nb\n", b"a\nb\n"),
        (b"\n\na\n", b"\n\na\n"),
    ],
)
def test_line_ends_byte_order_mark_and_gzip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int, written: bytes, read: bytes
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
    (tmp_path / "log").write_bytes(written)
    assert text_of(tmp_path / "log") == read
    (tmp_path / "zipped").write_bytes(gzip.compress(written[:2]) + gzip.compress(written[2:]))
    assert text_of(tmp_path / "zipped") == read


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        ("a\tb\n".encode("utf-16"), "is UTF-16"),
        ("a\tb\n1\t2\n".encode("utf-16-le"), "seems to be UTF-16.* -f UTF-16LE"),
        ("a\tb\n1\t2\n".encode("utf-16-be"), "seems to be UTF-16.* -f UTF-16BE"),
        (b"a\tb\r1\t2\r", r"lines end with CR alone.*: tr '\\r' '\\n'$"),
        (gzip.compress(b"a\tb\n" * 1000, mtime=0)[:-9], "broken gzip after line"),
        (
            gzip.compress(b"a\tb\n" * 1000, mtime=0)[:20] + b"rubbish" * 9,
            "broken gzip after line 0",
        ),
    ],
)
def test_unreadable_files_are_refused(tmp_path: Path, written: bytes, message: str) -> None:
    (tmp_path / "log").write_bytes(written)
    with pytest.raises(DataError, match=f"log.*{message}"):
        text_of(tmp_path / "log")


def test_a_line_that_does_not_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "MAX_LINE_BYTES", 1 << 20)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1 << 18)
    (tmp_path / "log").write_bytes(b"a\n" + b"x" * (3 << 20))
    with pytest.raises(DataError, match="line 2 is longer than 1 MiB"):
        text_of(tmp_path / "log")


def test_a_block_of_short_lines_is_cut(tmp_path: Path) -> None:
    text = b"\n" * 150_000 + b"a\n" * 7
    (tmp_path / "log").write_bytes(text)
    assert text_of(tmp_path / "log") == text
    sizes = [block.num_lines for block in read_blocks(tmp_path / "log")]
    assert sizes == [1 << 16, 1 << 16, 150_007 - (2 << 16)]
    assert max(block.num_lines for block in read_blocks(tmp_path / "log", 1000)) == 8388
