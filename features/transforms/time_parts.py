"""Parts of a time as categories: the hour of the day (0-23) and the day of the week (1 is Monday), in the log's own clock."""

from typing import ClassVar, Literal

import polars as pl

from features.transforms.transform import Kind, Transform


class Hour(Transform):
    name: Literal["hour"]
    takes: ClassVar = "time"
    makes: ClassVar[Kind] = "categorical"

    def expr(self, of: list[str], fitted: pl.DataFrame | None) -> pl.Expr:
        return pl.col(of[0]).dt.hour()


class Weekday(Transform):
    name: Literal["weekday"]
    takes: ClassVar = "time"
    makes: ClassVar[Kind] = "categorical"

    def expr(self, of: list[str], fitted: pl.DataFrame | None) -> pl.Expr:
        return pl.col(of[0]).dt.weekday()
