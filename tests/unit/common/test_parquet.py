"""The Parquet writer: row groups of bounded size that depend on the rows alone."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from common import parquet
from common.parquet import ParquetWriter, read_parquet

NUM_ROWS, GROUP_ROWS, LIMIT = 900, 200, 20_000


def make_rows() -> pl.DataFrame:
    """Make rows of texts and lists of all lengths, one of them longer than a row group may be."""
    lengths = np.random.default_rng(1).integers(0, 300, NUM_ROWS)
    lengths[500] = 2 * LIMIT
    lengths[600:] = 0
    return pl.DataFrame(
        {
            "number": range(NUM_ROWS),
            "text": ["x" * n if n % 9 else None for n in lengths],
            "texts": [["y" * (n // 3)] * (n % 4) if n % 7 else None for n in lengths],
            "numbers": pl.Series([[1.5] * (n % 5) for n in lengths], dtype=pl.List(pl.Float32)),
        }
    )


def bytes_of(rows: pl.DataFrame) -> int:
    return sum(
        len(text or "") + sum(map(len, texts or [])) + 8 * len(numbers)
        for _, text, texts, numbers in rows.iter_rows()
    )


def test_long_texts_make_row_groups_of_few_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "GROUP_BYTES", LIMIT)
    rows, written = make_rows(), set()
    for frame_rows in (1, 13, 450, NUM_ROWS):
        path = tmp_path / f"{frame_rows}.parquet"
        with ParquetWriter(path, rows.schema, GROUP_ROWS) as writer:
            for frame in rows.iter_slices(frame_rows):
                writer.write(frame)
        written.add(path.read_bytes())
        assert read_parquet(path).equals(rows)
    assert len(written) == 1
    with pq.ParquetFile(path) as file:
        groups = [pl.DataFrame(file.read_row_group(k)) for k in range(file.num_row_groups)]
    assert all(bytes_of(group) <= LIMIT or group.height == 1 for group in groups)
    assert [group.height for group in groups if bytes_of(group) > LIMIT] == [1]
    assert max(group.height for group in groups) == GROUP_ROWS  # of the rows without texts
    for group, following in pairwise(groups):
        assert group.height == GROUP_ROWS or bytes_of(group) + bytes_of(following[:1]) > LIMIT
