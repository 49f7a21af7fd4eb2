"""The transforms `hour` and `weekday`."""

from typing import ClassVar, Literal

import polars as pl

from features.schema.transforms.transform import Kind, Transform


class TimePart(Transform):
    """A part of a time as a category, in the log's own time zone.

    It is the hour of the day (0 to 23) or the day of the week (1 to 7, 1 is Monday).
    """

    name: Literal["hour", "weekday"]
    takes: ClassVar = "time"
    makes: ClassVar[Kind] = "categorical"

    def expr(self, of: list[str], fitted: pl.DataFrame | None) -> pl.Expr:
        time = pl.col(of[0]).dt
        return time.hour() if self.name == "hour" else time.weekday()
