"""Vocabularies and ids do not depend on the order of rows, on shards or on batches."""

from pathlib import Path
from random import Random

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.encode.feature_state import (
    MISSING,
    NUM_RESERVED,
    UNSEEN,
    FeatureState,
    Layout,
    stable_hash,
)
from features.encode.vocabulary import (
    frequent_values,
    values_by_appearance,
)
from features.schema.schema import Schema, check_schema
from features.value_counts import add_counts, count_values
from tests.factories.support import ROOT, xxh64

NUMBERS = st.lists(
    st.one_of(st.none(), st.integers(0, 12), st.integers(0, 2**32 - 1)), min_size=1, max_size=60
)
SHARD_COUNTS = st.dictionaries(st.integers(0, 30), st.integers(1, 9))
WORDS = st.lists(st.one_of(st.none(), st.text(max_size=3)), min_size=1, max_size=40)
POLICIES = {
    "number": "vocabulary",
    "word": "vocabulary",
    "mixed": {"name": "vocabulary_and_hash", "buckets": 5},
    "hashed": {"name": "hash", "buckets": 7},
}


def schema_with(policies: dict[str, object] = POLICIES) -> Schema:
    columns = [
        {"kind": "label", "names": ["click"]},
        {"kind": "dense", "names": ["amount"], "parse": "integer", "transform": "log1p"},
        *(
            {
                "kind": "categorical",
                "names": [name],
                "parse": "hex32" if name == "number" else "string",
                "policy": policy,
            }
            for name, policy in policies.items()
        ),
    ]
    values = {"format": {"kind": "json_lines", "null_tokens": []}, "columns": columns}
    return check_schema(Schema.model_validate(values), Path("test.yaml"))


def rows_of(numbers: list[int | None], words: list[str | None]) -> pl.DataFrame:
    """Return typed rows. Their number is the length of the shorter list."""
    height = min(len(numbers), len(words))
    texts = {
        name: pl.Series(words[:height], dtype=pl.String) for name in ("word", "mixed", "hashed")
    }
    return pl.DataFrame(
        {
            "amount": pl.Series(range(-2, height - 2), dtype=pl.Int64),
            "number": pl.Series(numbers[:height], dtype=pl.UInt32),
            **texts,
        }
    )


def fit(rows: pl.DataFrame, min_count: int) -> FeatureState:
    """Fit a state of the layout `frequency`."""
    vocabularies = {
        name: frequent_values(count_values(rows.lazy(), pl.col(name)), min_count)
        for name in POLICIES
    }
    vocabularies["hashed"] = vocabularies["hashed"].clear()
    return FeatureState(schema_with(), "frequency", vocabularies, {})


@settings(max_examples=100, deadline=None)
@given(NUMBERS, st.integers(1, 3), st.randoms(use_true_random=False), st.integers(0, 60))
def test_frequent_values_do_not_depend_on_row_order_and_shards(
    values: list[int | None], min_count: int, random: Random, cut: int
) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)
    shards = [
        pl.DataFrame({"a": pl.Series(part, dtype=pl.UInt32)}).lazy()
        for part in (shuffled[:cut], shuffled[cut:])
    ]
    random.shuffle(shards)
    counts = count_values(pl.concat(shards), pl.col("a"))
    expected = {value: values.count(value) for value in set(values) - {None}}
    assert dict(counts.rows()) == expected
    frequent = sorted(
        (value for value, count in expected.items() if count >= min_count),
        key=lambda value: (-expected[value], value),
    )
    assert frequent_values(counts, min_count).to_list() == frequent


@settings(max_examples=150, deadline=None)
@given(
    st.lists(SHARD_COUNTS, min_size=1, max_size=6),
    st.sampled_from([pl.UInt32, pl.Int64, pl.String]),
)
def test_counts_of_shards_add_up(parts: list[dict[int, int]], dtype: type[pl.DataType]) -> None:
    frames = [
        pl.DataFrame(
            {
                "value": pl.Series(list(part), dtype=pl.Int64),
                "count": pl.Series(list(part.values()), dtype=pl.UInt64),
            }
        )
        .with_columns(pl.col("value").cast(dtype), pl.lit(day, pl.UInt32).alias("last_day"))
        .sort("value")
        for day, part in enumerate(parts)
    ]
    found = add_counts(frames)
    expected = {}
    for day, part in enumerate(parts):
        for value, number in part.items():
            before = expected.get(value, (0, 0))[0]
            expected[value] = (before + number, day)
    assert {int(value): (number, day) for value, number, day in found.rows()} == expected
    assert found["value"].is_sorted()
    assert found.schema == frames[0].schema


@settings(max_examples=100, deadline=None)
@given(NUMBERS, st.integers(1, 2))
def test_values_in_order_of_appearance(values: list[int | None], min_count: int) -> None:
    filled = [value or 0 for value in values]
    found, num_distinct = values_by_appearance(
        pl.DataFrame({"a": pl.Series(values, dtype=pl.UInt32)}).lazy(), pl.col("a"), 0, min_count
    )
    assert found.to_list() == [
        value for value in dict.fromkeys(filled) if filled.count(value) >= min_count
    ]
    assert num_distinct == len(set(filled))


