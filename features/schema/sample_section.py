"""The section `sample` of a schema: the statistics that the sample log generator imitates."""

from typing import Annotated

from pydantic import Field

from common.config.base import Fraction, Positive, Rate, Strict


class MissingGroup(Strict):
    """Columns that are missing in the same rows.

    Attributes:
        share: The share of these rows.
        columns: The columns.
    """

    share: Fraction
    columns: list[str]


class PowerLaw(Strict):
    """The popularity of a categorical column's values.

    The value of rank r (0, 1, ... `values` - 1) has a share of about (r + offset)^-exponent.

    Attributes:
        values: The number of different values.
        exponent: The exponent; 1 is not possible.
        offset: The offset.
    """

    values: Positive
    exponent: Rate
    offset: Rate


class SignalStrength(Strict):
    """The strength of the planted signal, as standard deviations in logits.

    Attributes:
        dense: Of the terms of the dense columns.
        categorical: Of the terms of the categorical columns.
        interactions: Of the terms of the pairs.
        pairs: The pairs of columns that interact.
    """

    dense: Rate
    categorical: Rate
    interactions: Rate
    pairs: list[list[str]]


class SampleLog(Strict):
    """The statistics of a log. Only features/sample/ reads them.

    Attributes:
        label_rate: The share of clicks.
        drift: How far the popularity of a common value swings over the days, as a logarithm.
        daily_new: The share of the less popular values that new values replace each day.
        signal: The strength of the signal.
        missing: The columns that can be missing.
        levels: Levels of quantiles, rising from 0 to 1.
        quantiles: The quantiles of each dense column at the levels.
        popularity: The popularity of each categorical column's values.
        lengths: The quantiles, at the levels, of the number of values in the lists of each column
            of lists.
    """

    label_rate: Annotated[float, Field(gt=0, lt=1)]
    drift: Fraction
    daily_new: Fraction
    signal: SignalStrength
    missing: list[MissingGroup]
    levels: list[Fraction]
    quantiles: dict[str, list[int]]
    popularity: dict[str, PowerLaw]
    lengths: dict[str, list[int]] = Field(default_factory=dict)


def sample_faults(
    sample: SampleLog, dense: list[str], categorical: list[str], lists: list[str]
) -> list[str]:
    """List what is impossible in a section `sample`.

    Args:
        sample: The section.
        dense: The dense columns of the schema.
        categorical: The categorical columns of the schema.
        lists: Those of them that have lists.
    """
    return [
        *_faults_of_names(sample, dense, categorical, lists),
        *_faults_of_pairs(sample),
        *_faults_of_power_laws(sample),
        *_faults_of_quantiles(sample),
    ]


def _faults_of_names(
    sample: SampleLog, dense: list[str], categorical: list[str], lists: list[str]
) -> list[str]:
    groups = [group.columns for group in sample.missing] + sample.signal.pairs
    names = {name for group in groups for name in group}
    faults = [
        f"{name} is no dense or categorical column"
        for name in sorted(names - {*dense, *categorical})
    ]
    for section, columns, described in (
        ("quantiles", dense, sample.quantiles),
        ("popularity", categorical, sample.popularity),
        ("lengths", lists, sample.lengths),
    ):
        missing = sorted({*columns} - {*described})
        unknown = sorted({*described} - {*columns})
        faults += [f"{section}: {name} expected" for name in missing]
        faults += [f"{section}: {name} is no such column" for name in unknown]
    return faults


def _faults_of_pairs(sample: SampleLog) -> list[str]:
    return [
        f"signal.pairs: two columns expected, found {pair}"
        for pair in sample.signal.pairs
        if len(pair) != 2
    ]


def _faults_of_power_laws(sample: SampleLog) -> list[str]:
    return [
        f"popularity.{name}.exponent: 1 has no closed form; use 1.01"
        for name, law in sample.popularity.items()
        if law.exponent == 1
    ]


def _faults_of_quantiles(sample: SampleLog) -> list[str]:
    faults = []
    levels = sample.levels
    is_rising = sorted({*levels}) == levels
    if len(levels) < 2 or levels[0] != 0 or levels[-1] != 1 or not is_rising:
        faults.append(f"levels: 0, …, 1 in rising order expected, found {levels}")
    for section, quantiles in (("quantiles", sample.quantiles), ("lengths", sample.lengths)):
        faults += [
            f"{section}.{name}: {len(levels)} rising values expected, found {values}"
            for name, values in quantiles.items()
            if len(values) != len(levels) or sorted(values) != values
        ]
    faults += [
        f"lengths.{name}: {min(values)} found, 0 or more expected"
        for name, values in sample.lengths.items()
        if min(values, default=0) < 0
    ]
    return faults
