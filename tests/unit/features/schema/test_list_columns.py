"""Schemas with lists, weights, shared tables and sample weights: what is refused, and by name."""

from pathlib import Path
from typing import Any

import pytest

from common.config.loading import ConfigError
from features.ingest.shard import recipe_hash
from features.schema.schema import Schema, check_schema, load_schema
from tests.factories.list_logs import schema_of


def changed(kind: str, **changes: Any) -> Schema:
    """Return the schema of lists with changes by column; the value of a key None removes it."""
    values = schema_of(kind).model_dump(by_alias=True)
    for group in values["columns"]:
        for key, value in changes.get(group["names"][0], {}).items():
            if isinstance(value, dict) and isinstance(group.get(key), dict):
                group[key] |= value
            else:
                group[key] = value
    return check_schema(Schema.model_validate(values), Path("lists.yaml"))


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        (
            "text",
            {"tags": {"list": {"separator": "\t"}}},
            r"lists\.yaml: tags: list\.separator '\\t' is also a line end, format\.separator",
        ),
        ("text", {"tags": {"list": {"separator": None}}}, r"tags: list\.separator expected"),
        (
            "json_lines",
            {"tags": {"list": {"separator": "|"}}},
            r"tags: list\.separator '\|' found, but a json_lines log has lists of its own",
        ),
        (
            "text",
            {"viewed": {"list": {"weights": "weight"}}},
            r"viewed: list\.weights: weight is no column of kind weights",
        ),
        (
            "text",
            {"viewed": {"list": {"weights": None}}},
            r"viewed_weights: the weights of 0 list columns, 1 expected",
        ),
        (
            "text",
            {"tags": {"list": {"pooling": "sum", "weights": "viewed_weights"}}},
            r"viewed_weights: the weights of 2 list columns, 1 expected",
        ),
        (
            "text",
            {"viewed": {"names": ["viewed", "bought"]}},
            r"viewed, bought: list\.weights: viewed_weights belongs to one column",
        ),
        (
            "text",
            {"viewed": {"list": {"pooling": "mean"}}},
            r"viewed: list\.weights: pooling mean has no weights",
        ),
        (
            "text",
            {"viewed": {"parse": "hex32"}},
            r"table item: viewed has parse hex32, but item has integer",
        ),
        (
            "text",
            {"item": {"policy": {"name": "hash", "buckets": 3}}},
            r"table item: viewed has policy Policy\(name='vocabulary', buckets=0\), but item has",
        ),
        ("text", {"tags": {"table": "*"}}, r"'\*': a name that means other columns"),
    ],
)
def test_what_does_not_fit_is_refused(kind: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        changed(kind, **changes)


def test_a_transform_takes_no_lists() -> None:
    values = schema_of("text").model_dump(by_alias=True)
    values["derived"] = [
        {"name": "both", "transform": "cross", "of": ["item", "viewed"], "policy": "vocabulary"}
    ]
    with pytest.raises(ConfigError, match=r"both: cross takes 2 categorical column\(s\), found"):
        check_schema(Schema.model_validate(values), Path("lists.yaml"))


def test_a_table_of_columns_is_not_that_of_a_transform() -> None:
    values = schema_of("text").model_dump(by_alias=True)
    values["columns"].append(
        {"kind": "categorical", "names": ["shop"], "parse": "integer", "policy": "vocabulary"}
    )
    values["derived"] = [
        {"name": "both", "transform": "cross", "of": ["item", "shop"], "policy": "vocabulary"}
    ]
    for group in values["columns"]:
        if group["names"] == ["tags"]:
            group["table"] = "both"
    with pytest.raises(ConfigError, match=r"table both: both is made by cross"):
        check_schema(Schema.model_validate(values), Path("lists.yaml"))


def test_at_most_one_column_of_sample_weights() -> None:
    values = schema_of("text").model_dump(by_alias=True)
    values["columns"].append({"kind": "sample_weight", "names": ["other"]})
    with pytest.raises(ConfigError, match="one column of sample weights at most expected"):
        check_schema(Schema.model_validate(values), Path("lists.yaml"))


def test_tables_are_in_order_of_first_appearance() -> None:
    schema = schema_of("text")
    assert schema.tables == {"item": ["viewed", "item"], "tags": ["tags"], "codes": ["codes"]}
    assert schema.single_valued_features == ["item"]
    assert [one.name for one in schema.list_features] == ["viewed", "tags", "codes"]


def test_what_is_used_later_does_not_decide_the_shards() -> None:
    """Other pooling, lengths and tables use the shards again; another separator does not."""
    expected = recipe_hash(schema_of("text"), "fill")
    longer = changed("text", tags={"list": {"pooling": "max", "max_length": 9}, "table": "words"})
    assert recipe_hash(longer, "fill") == expected
    other = changed("text", tags={"list": {"separator": ";"}})
    assert recipe_hash(other, "fill") != expected


def test_a_schema_without_lists_is_written_as_before() -> None:
    """So the hash of a feature state that has none stays the same."""
    columns = load_schema("criteo").model_dump(mode="json")["columns"]
    assert [set(group) for group in columns] == [
        {"kind", "names"},
        {"kind", "names", "parse", "transform", "policy"},
        {"kind", "names", "parse", "policy"},
    ]
