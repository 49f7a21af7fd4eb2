"""The section `model` of params.yaml: the parts a model is built from (training/models/factory.py), each chosen by its name.

What they are, their formulas and when to use which stands in docs/models.md. Combinations that cannot work are refused here; what
depends on the schema's columns as well is refused by features.declared.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from common.config.base import NotNegative, Positive, Rate, Strict


class Dot(Strict):
    name: Literal["dot"]


class Cat(Strict):
    name: Literal["cat"]


class Cross(Strict):
    """rank: of each layer's matrix, null for a full one."""

    name: Literal["cross"]
    layers: Positive
    rank: Positive | None


class Full(Strict):
    name: Literal["full"]


class QuotientRemainder(Strict):
    """Columns of more than `threshold` values are composed of ceil(values / collisions) + collisions rows each."""

    name: Literal["quotient_remainder"]
    operation: Literal["mult", "add", "concat"]
    collisions: Positive
    threshold: NotNegative

    @model_validator(mode="after")
    def _saves_rows(self) -> "QuotientRemainder":
        values = (
            self.threshold + 1
        )  # the smallest column that is composed; a larger one saves no less
        rows = -(-values // self.collisions) + self.collisions
        if rows >= values:
            raise ValueError(
                f"with {self.collisions} collisions a column of {values} values, the first above threshold, takes {rows} rows and saves"
                " none; take other collisions (the root of a column's values saves most), a higher threshold, or {name: full}"
            )
        return self


class MixedDim(Strict):
    """Columns of n > `threshold` values have a dim of about D (n / threshold)^-alpha."""

    name: Literal["mixed_dim"]
    alpha: Annotated[float, Field(gt=0, le=1)]
    threshold: Positive


class Bce(Strict):
    name: Literal["bce"]
    positive_weight: Rate
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]


class Focal(Strict):
    name: Literal["focal"]
    gamma: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    alpha: Annotated[float, Field(gt=0, lt=1)]


Interaction = Annotated[Dot | Cat | Cross, Field(discriminator="name")]
Tables = Annotated[Full | QuotientRemainder | MixedDim, Field(discriminator="name")]
Loss = Annotated[Bce | Focal, Field(discriminator="name")]


class Model(Strict):
    embedding_dim: Positive
    bottom_mlp: list[Positive]
    top_mlp: list[Positive]
    standardise: bool
    interaction: Interaction
    tables: Tables
    loss: Loss

    @model_validator(mode="after")
    def _dims_can_be_split(self) -> "Model":
        D = self.embedding_dim
        if isinstance(self.tables, MixedDim) and D & (D - 1):
            raise ValueError(
                f"tables mixed_dim gives dims that are powers of two, up to embedding_dim, which {D} is not; take one that is"
            )
        if (
            isinstance(self.tables, QuotientRemainder)
            and self.tables.operation == "concat"
            and D % 2
        ):
            raise ValueError(
                f"tables quotient_remainder by concat halves embedding_dim, and {D} is odd; take an even one, or mult or add"
            )
        return self
