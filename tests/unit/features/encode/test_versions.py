"""Rows of several vocabulary versions that are encoded together get the ids of their version."""

from random import Random

import numpy as np
import polars as pl

from features.encode.feature_state import FeatureState
from features.ingest.readers.row_validation import typed_columns
from tests.factories.list_logs import schema_of
from tests.factories.profiled_rows import draw_rows, fit_state


def check_versions(state: FeatureState, rows: pl.DataFrame) -> None:
    """Encode the rows of three versions together, and each version alone."""
    whole = [len(values) for values in state.vocabularies.values()]
    sizes_of_versions = [[0 for _ in whole], [size // 2 for size in whole], whole]
    num_rows = [rows.height // 2, rows.height // 4, rows.height - rows.height * 3 // 4]
    assert sum(num_rows) <= rows.height
    known = {
        table: np.repeat([np.int32(sizes[k]) for sizes in sizes_of_versions], num_rows)
        for k, table in enumerate(state.vocabularies)
    }
    parts, start = [], 0
    for sizes, size in zip(sizes_of_versions, num_rows, strict=True):
        parts.append(state.truncated(sizes).encode(rows[start : start + size]))
        start += size
    assert state.encode(rows[:start], known).equals(pl.concat(parts))
    assert not state.encode(rows[:start]).equals(pl.concat(parts))


def test_single_values() -> None:
    check_versions(fit_state(draw_rows(400, 1)), draw_rows(200, 2))


def test_lists_and_a_shared_table() -> None:
    random = Random(3)

    def some(value: object) -> list[object] | None:
        values = [random.choice([value, None, random.randint(0, 9)]) for _ in range(4)]
        return None if random.random() < 0.2 else values[: random.randint(0, 4)]

    rows = [
        {
            "price": 1.0,
            "viewed": some(5),
            "viewed_weights": None,
            "item": random.randint(0, 9),
            "tags": [str(tag) for tag in some("a") or []],
            "codes": some(3),
        }
        for _ in range(100)
    ]
    schema = schema_of("json_lines")
    dtypes = typed_columns(schema)
    frame = pl.DataFrame(rows, {name: dtypes[name] for name in rows[0]})
    vocabularies = {
        "item": pl.Series("value", range(8), pl.Int64),
        "tags": pl.Series("value", ["a", "1", "2", "3"]),
        "codes": pl.Series("value", [], pl.UInt32),
    }
    check_versions(FeatureState(schema, "frequency", vocabularies, {}), frame)
