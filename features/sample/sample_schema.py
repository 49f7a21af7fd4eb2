"""What a schema says of the log that the sample log generator imitates, and whether it can be imitated."""

from typing import Annotated

from pydantic import Field

from common.config.base import Fraction, Positive, Rate, Strict


class Missing(Strict):
    """Columns that are null together, in this share of the rows."""

    share: Fraction
    columns: list[str]


class PowerLaw(Strict):
    """A categorical column: the value of rank r (0, 1, …) has a share of about (r + offset)^-exponent, r < values."""

    values: Positive
    exponent: Rate
    offset: Rate


class Signal(Strict):
    """Standard deviations, in logits, of what the planted signal is made of; pairs: the columns that interact."""

    dense: Rate
    categorical: Rate
    interactions: Rate
    pairs: list[list[str]]


class SampleLog(Strict):
    """What the sample log generator imitates. Read by features/sample/ alone.

    drift: how far the popularity of a common value swings over the days, in logs; daily_new: share of the rarer values replaced each day.
    quantiles: dense column -> its quantiles at `levels`, from 0 to 1.
    """

    label_rate: Annotated[float, Field(gt=0, lt=1)]
    drift: Fraction
    daily_new: Fraction
    signal: Signal
    missing: list[Missing]
    levels: list[Fraction]
    quantiles: dict[str, list[int]]
    popularity: dict[str, PowerLaw]


def sample_faults(sample: SampleLog, dense: list[str], categorical: list[str]) -> list[str]:
    """What is impossible: every column has its law and no other column is named; the laws are laws."""
    known = {*dense, *categorical}
    named = [
        name
        for group in [*(entry.columns for entry in sample.missing), *sample.signal.pairs]
        for name in group
    ]
    faults = [f"{name} is no dense or categorical column" for name in sorted({*named} - known)]
    faults += [
        f"quantiles: {name} expected or not known"
        for name in sorted({*dense} ^ {*sample.quantiles})
    ]
    faults += [
        f"popularity: {name} expected or not known"
        for name in sorted({*categorical} ^ {*sample.popularity})
    ]
    faults += [
        f"signal.pairs: two columns expected, found {pair}"
        for pair in sample.signal.pairs
        if len(pair) != 2
    ]
    faults += [
        f"popularity.{name}.exponent: 1 has no closed form; use 1.01"
        for name, law in sample.popularity.items()
        if law.exponent == 1
    ]
    levels = sample.levels
    if len(levels) < 2 or levels[0] != 0 or levels[-1] != 1 or sorted({*levels}) != levels:
        faults.append(f"levels: 0, …, 1 in rising order expected, found {levels}")
    faults += [
        f"quantiles.{name}: {len(levels)} rising values expected, found {values}"
        for name, values in sample.quantiles.items()
        if len(values) != len(levels) or sorted(values) != values
    ]
    return faults
