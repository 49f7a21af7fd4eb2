"""The ids of an earlier state are those that it gives to the values of the rows itself."""

from typing import Any

import numpy as np
import polars as pl
import pytest

from features.encode.earlier_ids import earlier_ids, state_fault
from features.encode.feature_state import FeatureState, Layout
from features.ingest.readers.row_validation import typed_columns
from features.list_values import values_of
from tests.factories.list_logs import schema_of

SCHEMA = schema_of("json_lines")
TYPES = typed_columns(SCHEMA)
NUM_ROWS = 200


def state_of(
    items: list[int], tags: list[str], layout: Layout = "frequency", **changes: Any
) -> FeatureState:
    """Return a state with these values. The column `tags` has hash buckets as well."""
    vocabularies = {
        "item": pl.Series("value", items, TYPES["item"]),
        "tags": pl.Series("value", tags, pl.String),
        "codes": pl.Series("value", [], pl.UInt32),
    }
    return FeatureState(changes.get("schema", SCHEMA), layout, vocabularies, {})


EARLIER = state_of([3, 1, 8], ["t2", "t0"])
LATER = state_of([3, 1, 8, 0, 7], ["t2", "t0", "t5", "t6"])


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    """Typed rows whose values are known to both states, to the later one only, or to none."""
    rng = np.random.default_rng(1)
    columns = {
        "clicked": rng.integers(0, 2, NUM_ROWS).tolist(),
        "price": rng.random(NUM_ROWS).tolist(),
        "viewed": [rng.integers(0, 12, rng.integers(0, 4)).tolist() for _ in range(NUM_ROWS)],
        "item": rng.integers(0, 12, NUM_ROWS).tolist(),
        "tags": [
            [f"t{tag}" for tag in rng.integers(0, 12, rng.integers(0, 4))] for _ in range(NUM_ROWS)
        ],
        "codes": [rng.integers(0, 99, rng.integers(0, 3)).tolist() for _ in range(NUM_ROWS)],
        "weight": [1.0] * NUM_ROWS,
    }
    columns["viewed_weights"] = [[1.0] * len(values) for values in columns["viewed"]]
    columns["item"][:20] = [None] * 20
    return pl.DataFrame(columns, schema={name: TYPES[name] for name in columns})


@pytest.mark.parametrize("name", ["item", "viewed", "tags"])
def test_the_earlier_id_of_each_value(rows: pl.DataFrame, name: str) -> None:
    expected, found = (state.encode(rows)[name] for state in (EARLIER, LATER))
    if name != "item":
        expected, found = values_of(expected), values_of(found)
    ids = earlier_ids(EARLIER, LATER, SCHEMA.table_of[name])
    assert ids is not None
    assert ids.dtype == np.int32
    position = SCHEMA.categorical_features.index(name)
    assert len(ids) == LATER.cardinalities[position]
    assert ids[found.to_numpy()].tolist() == expected.to_list()
    assert not found.equals(expected)  # some values are known to the later state only


def test_a_table_that_has_not_grown_needs_no_other_ids() -> None:
    assert earlier_ids(EARLIER, LATER, "codes") is None
    assert earlier_ids(LATER, LATER, "item") is None


def test_a_state_that_has_grown_has_no_fault() -> None:
    assert state_fault(EARLIER, LATER) is None
    assert state_fault(LATER, LATER) is None
    padded = state_of([3, 1, 8], ["t2", "t0"], "padded")
    assert state_fault(padded, padded) is None


@pytest.mark.parametrize(
    ("earlier", "later", "fault"),
    [
        (LATER, EARLIER, "ids of item have changed since"),
        (EARLIER, state_of([1, 3, 8], ["t2", "t0"]), "ids of item have changed since"),
        (EARLIER, state_of([3, 1, 8], ["t0", "t2", "t9"]), "ids of tags have changed since"),
        (EARLIER, state_of([3, 1, 8], ["t2", "t0"], "padded"), "it has other features"),
        (  # in this layout the id of unseen values follows the last value
            state_of([3, 1, 8], ["t2", "t0"], "padded"),
            state_of([3, 1, 8, 0], ["t2", "t0"], "padded"),
            "ids of item have changed since",
        ),
    ],
)
def test_another_state_has_a_fault(earlier: FeatureState, later: FeatureState, fault: str) -> None:
    found = state_fault(earlier, later)
    assert found is not None
    assert found.startswith(fault)
