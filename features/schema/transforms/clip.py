"""The transform `clip`."""

from typing import Annotated, ClassVar, Literal

import polars as pl
from pydantic import Field, model_validator

from features.schema.transforms.transform import MAX_FLOAT32, Kind, Transform

Float32 = Annotated[float, Field(ge=-MAX_FLOAT32, le=MAX_FLOAT32)]


class Clip(Transform):
    """The value itself, limited to [low, high]; a missing value is 0, limited as well.

    Attributes:
        low: The lowest value.
        high: The highest value.
    """

    name: Literal["clip"]
    low: Float32
    high: Float32
    takes: ClassVar = "dense"
    makes: ClassVar[Kind] = "dense"

    @model_validator(mode="after")
    def _in_order(self) -> "Clip":
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self

    def expr(self, of: list[str], fitted: pl.DataFrame | None) -> pl.Expr:
        # As float64: limits with a fraction would be rounded to those of an integer column.
        column = pl.col(of[0]).cast(pl.Float64).fill_null(0)
        return column.clip(self.low, self.high).cast(pl.Float32)
