"""The values of the sample log, drawn by table look-up from quantiles and popularity laws.

B is the number of rows. A word is a value of a categorical column as a 32-bit integer; the log
contains it as eight hex digits.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from features.schema.sample_section import PowerLaw, SampleLog
from features.schema.schema import Schema

Floats = NDArray[np.float64]
Words = NDArray[np.uint32]
Bools = NDArray[np.bool_]

# An inverse distribution function is a table of 2^12 cells, and linear inside a cell. Of a random
# 32-bit word, the upper bits choose the cell and the lower bits the position in it.
CELL_BITS = 12
FRACTION_BITS = 32 - CELL_BITS
GRID = np.linspace(0, 1, (1 << CELL_BITS) + 1)
# The popularity of this number of most popular values swings from day to day.
NUM_SWINGING_VALUES = 1024
SWING_PERIOD_DAYS = 14
# This number of most popular values of a column is never replaced by new values.
NUM_LASTING_VALUES = 100
# The word by which the effect of a missing value is looked up.
MISSING_WORD = np.uint32(0xFFFFFFFF)


@dataclass(frozen=True)
class Rows:
    """B rows of the sample log, by column.

    Attributes:
        dense: The values of the dense columns, int64 (B).
        words: The words of the categorical columns, uint32 (B); of a column of lists, the words of
            all rows, one row after the other.
        ranks: The ranks of these words by popularity, uint32; 0 is the most popular.
        missing: Whether the value is missing, bool (B), of the columns where it can be; the other
            attributes are arbitrary there. A missing list is an empty one instead.
        lengths: The number of words of each row, int64 (B), of the columns of lists.
    """

    dense: dict[str, NDArray[np.int64]]
    words: dict[str, Words]
    ranks: dict[str, Words]
    missing: dict[str, Bools]
    lengths: dict[str, NDArray[np.int64]]

    @property
    def num_rows(self) -> int:
        """The number of rows, B."""
        return len(next(iter((self.words | self.lengths).values())))

    @classmethod
    def concat(cls, parts: Sequence[Self]) -> Self:
        """Concatenate rows."""

        def concat_field(field: str) -> dict[str, Any]:
            return {
                name: np.concatenate([getattr(part, field)[name] for part in parts])
                for name in getattr(parts[0], field)
            }

        return cls(*map(concat_field, ("dense", "words", "ranks", "missing", "lengths")))


def hash_key(*parts: object) -> np.uint32:
    """Return the key of a hash function: the first four bytes, little-endian, of a SHA-256.

    It is the SHA-256 of the parts as text, joined by "/".
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return np.uint32(int.from_bytes(digest[:4], "little"))


def scatter(words: Words) -> Words:
    """Map words one-to-one to words that look random: Chris Wellons' lowbias32 (public domain).

    See https://nullprogram.com/blog/2018/07/31/.
    """
    words = words ^ (words >> np.uint32(16))
    words *= np.uint32(0x7FEB352D)
    words ^= words >> np.uint32(15)
    words *= np.uint32(0x846CA68B)
    words ^= words >> np.uint32(16)
    return words


def to_unit_interval(words: Words) -> Floats:
    """Map words to numbers in [0, 1)."""
    return np.multiply(words, 2.0**-32, dtype=np.float64)


class ValueSampler:
    """The distributions of all columns of a schema.

    The popularity of values drifts with the day, and each day some of the less popular values are
    replaced by values that never occurred before.
    """

    def __init__(self, schema: Schema, sample: SampleLog) -> None:
        self.sample = sample
        self.dense_tables = {
            name: _quantile_table(sample.levels, sample.quantiles[name]) for name in schema.dense
        }
        self.power_laws = {name: sample.popularity[name] for name in schema.categorical}
        self.length_tables = {
            feature.name: _quantile_table(sample.levels, sample.lengths[feature.name])
            for feature in schema.list_features
        }
        self.table_of = schema.table_of

    def day(self, day: int) -> "DaySampler":
        """Return the distributions on a day (0 is the first)."""
        rank_tables = {
            name: _popularity_table(law, name, day, self.sample.drift)
            for name, law in self.power_laws.items()
        }
        return DaySampler(self, rank_tables, day * self.sample.daily_new)


