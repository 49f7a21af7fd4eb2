"""The base class of all transforms."""

from typing import ClassVar, Literal

import polars as pl

from common.config.base import Strict

MAX_FLOAT32 = 3.4028234663852886e38
Kind = Literal["dense", "categorical"]


class Transform(Strict):
    """A rule that makes one feature from columns of the log; its fields are its options.

    A dense feature is float32, finite and without nulls. A categorical feature is a column of
    values of any dtype, null where the value is missing; its policy gives the values their ids
    later.

    Attributes:
        takes: The kind of the columns that the transform is made for.
        makes: The kind of the feature.
        num_columns: The number of columns that the feature is made from.
    """

    takes: ClassVar[Literal["dense", "categorical", "time"]]
    makes: ClassVar[Kind]
    num_columns: ClassVar[int] = 1

    def fitted_value(self, of: list[str]) -> pl.Expr | None:
        """Return the value that the transform is fitted to; None if there is nothing to learn.

        Args:
            of: The names of the columns that the feature is made from.
        """
        return None

    def fit(self, counts: pl.DataFrame) -> pl.DataFrame:
        """Learn what `expr` needs from the training rows.

        Args:
            counts: How often each `fitted_value` occurs in the training rows, as of
                `features.value_counts.count_values`.

        Returns:
            A frame that is saved with the feature state, without nulls; the values of its first
            column are distinct and rise.
        """
        raise NotImplementedError

    def expr(self, of: list[str], fitted: pl.DataFrame | None) -> pl.Expr:
        """Return the expression of the feature.

        Args:
            of: The names of the columns that the feature is made from.
            fitted: The result of `fit`.
        """
        raise NotImplementedError
