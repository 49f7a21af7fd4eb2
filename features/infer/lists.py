"""The guess of a column that has a list of values in each row, or the weights of such values."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.infer.sampled_column import FRACTION, SampledColumn
from features.list_values import lengths_of, values_of

# Characters between the values of a list in a text field, the most likely first.
SEPARATORS = ("|", ";", ",")
MIN_LIST_SHARE = 0.5  # of the texts, that must contain the separator
MIN_REPEATS = 2  # how often a value of a list in a text occurs at least, on average
DECIMAL = r"^[+-]?[0-9]+,[0-9]+$"  # with a decimal comma
LENGTH_SHARE = 0.99  # of the lists, which are not longer than max_length
POOLING = "mean"  # unlike a sum, it does not grow with the length of a list


@dataclass(frozen=True)
class SampledLists:
    """The lists of a column in the sampled rows.

    Attributes:
        lengths: The number of values in each row (B,); 0 where the list is missing.
        values: The values of all lists, one list after the other.
        separator: The character between two values in a text log; None in other formats.
    """

    lengths: NDArray[np.int64]
    values: SampledColumn
    separator: str | None = None

    @property
    def max_length(self) -> int:
        """The length that LENGTH_SHARE of the lists have at most; empty ones are not counted."""
        lengths = self.lengths[self.lengths > 0]
        return int(np.quantile(lengths, LENGTH_SHARE, method="inverted_cdf"))

    @property
    def are_floats(self) -> bool:
        """Whether the values are numbers of which one at least is written with a fraction."""
        values = self.values
        if not len(values.present) or not values.fits("float"):
            return False
        if values.is_text or values.json_types is not None:
            return bool(values.texts().str.contains(FRACTION).any())
        return values.values.dtype.is_float() or values.values.dtype.is_decimal()

    def describe(self) -> str:
        """Return the lengths and the number of distinct values."""
        num_distinct = self.values.num_distinct
        share = f"{LENGTH_SHARE:.0%}".replace("%", " %")
        return (
            f"lists of up to {self.lengths.max():,}, {num_distinct:,} values; "
            f"{share} up to {self.max_length:,}"
        )

    def entry(self) -> dict[str, Any]:
        """Return the key `list` of the schema."""
        separator = {} if self.separator is None else {"separator": self.separator}
        return {**separator, "pooling": POOLING, "max_length": self.max_length}


def lists_of_column(column: SampledColumn, null_tokens: list[str]) -> SampledLists:
    """Return the lists of a column whose values are lists in the log."""
    values = replace(column, values=values_of(column.values), json_types=column.item_types)
    return SampledLists(lengths_of(column.values), values.without_tokens(null_tokens))


def split_texts(
    column: SampledColumn, used: Sequence[str | None], null_tokens: list[str]
) -> SampledLists | None:
    """Return the lists of a text column; None if its texts look like single values.

    Args:
        column: The column.
        used: The separator and the quote of the log, which separate no values of a list.
        null_tokens: The texts that mean a missing value.
    """
    for separator in SEPARATORS:
        if separator in used:
            continue
        texts = column.present.str
        share = texts.contains(separator, literal=True).mean()
        if not isinstance(share, float) or share < MIN_LIST_SHARE:
            continue
        if texts.contains(f"{separator} ", literal=True).any() or texts.contains(DECIMAL).all():
            continue  # sentences, or numbers
        split = column.values.str.split(separator)
        values = replace(column, values=values_of(split)).without_tokens(null_tokens)
        lists = SampledLists(lengths_of(split), values, separator)
        # Other texts have a comma too, and then there are no fewer parts than texts.
        is_list = separator == SEPARATORS[0] or values.num_distinct < column.num_distinct
        does_repeat = len(values.present) >= MIN_REPEATS * values.num_distinct > 0
        if lists.are_floats or (is_list and does_repeat):
            return lists
    return None
