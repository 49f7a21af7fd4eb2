"""The check that the model can compute with the dense features of a log."""

import polars as pl

from common.files import DataError
from features.encode.days import Day
from features.encode.feature_state import FeatureState

# The square of a larger number is infinite as a float32, and a model multiplies its inputs with
# one another. Without this check, the loss would become NaN whatever the learning rate is.
MAX_DENSE = 1.8e19


def check_dense_range(
    encoded: pl.DataFrame, typed: pl.DataFrame, state: FeatureState, day: Day, start: int
) -> None:
    """Check the dense features of some rows of a day.

    Args:
        encoded: The rows, encoded.
        typed: The same rows, typed.
        state: The feature state that encoded them.
        day: The day.
        start: The position of the first of the rows in the day.

    Raises:
        DataError: A value is larger than MAX_DENSE or no number. The message names the row.
    """
    dense = set(state.schema.dense_features)
    for feature in state.schema.features:
        if feature.name not in dense or _is_in_range(encoded[feature.name]):
            continue
        is_good = encoded[feature.name].abs() <= MAX_DENSE  # false for NaN
        k = int((~is_good).arg_true()[0])
        (stretch,) = day.stretches(start + k, start + k + 1)
        found = ", ".join(f"{name} {typed[name][k]}" for name in feature.of)
        raise DataError(
            f"{stretch.shard.name.removesuffix('.parquet')}: good row {stretch.start + 1:,}: the"
            f" dense feature {feature.name!r} is {encoded[feature.name][k]:.3g} (from {found}), and"
            f" a model can compute with numbers up to {MAX_DENSE:.2g}; choose another transform in"
            " the schema,"
            " such as log1p, or clip with limits that real values have"
        )


def is_dense_in_range(encoded: pl.DataFrame, state: FeatureState) -> bool:
    """Return whether all dense features of some rows are in the range."""
    return all(_is_in_range(encoded[name]) for name in state.schema.dense_features)


def _is_in_range(values: pl.Series) -> bool:
    """Return whether all values are in the range; NumPy's min and max are NaN if a value is."""
    numbers = values.to_numpy()
    return not len(numbers) or bool(numbers.min() >= -MAX_DENSE and numbers.max() <= MAX_DENSE)
