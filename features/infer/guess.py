"""The guess of one column of a sample: its entry in the schema, and the reasons."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from common.printable import printable
from features.collect.discovery import CALENDAR
from features.infer.lists import SampledLists, lists_of_column, split_texts
from features.infer.names import (
    is_index_of_pandas,
    says_amount,
    says_category,
    says_row_number,
)
from features.infer.sample import MAX_SAMPLED_FILES
from features.infer.sampled_column import FRACTION, SampledColumn
from features.infer.times import guess_time, times_of, unit_by_size
from features.schema.schema import name_fault

NEARLY_ALL = 0.97  # the share of distinct values from which a column is an identifier of rows
MIN_VALUES = 100  # below, that values differ says nothing
FEW_VALUES = 20
HUGE = 2**40
HEX_DIGITS = r"^[0-9a-fA-F]{8}$"
UNKNOWN_TYPE = "values of a type that no kind of column accepts"
SENTINEL = -10  # negative numbers down to it are marks in amounts that are far larger


@dataclass(frozen=True)
class Guess:
    """The guessed entry of a column in the schema, with the reasons.

    Attributes:
        name: Its name.
        entry: Its entry in the schema.
        seen: What was seen, for the comment beside it.
        unsure: What is unsure about it, for the comment above it; None if nothing is.
        lists: Its lists; None if its rows have single values.
    """

    name: str
    entry: dict[str, Any]
    seen: str
    unsure: str | None = None
    lists: SampledLists | None = None


def describe(column: SampledColumn) -> str:
    """Return the number of distinct values and the share of missing ones."""
    missing = f", {column.missing_share:.1%} missing" if column.missing_share else ""
    if column.values.dtype == pl.Object:
        return UNKNOWN_TYPE
    if column.is_nested:
        return f"{'lists' if column.is_list else 'lists or objects'}{missing}"
    noun = "value" if column.num_distinct == 1 else "values"
    return f"{column.num_distinct:,} {noun}{missing.replace('%', ' %')}"


def guess_column(
    column: SampledColumn, log_format: dict[str, Any], *, is_hashed_log: bool, is_whole: bool
) -> Guess:
    """Guess what a column is that is not the label.

    Args:
        column: The column, with null tokens as nulls.
        log_format: The section `format` of the schema.
        is_hashed_log: Whether a column of the log has eight hex digits with letters.
        is_whole: Whether the log has no other rows than those of the sample.
    """
    if fault := name_fault(column.name):
        return _ignored(column, fault.partition(";")[0])
    if column.values.dtype == pl.Object:
        return _ignored(column, UNKNOWN_TYPE)
    if not len(column.present):
        return _ignored(column, "no value was seen")
    if column.in_path and column.name.lower() in CALENDAR:
        return _ignored(column, "a part of the day, which the folders give anyway")
    if column.is_list:
        lists = lists_of_column(column, log_format["null_tokens"])
        return _lists(column, lists, is_hashed_log=is_hashed_log)
    if column.is_nested:
        return _ignored(column, "objects or values of several types")
    if time := guess_time(column):
        return _time(column, *time)
    if column.num_distinct == 1:
        unsure = None if is_whole else "if the rest of the log has other values: declare it"
        return _ignored(column, f"always {printable(str(column.present[0]))[:30]}", unsure)
    if column.is_boolean:
        return _categorical(column, "string")
    if column.is_text and is_hex(column, needs_letter=not is_hashed_log):
        return _identifier(column) or _categorical(column, "hex32")
    if column.fits("integer") and not (column.is_text and _has_leading_zero(column)):
        return _integer(column)
    # Digits that are no integer of 64 bits are an id. As floats, many ids would be one number.
    has_digits_only = column.texts().str.contains(r"^[+-]?[0-9]+$").all()
    if column.fits("float") and not has_digits_only:
        return _amount(column, "float")
    used = (log_format.get("separator"), log_format.get("quote"))
    if column.is_text and (split := split_texts(column, used, log_format["null_tokens"])):
        if log_format["kind"] != "text":
            reason = f"texts with {split.separator!r} between values; write lists instead"
            return _ignored(column, reason, "if each text is one value: kind: categorical")
        return _lists(column, split, is_hashed_log=is_hashed_log)
    if column.fits("string"):
        return _identifier(column) or _categorical(column, "string")
    return _ignored(column, "values of several types, which no kind of column accepts")


def is_hex(column: SampledColumn, *, needs_letter: bool) -> bool:
    """Return whether all values are eight hex digits, and letters are among them."""
    if not column.is_text or not len(column.present):
        return False
    texts = column.present
    if not texts.str.contains(HEX_DIGITS).all() or not column.fits("hex32"):
        return False
    has_small, has_capital = (
        texts.str.contains(f"[{letters}]").any() for letters in ("a-f", "A-F")
    )
    return not (has_small and has_capital) and (has_small or has_capital or not needs_letter)


def as_categorical(column: SampledColumn, guess: Guess) -> Guess | None:
    """Return the guess that makes a category of a dense column; None if it is none.

    A schema needs a categorical feature.
    """
    if guess.entry["kind"] != "dense":
        return None
    reason = "a model needs a category; its values might be amounts as well"
    if guess.entry["parse"] == "integer":
        return _categorical(column, "integer", reason)
    transform = {"name": "quantile", "buckets": 10}
    entry = guess.entry | {"transform": transform, "policy": "vocabulary"}
    return Guess(column.name, entry, guess.seen, reason)


def _integer(column: SampledColumn) -> Guess:
    numbers = column.convert("integer").drop_nulls()
    if is_index_of_pandas(column.name) or (says_row_number(column.name) and _is_sequence(numbers)):
        return _ignored(column, "the number of the row")
    if says_amount(column.name):
        return _amount(column, "integer")
    low, high = _limits(numbers)
    if says_category(column.name) or max(high, -low) > HUGE:
        return _identifier(column) or _categorical(column, "integer")
    if column.num_distinct <= FEW_VALUES:
        hint = "few whole numbers; if they are amounts: kind: dense"
        return _categorical(column, "integer", hint if column.num_distinct > 2 else None)
    guess = _amount(column, "integer")
    unsure = guess.unsure
    if low > 1:  # most counts have a 0 or a 1
        unsure = unsure or "if the numbers are codes and no amounts: kind: categorical"
    if unit := unit_by_size(column):
        unsure = f"if these are points in time: kind: time, parse: {unit}"
    return Guess(guess.name, guess.entry, guess.seen, unsure)


def _amount(column: SampledColumn, parse: str) -> Guess:
    # 5.0 and 7.0 in the sample: the rest of the log may have 5.5.
    has_fractions = column.texts().str.contains(FRACTION).any()
    numbers = column.convert(parse).drop_nulls()
    low, high = _limits(numbers)
    entry: dict[str, Any] = {
        "kind": "dense",
        "names": [column.name],
        "parse": "float" if has_fractions else parse,
        "transform": "log1p",
    }
    seen = f"{describe(column)}, {low} to {high}"
    if low >= 0:
        return Guess(column.name, entry, seen)
    if parse == "integer" and low >= SENTINEL and high >= -10 * low:
        return Guess(column.name, entry, seen, "negative numbers are taken as 0")
    entry["transform"] = {"name": "clip", "low": low, "high": high}
    return Guess(column.name, entry, seen, "the limits are those of the sample")


def _limits(numbers: pl.Series) -> tuple[Any, Any]:
    """Return the least and the greatest number, as Python's int or float."""
    return numbers.min(), numbers.max()