@settings(max_examples=60, deadline=None)
@given(NUMBERS, WORDS, NUMBERS, WORDS, st.integers(0, 40))
def test_ids_under_every_policy(
    train_numbers: list[int | None],
    train_words: list[str | None],
    numbers: list[int | None],
    words: list[str | None],
    cut: int,
) -> None:
    state = fit(rows_of(train_numbers, train_words), 2)
    rows = rows_of(numbers, words)
    ready = state.encode(rows)
    assert ready.dtypes == [pl.Float32, *[pl.Int32] * len(POLICIES)]
    for name, cardinality in zip(POLICIES, state.cardinalities, strict=True):
        buckets = state.schema.policies[name].buckets
        place = {
            value: NUM_RESERVED + buckets + k for k, value in enumerate(state.vocabularies[name])
        }
        for value, found in zip(rows[name], ready[name], strict=True):
            bucket = NUM_RESERVED + xxh64(str(value).encode()) % buckets if buckets else UNSEEN
            assert found == (MISSING if value is None else place.get(value, bucket))
            assert 0 <= found < cardinality
    assert pl.concat([state.encode(rows[:cut]), state.encode(rows[cut:])]).equals(ready)
    assert state.encode(rows.reverse()).equals(ready.reverse())


@settings(max_examples=60, deadline=None)
@given(NUMBERS, NUMBERS, WORDS, st.sampled_from(["appearance", "padded"]))
def test_ids_in_other_layouts(
    train: list[int | None], numbers: list[int | None], words: list[str | None], layout: Layout
) -> None:
    schema = schema_with({"number": "vocabulary", "word": "vocabulary"})
    values = pl.Series(
        "value", list(dict.fromkeys(value for value in train if value is not None)), dtype=pl.UInt32
    )
    known = pl.Series("value", ["", "a"])
    state = FeatureState(schema, layout, {"number": values, "word": known}, {})
    rows = rows_of(numbers, words)
    ready = state.encode(rows)
    first = 1 if layout == "padded" else 0
    for name, vocabulary, cardinality in zip(
        ("number", "word"), (values, known), state.cardinalities, strict=True
    ):
        place = {value: first + k for k, value in enumerate(vocabulary)}
        null = None if layout == "padded" else {"number": 0, "word": ""}[name]
        for value, found in zip(rows[name], ready[name], strict=True):
            assert found == place.get(null if value is None else value, first + len(vocabulary))
            assert 0 <= found < cardinality


@settings(max_examples=20, deadline=None)
@given(NUMBERS, WORDS)
def test_a_loaded_state_equals_the_saved_one(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[int | None], words: list[str | None]
) -> None:
    rows = rows_of(numbers, words)
    state = fit(rows, 1)
    directory = tmp_path_factory.mktemp("state") / "state"
    state.save(directory)
    loaded = FeatureState.load(directory)
    assert loaded.fingerprint == state.fingerprint
    assert loaded.encode(rows).equals(state.encode(rows))


@settings(max_examples=20, deadline=None)
@given(NUMBERS, WORDS, st.data())
def test_an_earlier_version_has_the_same_ids(
    numbers: list[int | None], words: list[str | None], data: st.DataObject
) -> None:
    rows = rows_of(numbers, words)
    state = fit(rows, 1)
    sizes = [data.draw(st.integers(0, len(values))) for values in state.vocabularies.values()]
    earlier = state.truncated(sizes)
    alone = FeatureState(earlier.schema, earlier.layout, earlier.vocabularies, earlier.fitted)
    now, then = state.encode(rows), earlier.encode(rows)
    assert then.equals(alone.encode(rows))
    assert earlier.truncated(sizes).encode(rows).equals(then)
    for name, cardinality in zip(POLICIES, earlier.cardinalities, strict=True):
        same = now[name] == then[name]
        assert (same | (now[name] >= cardinality)).all()


def vectors() -> list[tuple[str, int, int]]:
    """Return text, hash and id of each row of the table in docs/hash.md."""
    shown = {"(empty)": "", "`a`, byte 1F, `x`": "a\x1fx", "`x`, a hundred times": "x" * 100}
    cells = [
        line.strip("| ").split(" | ")
        for line in (ROOT / "docs/hash.md").read_text().splitlines()
        if line.startswith("|")
    ]
    return [
        (shown.get(text, text.strip("`")), int(value), int(bucket))
        for text, value, bucket in cells[2:]
    ]


@pytest.mark.parametrize(("text", "value", "bucket"), vectors())
def test_the_hash_is_the_documented_one(text: str, value: int, bucket: int) -> None:
    assert pl.select(stable_hash(pl.lit(text))).item() == xxh64(text.encode()) == value
    assert NUM_RESERVED + value % 1000 == bucket
