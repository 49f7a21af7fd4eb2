"""Any text gets a safe file name, and no two texts get the same one."""

import unicodedata
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.file_names import MAX_CHARS, file_names
from common.parquet import ParquetWriter, read_parquet, scan_parquet

TEXTS = st.text(st.sampled_from("aAbB./-_ %~é*^$\0\n") | st.characters(codec="utf-8"), max_size=8)


@given(st.lists(TEXTS | TEXTS.map(lambda text: 80 * text), unique=True, max_size=8))
def test_names_are_safe_and_distinct(names: list[str]) -> None:
    found = file_names(names)
    assert [*found] == names
    assert all(name.isascii() and name.isprintable() for name in found.values())
    assert not any(set(name) & set('/\\ :*?"<>|') for name in found.values())
    assert all(0 < len(name) <= MAX_CHARS and name[0] not in ".-" for name in found.values())
    without_case = {unicodedata.normalize("NFC", name).casefold() for name in found.values()}
    assert len(without_case) == len(names)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["C1", "I2", "site_id", "a.b", "a-b"], ["C1", "I2", "site_id", "a.b", "a-b"]),
        (["Shop", "shop", "x"], ["%53hop", "shop", "x"]),
        (["a/b", "a b", "", ".a", "é"], ["a%2Fb", "a%20b", "%", "%2Ea", "%C3%A9"]),
    ],
)
def test_names(names: list[str], expected: list[str]) -> None:
    """Plain names stay as they are, so earlier bundles can be read."""
    assert [*file_names(names).values()] == expected


def test_such_files_can_be_read(tmp_path: Path) -> None:
    for name in file_names(["a/b", "%2F", "x=1", "x" * 300, "[a]*"]).values():
        path = tmp_path / f"{name}.parquet"
        with ParquetWriter(path, pl.Schema({"value": pl.Int64()})) as writer:
            writer.write(pl.DataFrame({"value": [1]}))
        assert read_parquet(path)["value"].to_list() == [1]
        assert scan_parquet(path).collect().height == 1
