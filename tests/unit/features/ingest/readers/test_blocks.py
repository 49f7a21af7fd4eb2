"""Files become blocks of whole lines."""

import gzip

import pytest

from common.files import DataError
from features.ingest.readers import blocks
from features.ingest.readers.blocks import read_blocks


def text_of(path):
    blocks = list(read_blocks(path))
    assert [block.num_lines for block in blocks] == [block.text.count(b"\n") for block in blocks]
    firsts = [1, *(block.first_line + block.num_lines for block in blocks)]
    assert [block.first_line for block in blocks] == firsts[:-1]
    return b"".join(block.text for block in blocks)


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
def test_dialects(tmp_path, monkeypatch, block_bytes, written, read):
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
        (gzip.compress(b"a\tb\n" * 1000, mtime=0)[:-9], "broken gzip after line"),
        (
            gzip.compress(b"a\tb\n" * 1000, mtime=0)[:20] + b"rubbish" * 9,
            "broken gzip after line 0",
        ),
    ],
)
def test_refused(tmp_path, written, message):
    (tmp_path / "log").write_bytes(written)
    with pytest.raises(DataError, match=f"log.*{message}"):
        text_of(tmp_path / "log")


def test_endless_line(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "MAX_LINE_BYTES", 1 << 20)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1 << 18)
    (tmp_path / "log").write_bytes(b"a\n" + b"x" * (3 << 20))
    with pytest.raises(DataError, match="line 2 is longer than 1 MiB"):
        text_of(tmp_path / "log")