@dataclass(frozen=True)
class DaySampler:
    """The distributions of all columns on a day.

    Attributes:
        values: What does not depend on the day.
        rank_tables: The rank at each point of GRID, float64 (2^12 + 1), by categorical column.
        num_replacements: How often a less popular value has been replaced up to the day.
    """

    values: ValueSampler
    rank_tables: dict[str, Floats]
    num_replacements: float

    def draw(self, num_rows: int, random: np.random.Generator) -> Rows:
        """Draw rows of the day."""

        def random_words(count: int = num_rows) -> Words:
            return random.integers(0, 1 << 32, count, dtype=np.uint32)

        dense = {
            name: np.floor(_interpolate(table, random_words())).astype(np.int64)
            for name, table in self.values.dense_tables.items()
        }
        ranks = {
            name: _interpolate(table, random_words()).astype(np.uint32)
            for name, table in self.rank_tables.items()
            if name not in self.values.length_tables
        }
        missing: dict[str, Bools] = {}
        for group in self.values.sample.missing:
            is_missing_B = to_unit_interval(random_words()) < group.share
            missing.update(dict.fromkeys(group.columns, is_missing_B))
        lengths = {}
        for name, table in self.values.length_tables.items():
            lengths_B = np.floor(_interpolate(table, random_words())).astype(np.int64)
            if name in missing:
                lengths_B[missing.pop(name)] = 0
            lengths[name] = lengths_B
            words_V = random_words(int(lengths_B.sum()))
            ranks[name] = _interpolate(self.rank_tables[name], words_V).astype(np.uint32)
        words = {name: self._words(name, ranks_B) for name, ranks_B in ranks.items()}
        return Rows(dense, words, ranks, missing, lengths)

    def _words(self, column: str, ranks_B: Words) -> Words:
        """Return the words that have these ranks on the day, uint32 (B).

        The word of a rank is scatter(key XOR (rank + number of values * replacements)). No two
        values of a column have the same word, unless there are more than 2^32 of them, replaced
        ones included. The replacements of the ranks are spread evenly over the 1 / daily_new days
        between two replacements of a rank.
        """
        num_values = self.values.power_laws[column].values
        table = self.values.table_of[column]  # columns that share one have the same words
        replacements_B = np.zeros_like(ranks_B)
        if self.num_replacements and num_values > NUM_LASTING_VALUES:
            # The texts of these keys decide the bytes of the log, so they are never renamed.
            phases_B = to_unit_interval(scatter(ranks_B ^ hash_key("generation", table)))
            np.floor(
                phases_B + self.num_replacements,
                out=replacements_B,
                where=ranks_B >= NUM_LASTING_VALUES,
                casting="unsafe",
            )
        values_B = ranks_B + replacements_B * np.uint32(num_values)
        return scatter(values_B ^ hash_key("value", table))


def _interpolate(table: Floats, words_B: Words) -> Floats:
    """Return the inverse distribution function of a table at words / 2^32."""
    cells = words_B >> np.uint32(FRACTION_BITS)
    fractions = (words_B & np.uint32((1 << FRACTION_BITS) - 1)) * 2.0**-FRACTION_BITS
    start = table[cells]
    return np.asarray(start + (table[1:][cells] - start) * fractions)


def _quantile_table(levels: list[float], quantiles: list[int]) -> Floats:
    """Interpolate quantiles between the levels at the points of GRID, float64 (2^12 + 1).

    The interpolation is geometric, because counts have heavy tails.
    """
    least = quantiles[0]
    logs = np.log1p(np.array(quantiles, np.float64) - least)
    return _rounded(np.expm1(np.interp(GRID, levels, logs)) + least)


def _popularity_table(law: PowerLaw, column: str, day: int, drift: float) -> Floats:
    """Return the rank at each point of GRID, float64 (2^12 + 1), on a day.

    The ranks have a continuous power law on [0, K). The points are the inverse of its distribution
    function F(x) = (1 - (1 + x/q)^(1-s)) / (1 - (1 + K/q)^(1-s)), with the exponent s, the offset q
    and K values. Then the shares of the most popular values are changed to those of the day.
    """
    power, offset, num_values = 1 - law.exponent, law.offset, law.values
    norm = np.expm1(power * np.log1p(num_values / offset))
    edges = np.arange(min(NUM_SWINGING_VALUES, num_values) + 1, dtype=np.float64)
    shares = np.diff(np.expm1(power * np.log1p(edges / offset)) / norm)
    ids = np.arange(shares.size, dtype=np.uint32)
    phases = to_unit_interval(scatter(ids ^ hash_key("swing", column)))
    swing = np.exp(drift * np.sin(2 * np.pi * (phases + day / SWING_PERIOD_DAYS)))
    shares_of_day = shares * swing
    # All of the swinging values together keep their share.
    shares_of_day *= shares.sum() / shares_of_day.sum()
    cumulative = np.concatenate([[0.0], np.cumsum(shares_of_day)])
    ranks = offset * np.expm1(np.log1p(GRID * norm) / power)
    ranks = np.where(cumulative[-1] > GRID, np.interp(GRID, cumulative, edges), ranks)
    # By rounding errors the last point may be a little above K, but no rank may reach K.
    return np.minimum(_rounded(ranks.clip(0, num_values)), np.nextafter(num_values, 0))


def _rounded(table: Floats) -> Floats:
    """Round to 1/1024, so that another machine's exp and log do not change what is drawn."""
    return np.round(table * 1024) / 1024
