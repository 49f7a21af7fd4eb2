"""Two categories as one: the pair of their values, as text with a unit separator between; missing where one of them is."""

from typing import ClassVar, Literal

import polars as pl

from features.schema.transforms.transform import Kind, Transform

UNIT_SEPARATOR = "\x1f"  # ASCII's own; a tab or a comma could stand in a value


class Cross(Transform):
    name: Literal["cross"]
    takes: ClassVar = "categorical"
    makes: ClassVar[Kind] = "categorical"
    num_columns: ClassVar[int] = 2

    def expr(self, of: list[str], fitted: pl.DataFrame | None) -> pl.Expr:
        return pl.concat_str(
            [pl.col(name).cast(pl.String) for name in of], separator=UNIT_SEPARATOR
        )
