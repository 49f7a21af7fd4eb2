"""Columns that hold several values in each row, and columns that share an embedding table.

A list of values is a bag: the model pools the embeddings of its values to one vector.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from common.config.base import Positive, Strict

# The classes of schema.py, which imports this module.
Schema = Any
CategoricalColumns = Any
Pooling = Literal["sum", "mean", "max"]


class ListOptions(Strict):
    """How a column of lists is read and pooled.

    Attributes:
        separator: The character between two values of a list, ASCII, in a text log; null in other
            logs, which have lists of their own.
        pooling: How the model makes one vector of the vectors of a list's values.
        max_length: The number of values of a list that are used, the first ones; the others are
            cut off.
        weights: The column of the values' weights; null if all have the weight 1.
    """

    separator: Annotated[str, Field(pattern=r"^[\x01-\x7f]$")] | None = None
    pooling: Pooling
    max_length: Positive
    weights: str | None = None


def list_faults(schema: Schema) -> list[str]:
    """List what is wrong with a schema's lists, their weights and its shared tables."""
    groups = [group for group in schema.columns if group.kind == "categorical"]
    with_lists = [group for group in groups if group.list is not None]
    return [
        *_faults_of_separators(schema, with_lists),
        *_faults_of_weights(schema, with_lists),
        *_faults_of_tables(groups),
        *_faults_of_derived(schema),
    ]


def _faults_of_separators(schema: Schema, groups: Sequence[CategoricalColumns]) -> list[str]:
    faults = []
    for group in groups:
        assert group.list is not None
        names, separator = ", ".join(group.names), group.list.separator
        if schema.format.kind != "text":
            if separator is not None:
                faults.append(
                    f"{names}: list.separator {separator!r} found, but a {schema.format.kind} log "
                    "has lists of its own; remove the separator"
                )
        elif separator is None:
            faults.append(f"{names}: list.separator expected, because the log is text")
        elif separator in ("\n", "\r", schema.format.separator, schema.format.quote):
            faults.append(
                f"{names}: list.separator {separator!r} is also a line end, format.separator or "
                "format.quote; take another one"
            )
    return faults


def _faults_of_weights(schema: Schema, groups: Sequence[CategoricalColumns]) -> list[str]:
    declared = schema.weights
    used: list[str] = []
    faults = []
    for group in groups:
        assert group.list is not None
        name = group.list.weights
        if name is None:
            continue
        used.append(name)
        if name not in declared:
            faults.append(
                f"{', '.join(group.names)}: list.weights: {name} is no column of kind weights"
            )
        if len(group.names) > 1:
            faults.append(
                f"{', '.join(group.names)}: list.weights: {name} belongs to one column; give each "
                "column a group of its own"
            )
        if group.list.pooling != "sum":
            faults.append(
                f"{', '.join(group.names)}: list.weights: pooling {group.list.pooling} has no"
                " weights; take the pooling sum, or no weights"
            )
    faults += [
        f"{name}: the weights of {used.count(name)} list columns, 1 expected"
        for name in declared
        if used.count(name) != 1
    ]
    return faults


def _faults_of_tables(groups: Sequence[CategoricalColumns]) -> list[str]:
    """List columns of one table whose values or ids cannot be the same."""
    first: dict[str, tuple[str, CategoricalColumns]] = {}
    faults = []
    for group in groups:
        for name in group.names:
            other_name, other = first.setdefault(group.table or name, (name, group))
            for key in ("parse", "policy"):
                ours, theirs = getattr(group, key), getattr(other, key)
                if ours != theirs:
                    faults.append(
                        f"table {group.table or name}: {other_name} has {key} {_shown(theirs)}, but"
                        f" {name} has {_shown(ours)}"
                    )
    return faults


def _faults_of_derived(schema: Schema) -> list[str]:
    """List the tables of columns that are also those of a feature that a transform makes."""
    return [
        f"table {feature.table}: {feature.name} is made by {feature.transform.name}, so no column "
        "can share its table; take another name for the table"
        for feature in schema.features
        if feature.transform is not None and len(schema.tables.get(feature.table, [])) > 1
    ]


def _shown(value: object) -> str:
    return str(value) if isinstance(value, str) else repr(value)
