"""A dense value that a model cannot compute with is named when features are made."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from common.files import DataError
from features.dataset.dense_range import MAX_DENSE, check_dense_range
from features.encode.stretches import Stretch
from tests.factories.support import make_features, make_params

SCHEMA = """\
format: {kind: text, separator: ",", quote: null, header: true, null_tokens: [""]}
columns:
  - {kind: label, names: [bought]}
  - kind: dense
    names: [price]
    parse: float
    transform: {name: clip, low: -3.0e+38, high: 3.0e+38}
  - {kind: categorical, names: [shop], parse: string, policy: vocabulary}
"""


def make(root: Path, monkeypatch: pytest.MonkeyPatch, prices: dict[int, str]) -> None:
    """Make the features of two days, with some prices on the second one."""
    (root / "shop.yaml").write_text(SCHEMA)
    (root / "logs").mkdir()
    for day in (1, 2):
        lines = [
            f"{k % 2},{prices.get(k, '0.5') if day == 2 else '0.5'},s{k % 3}" for k in range(100)
        ]
        text = "bought,price,shop\n" + "\n".join(lines) + "\n"
        (root / "logs" / f"day_{day}.csv").write_text(text)
    monkeypatch.setattr("features.schema.schema.SCHEMAS", root)
    monkeypatch.setattr("features.collect.stage.SCHEMAS", root)
    params = make_params(
        data__source=str(root / "logs"),
        data__schema="shop",
        ingest__max_bad_fraction=0.1,
        features__min_count=1,
    )
    make_features(root, params)


@pytest.mark.parametrize("value", ["2e38", "-3e19"])
def test_the_file_the_row_the_column_and_the_value_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    number = float(value)
    named = (
        f"day_2.csv: good row 70: the dense feature 'price' is {number:.3g} (from price {number})"
    )
    with pytest.raises(DataError, match=f"^{re.escape(named)}, .* 1.8e.19; choose another"):
        make(tmp_path, monkeypatch, {7: "1e300", 70: value})


def test_values_in_range_are_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, monkeypatch, {7: "1e300", 70: "1e19", 71: "-1e19", 72: ""})
    assert (tmp_path / "artifacts/features/manifest.json").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 2 * MAX_DENSE])
def test_each_kind_of_bad_value_is_found(value: float) -> None:
    """A transform must not make such values; if one does, no training is blamed."""
    feature = SimpleNamespace(name="b", of=["b"])
    schema = SimpleNamespace(dense_features=["b"], features=[feature])
    state: Any = SimpleNamespace(schema=schema)
    day: Any = SimpleNamespace(stretches=lambda *_: [Stretch(Path("log.tsv.parquet"), 9, 5, 6)])
    rows = pl.DataFrame({"b": pl.Series([0, value, 1], dtype=pl.Float32)})
    with pytest.raises(DataError, match=r"^log\.tsv: good row 6: the dense feature 'b' is"):
        check_dense_range(rows, rows, state, day, 4)
    check_dense_range(rows.clear(), rows.clear(), state, day, 4)
