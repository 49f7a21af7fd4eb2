"""Parts of a time as categories: the hour of the day (0-23) or the day of the week (1 is Monday), in the log's own clock."""

from typing import ClassVar, Literal

import polars as pl

from features.schema.transforms.transform import Kind, Transform


class TimePart(Transform):
    name: Literal["hour", "weekday"]
    takes: ClassVar = "time"
    makes: ClassVar[Kind] = "categorical"

    def expr(self, of: list[str], fitted: pl.DataFrame | None) -> pl.Expr:
        moment = pl.col(of[0]).dt
        return moment.hour() if self.name == "hour" else moment.weekday()
