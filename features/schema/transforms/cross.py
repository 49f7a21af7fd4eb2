"""The transform `cross`."""

from typing import ClassVar, Literal

import polars as pl

from features.schema.transforms.transform import Kind, Transform

UNIT_SEPARATOR = "\x1f"  # of ASCII; a tab or a comma can occur in a value


class Cross(Transform):
    """The pair of two categories as one category, as text; missing if one of them is missing."""

    name: Literal["cross"]
    takes: ClassVar = "categorical"
    makes: ClassVar[Kind] = "categorical"
    num_columns: ClassVar[int] = 2

    def expr(self, of: list[str], fitted: pl.DataFrame | None) -> pl.Expr:
        return pl.concat_str(
            [pl.col(name).cast(pl.String) for name in of], separator=UNIT_SEPARATOR
        )
