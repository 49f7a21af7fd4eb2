"""The name of a log file is a name: its rows are read, and no other file's.

Names may contain the characters of patterns, quotes, spaces, line breaks and more.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.artifact import Artifact
from common.files import DataError, read_json
from common.layout import FEATURES, PARQUET, RAW
from common.natural_order import natural_order_key
from common.parquet import read_parquet
from features.collect.discovery import RESERVED_NAMES
from features.collect.manifest import RawManifest
from features.collect.stage import collect
from features.ingest.stage import used_shards
from features.quality.gate import FIGURES
from tests.factories.models import log_lines
from tests.factories.support import CRITEO, make_features, make_params

NUM_ROWS = 40
CHARACTERS = "[]*?{}!%#$&~^'\"`\\ \n\t\r:;,|<>@=+-.ab01é漢😀\u202e\u2028\x1b\x7f"
names = st.text(CHARACTERS, min_size=1, max_size=12).filter(
    lambda name: not name.startswith(".") and name not in RESERVED_NAMES and name.strip(".")
)


def write_logs(folder: Path, file_names: list[str]) -> None:
    """Write logs in which the k-th file has k + 1 clicks."""
    folder.mkdir(parents=True)
    for k, name in enumerate(file_names):
        lines = log_lines(NUM_ROWS, seed=k, label="0")
        lines[: k + 1] = log_lines(k + 1, seed=100 + k, label="1")
        (folder / name).write_text("\n".join(lines) + "\n")


@settings(max_examples=10, deadline=None)
@given(names=st.lists(names, min_size=3, max_size=3, unique=True), folder=names)
def test_each_day_has_the_rows_of_its_own_file(names: list[str], folder: str) -> None:
    # The ending decides whether a file in a folder is a log, so each name gets the same one.
    file_names = sorted((f"{name}.tsv" for name in names), key=natural_order_key)
    with TemporaryDirectory() as scratch:
        root = Path(scratch) / f"root {folder}"
        write_logs(root / folder, file_names)
        params = make_params(
            data__source=str(root / folder), features__min_count=1, features__fit_days=1
        )
        make_features(root, params)
        assert [file.name for file in RawManifest.read(root / RAW).files] == file_names
        parquet = Artifact.open(root / PARQUET)
        for k, shard in enumerate(used_shards(parquet)):
            assert shard.name == file_names[k]
            assert read_parquet(parquet.path(shard.parquet))[CRITEO.label].sum() == k + 1
        days = Artifact.open(root / FEATURES).read_json("data.json")["days"]
        assert [day["name"] for day in days] == file_names
        assert [round(day["label_rate"] * NUM_ROWS) for day in days] == [1, 2, 3]
        assert read_json(root / FIGURES)["num_rows"] == 3 * NUM_ROWS


def test_a_pattern_that_would_match_another_file(tmp_path: Path) -> None:
    write_logs(tmp_path / "logs", ["day_0.tsv", "day_1.tsv", "day_[1].tsv"])
    make_features(tmp_path, make_params(data__source=str(tmp_path / "logs"), features__fit_days=1))
    rows = read_parquet(tmp_path / PARQUET / "day_[1].tsv.parquet")
    assert rows[CRITEO.label].sum() == 3


@pytest.mark.parametrize("name", [b"day_\xff.tsv", b"\xe9t\xe9.tsv"])
def test_a_name_that_is_not_utf8_is_refused_before_anything_is_written(
    tmp_path: Path, name: bytes
) -> None:
    write_logs(tmp_path / "logs", ["day_0.tsv"])
    params = make_params(data__source=str(tmp_path / "logs"))
    collect(params, tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / RAW).iterdir()}
    with open(bytes(tmp_path / "logs") + b"/" + name, "wb") as file:  # noqa: PTH123
        file.write(b"0\n")
    with pytest.raises(DataError, match=r"name of the log b'.*\\x.*' is not UTF-8; rename it"):
        collect(params, tmp_path)
    assert {path: path.read_bytes() for path in (tmp_path / RAW).iterdir()} == before


def test_a_name_that_leaves_no_room_for_an_ending_is_refused(tmp_path: Path) -> None:
    write_logs(tmp_path / "logs", [f"{'d' * 210}.tsv"])
    with pytest.raises(DataError, match="has 214 bytes, at most 200 are possible; rename it"):
        collect(make_params(data__source=str(tmp_path / "logs")), tmp_path)
    write_logs(tmp_path / "other", [f"{'d' * 196}.tsv", "e.tsv", "f.tsv"])
    params = make_params(data__source=str(tmp_path / "other"), features__fit_days=1)
    make_features(tmp_path, params)
    for name in (f"{'d' * 196}.tsv", "e.tsv", "f.tsv"):
        assert read_parquet(tmp_path / PARQUET / f"{name}.parquet").height == NUM_ROWS