def _time(column: SampledColumn, parse: str, unsure: str | None) -> Guess:
    entry = {"kind": "time", "names": [column.name], "parse": parse}
    first, last = _limits(times_of(column, parse))
    seen = f"{describe(column)}, {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M}"
    has_offset = "z" in parse or parse.startswith("unix")
    if not has_offset and parse == "iso8601" and column.is_text:
        has_offset = bool(column.present.str.contains(r"([Zz]|[+-]\d{2}(:?\d{2})?)$").all())
        has_offset &= bool(column.present.str.contains(":").all())
    if not has_offset and not (column.is_temporal and _has_zone(column)):
        seen += ", taken as UTC"
    return Guess(column.name, entry, seen, unsure)


def _has_zone(column: SampledColumn) -> bool:
    dtype = column.values.dtype
    return isinstance(dtype, pl.Datetime) and dtype.time_zone is not None


def with_weights(guesses: Sequence[Guess]) -> list[Guess]:
    """Add a hint to each column of lists of floats that may be the weights of another column.

    Weights have lists of the same lengths as the values that they belong to.
    """
    result = []
    for guess in guesses:
        if guess.lists is not None and guess.lists.are_floats:
            for other in guesses:
                if other.entry["kind"] != "categorical" or other.lists is None:
                    continue
                if np.array_equal(other.lists.lengths, guess.lists.lengths):
                    hint = (
                        f"as long as the lists of {other.name}; if they weigh its values: "
                        f"kind: weights here, and pooling: sum, weights: {guess.name} in its list"
                    )
                    guess = replace(guess, unsure=hint)
                    break
        result.append(guess)
    return result


