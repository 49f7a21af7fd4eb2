"""What a transform is: a declaration, checked as all of a schema is, that knows how to make one feature of raw columns."""

from typing import ClassVar, Literal

import polars as pl

from common.config.base import Strict

Kind = Literal["dense", "categorical"]


class Transform(Strict):
    """takes: the kind of the raw columns it reads, num_columns of them; makes: what comes out.

    A dense feature is float32 without nulls. A categorical one is any column of values, null where missing; its ids are made later,
    by the column's policy (features/encode/feature_state.py).
    """

    takes: ClassVar[Literal["dense", "categorical", "time"]]
    makes: ClassVar[Kind]
    num_columns: ClassVar[int] = 1

    def fit(self, rows: pl.LazyFrame, of: list[str]) -> pl.DataFrame | None:
        """What it has to learn from the training rows (raw columns), as a frame that is kept with the state; None: nothing."""
        return None

    def expr(self, of: list[str], fitted: pl.DataFrame | None) -> pl.Expr:
        """The feature, from the raw columns `of` and what fit returned."""
        raise NotImplementedError
