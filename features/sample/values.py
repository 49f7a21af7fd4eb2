"""Values of the sample log: popularity laws, quantiles and missing shares, each drawn by table look-up (N dense, F categorical, B rows)."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from features.sample.sample_schema import PowerLaw, SampleLog
from features.schema.schema import Schema

Floats = NDArray[np.float64]
Words = NDArray[np.uint32]
Bools = NDArray[np.bool_]

CELL_BITS = 12  # an inverse distribution is a table of 2^12 cells, linear inside a cell
FRACTION_BITS = 32 - CELL_BITS
GRID = np.linspace(0, 1, (1 << CELL_BITS) + 1)
COMMON = 1024  # the popularity of the first values swings from day to day
SWING_DAYS = 14
LASTING = 100  # the most popular values of a column are never replaced
MISSING_WORD = np.uint32(0xFFFFFFFF)  # stands for null where a value's effect is looked up


@dataclass(frozen=True)
class Rows:
    """dense: {column: int64 (B,)}; words, ranks: {column: uint32 (B,)}, the values behind the hex text and their ranks, 0 = most popular;

    missing: {column: bool (B,)} of the columns that can be null: what the other members hold there means nothing.
    """

    dense: dict[str, NDArray[np.int64]]
    words: dict[str, Words]
    ranks: dict[str, Words]
    missing: dict[str, Bools]

    @classmethod
    def concat(cls, parts: Sequence[Self]) -> Self:
        def joined(field: str) -> dict[str, Any]:
            return {
                name: np.concatenate([getattr(part, field)[name] for part in parts])
                for name in getattr(parts[0], field)
            }

        return cls(joined("dense"), joined("words"), joined("ranks"), joined("missing"))


def key(*parts: object) -> np.uint32:
    """32 bits that name a hash function: the first four bytes, little-endian, of SHA-256 of the parts joined by "/"."""
    return np.uint32(
        int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4], "little")
    )


def mix(words: Words) -> Words:
    """A bijection of 32-bit words that scatters them: Wellons' lowbias32 (public domain)."""
    words = words ^ (words >> np.uint32(16))
    words *= np.uint32(0x7FEB352D)
    words ^= words >> np.uint32(15)
    words *= np.uint32(0x846CA68B)
    words ^= words >> np.uint32(16)
    return words


def unit(words: Words) -> Floats:
    """Words as floats in [0, 1)."""
    return np.multiply(words, 2.0**-32, dtype=np.float64)


class Values:
    """Draws the rows of a day. Popularity drifts with the day; a new day replaces some of the rarer values by ones never seen before."""

    def __init__(self, schema: Schema, sample: SampleLog) -> None:
        self.sample = sample
        self.dense = {
            name: _quantile_table(sample.levels, sample.quantiles[name]) for name in schema.dense
        }
        self.laws = {name: sample.popularity[name] for name in schema.categorical}

    def day(self, day: int) -> "DayValues":
        tables = {
            name: _popularity_table(law, name, day, self.sample.drift)
            for name, law in self.laws.items()
        }
        return DayValues(self, tables, day * self.sample.daily_new)


@dataclass(frozen=True)
class DayValues:
    """tables: {categorical column: rank at each GRID point}; replaced: how often a rarer value has been replaced by now."""

    values: Values
    tables: dict[str, Floats]
    replaced: float

    def draw(self, num_rows: int, random: np.random.Generator) -> Rows:
        def words() -> Words:
            return random.integers(0, 1 << 32, num_rows, dtype=np.uint32)

        dense = {
            name: np.floor(_look_up(table, words())).astype(np.int64)
            for name, table in self.values.dense.items()
        }
        ranks = {
            name: _look_up(table, words()).astype(np.uint32) for name, table in self.tables.items()
        }
        missing = {}
        for group in self.values.sample.missing:
            gone = unit(words()) < group.share
            missing.update(dict.fromkeys(group.columns, gone))
        return Rows(
            dense,
            {name: self._words(name, ranks_B) for name, ranks_B in ranks.items()},
            ranks,
            missing,
        )

    def _words(self, column: str, ranks_B: Words) -> Words:
        """The value that holds a rank today: mix(key ^ (rank + values x generation)), so that no two values of a column share their text.

        A rank moves to its next generation at a moment of its own, spread evenly over the 1 / daily_new days that a generation lasts.
        Past 2^32 values, generations included, texts come back.
        """
        values = self.values.laws[column].values
        generations_B = np.zeros_like(ranks_B)
        if self.replaced and values > LASTING:
            phases_B = unit(mix(ranks_B ^ key("generation", column)))
            np.floor(
                phases_B + self.replaced,
                out=generations_B,
                where=ranks_B >= LASTING,
                casting="unsafe",
            )
        return mix((ranks_B + generations_B * np.uint32(values)) ^ key("value", column))


def _look_up(table: Floats, words_B: Words) -> Floats:
    """The inverse distribution at words / 2^32."""
    cells = words_B >> np.uint32(FRACTION_BITS)
    fractions = (words_B & np.uint32((1 << FRACTION_BITS) - 1)) * 2.0**-FRACTION_BITS
    start = table[cells]
    return np.asarray(start + (table[1:][cells] - start) * fractions)


def _quantile_table(levels: list[float], quantiles: list[int]) -> Floats:
    """Quantiles between the levels, growing geometrically: counts have heavy tails."""
    least = quantiles[0]
    logs = np.log1p(np.array(quantiles, np.float64) - least)
    return _steady(np.expm1(np.interp(GRID, levels, logs)) + least)


def _popularity_table(law: PowerLaw, column: str, day: int, drift: float) -> Floats:
    """Ranks at GRID under the continuous power law on [0, values), with the COMMON first ranks' shares swung to the day.

    Inverse of F(x) = (1 - (1 + x/q)^(1-s)) / (1 - (1 + K/q)^(1-s)): exponent s, offset q, values K.
    """
    power, offset, values = 1 - law.exponent, law.offset, law.values
    whole = np.expm1(power * np.log1p(values / offset))
    edges = np.arange(min(COMMON, values) + 1, dtype=np.float64)
    shares = np.diff(np.expm1(power * np.log1p(edges / offset)) / whole)
    phases = unit(mix(np.arange(shares.size, dtype=np.uint32) ^ key("swing", column)))
    swung = shares * np.exp(drift * np.sin(2 * np.pi * (phases + day / SWING_DAYS)))
    common = np.concatenate([[0.0], np.cumsum(swung * (shares.sum() / swung.sum()))])
    ranks = offset * np.expm1(np.log1p(GRID * whole) / power)
    # the end may come out a hair above K, and no rank may reach it
    ranks = np.where(common[-1] > GRID, np.interp(GRID, common, edges), ranks).clip(0, values)
    return np.minimum(_steady(ranks), np.nextafter(values, 0))


def _steady(table: Floats) -> Floats:
    """Rounded, so that the last bit of another machine's exp and log does not change what is drawn."""
    return np.round(table * 1024) / 1024