def _lists(column: SampledColumn, lists: SampledLists, *, is_hashed_log: bool) -> Guess:
    values = lists.values
    if values.is_nested:
        return _ignored(column, "of lists, objects or values of several types")
    if not len(values.present):
        return _ignored(column, "without a value")
    if lists.are_floats:
        reason = "of numbers with a fraction, which are no categories"
        return replace(_ignored(column, reason), lists=lists)
    num_values = len(values.present)
    if num_values >= MIN_VALUES and values.num_distinct >= NEARLY_ALL * num_values:
        return _ignored(column, "nearly all of their values are distinct")
    if values.is_text and is_hex(values, needs_letter=not is_hashed_log):
        parse = "hex32"
    elif (
        not values.is_boolean
        and values.fits("integer")
        and not (values.is_text and _has_leading_zero(values))
    ):
        parse = "integer"
    elif values.fits("string"):
        parse = "string"
    else:
        return _ignored(column, "of values that no kind of column accepts")
    guess = _categorical(column, parse)
    unsure = None
    if lists.separator is not None:
        unsure = (
            f"{lists.separator!r} separates values; if each text is one value: "
            "parse: string, without list"
        )
    seen = lists.describe()
    if column.missing_share:
        seen += f", {column.missing_share:.1%} missing".replace("%", " %")
    return Guess(column.name, guess.entry | {"list": lists.entry()}, seen, unsure, lists)


def _identifier(column: SampledColumn) -> Guess | None:
    """Return the guess that a column is ignored because its values are nearly all distinct."""
    num_values = len(column.present)
    if num_values < MIN_VALUES or column.num_distinct < NEARLY_ALL * num_values:
        return None
    all_values = "all" if column.num_distinct == num_values else "nearly all"
    unsure = None if all_values == "all" else "if the values recur in the log: kind: categorical"
    return _ignored(column, f"{all_values} values are distinct", unsure)


def _categorical(column: SampledColumn, parse: str, unsure: str | None = None) -> Guess:
    entry = {"kind": "categorical", "names": [column.name], "parse": parse, "policy": "vocabulary"}
    return Guess(column.name, entry, describe(column), unsure)


def _ignored(column: SampledColumn, reason: str, unsure: str | None = None) -> Guess:
    entry = {"kind": "ignored", "names": [column.name]}
    seen = reason if reason == describe(column) else f"{describe(column)}: {reason}"
    return Guess(column.name, entry, seen, unsure)


def _has_leading_zero(column: SampledColumn) -> bool:
    return bool(column.present.str.contains(r"^[+-]?0[0-9]").any())


def _is_sequence(numbers: pl.Series) -> bool:
    """Return whether numbers count up, at most from another start in each of the sampled files."""
    steps = numbers.diff().drop_nulls()
    is_one_sequence = bool((steps == 1).any()) and numbers.n_unique() == len(numbers)
    return is_one_sequence or int((steps != 1).sum()) < MAX_SAMPLED_FILES
