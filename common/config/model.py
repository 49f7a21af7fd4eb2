"""The parameters of the section `model`: which parts a model is built from, each chosen by name.

docs/guides/models.md explains the parts, with their formulas. Combinations that cannot work are
refused here; those that depend on the columns of the schema are refused in
features/schema/check_params.py.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from common.config.base import NotNegative, Positive, Rate, Strict
from common.numbers import ceil_div


class Dot(Strict):
    """The interaction of DLRM: the dot product of each pair of vectors (Naumov et al. 2019)."""

    name: Literal["dot"] = Field(description="Chooses the dot products of all pairs of vectors.")


class Cat(Strict):
    """The interaction that only concatenates the vectors."""

    name: Literal["cat"] = Field(description="Chooses the concatenation of all vectors.")


class Cross(Strict):
    """The cross layers of DCNv2 (Wang et al. 2021)."""

    name: Literal["cross"] = Field(description="Chooses cross layers, as in DCNv2.")
    layers: Positive = Field(description="Number of cross layers.")
    rank: Positive | None = Field(
        description="Rank of the two factors that each layer's matrix is the product of."
        " null: full matrices."
    )


class Full(Strict):
    """Embedding tables with one row for each id."""

    name: Literal["full"] = Field(description="Chooses one row of the embedding table for each id.")


class QuotientRemainder(Strict):
    """Two small tables in place of one large table (Shi et al. 2020).

    The vector of an id is made of row `id // collisions` of one table and row `id % collisions` of
    the other, so n values need ceil(n / collisions) + collisions rows.
    """

    name: Literal["quotient_remainder"] = Field(
        description="Chooses two small tables in place of each large table."
    )
    operation: Literal["mult", "add", "concat"] = Field(
        description="How the two rows make one vector: their product, their sum, or the two halves"
        " of the vector."
    )
    collisions: Positive = Field(
        description="Number of ids that share a row of the first table; also the number of rows of"
        " the second table."
    )
    threshold: NotNegative = Field(
        description="Features of up to this number of values keep a full table."
    )

    @model_validator(mode="after")
    def _saves_rows(self) -> "QuotientRemainder":
        num_values = self.threshold + 1  # a feature of more values saves at least as much
        num_rows = ceil_div(num_values, self.collisions) + self.collisions
        if num_rows >= num_values:
            raise ValueError(
                f"with {self.collisions} collisions a feature of {num_values} values, the smallest"
                f" above threshold, takes {num_rows} rows, so no row is saved; take other"
                " collisions (the square root of the number of values saves most), a higher"
                " threshold, or {name: full}"
            )
        return self


class MixedDim(Strict):
    """Embedding tables that are narrower for features of more values (Ginart et al. 2019).

    A feature of n > threshold values has rows of about D (n / threshold)^-alpha numbers, which a
    matrix maps to the embedding dimension D.
    """

    name: Literal["mixed_dim"] = Field(
        description="Chooses narrower tables for features of more values."
    )
    alpha: Annotated[float, Field(gt=0, le=1)] = Field(
        description="How fast the width falls with the number of values: 0.3 is common."
    )
    threshold: Positive = Field(
        description="Features of up to this number of values keep a full table."
    )


class PerColumn(Strict):
    """Embedding tables whose width is chosen for each categorical column.

    A column of dim d has rows of d numbers, which zeros extend to the embedding dimension D. A
    column of dim 0 is left out of the model.
    """

    name: Literal["per_column"] = Field(description="Chooses a width for each column's table.")
    dims: dict[str, NotNegative] = Field(
        description="Numbers in a row of the column's table, by the column's name; 0 leaves the"
        " column out of the model. A column that is not named has embedding_dim."
    )


class Bce(Strict):
    """Binary cross-entropy, the logloss, with optional weights and smoothing."""

    name: Literal["bce"] = Field(description="Chooses the binary cross-entropy.")
    positive_weight: Rate = Field(
        description="How many times a clicked row counts. Scores stay click rates."
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        description="0.1 trains on labels 0.05 and 0.95 instead of 0 and 1. Scores are then no"
        " longer exact click rates."
    )


class Focal(Strict):
    """The focal loss, which gives easy rows less weight (Lin et al. 2017)."""

    name: Literal["focal"] = Field(description="Chooses the focal loss. Scores are no click rates.")
    gamma: Annotated[float, Field(ge=0)] = Field(
        description="How much weight easy rows lose; 0 means none. The paper has 2."
    )
    alpha: Annotated[float, Field(gt=0, lt=1)] = Field(
        description="Weight of a clicked row; another row has 1 - alpha. The paper has 0.25."
    )


Interaction = Annotated[Dot | Cat | Cross, Field(discriminator="name")]
Tables = Annotated[Full | QuotientRemainder | MixedDim | PerColumn, Field(discriminator="name")]
Loss = Annotated[Bce | Focal, Field(discriminator="name")]


class Model(Strict):
    """The network and the loss that it is trained with."""

    embedding_dim: Positive = Field(
        description="D, the width of the embedding vectors and of the bottom MLP's output."
    )
    bottom_mlp: list[Positive] = Field(
        description="Widths of the hidden layers of the bottom MLP, which takes the dense features."
    )
    top_mlp: list[Positive] = Field(
        description="Widths of the hidden layers of the top MLP, which takes the interaction."
    )
    standardise: bool = Field(
        description="true: dense features are scaled to mean 0 and variance 1 of the training rows."
    )
    interaction: Interaction = Field(
        description="How the vectors of a row are combined before the top MLP."
    )
    tables: Tables = Field(description="What the vector of an id is made of.")
    loss: Loss = Field(description="What training minimises.")

    @model_validator(mode="after")
    def _dims_can_be_split(self) -> "Model":
        D = self.embedding_dim
        if isinstance(self.tables, MixedDim) and D & (D - 1):
            raise ValueError(
                f"tables mixed_dim needs an embedding_dim that is a power of two, and {D} is not"
            )
        if (
            isinstance(self.tables, QuotientRemainder)
            and self.tables.operation == "concat"
            and D % 2
        ):
            raise ValueError(
                f"tables quotient_remainder with concat needs an even embedding_dim, and {D} is"
                " odd; take an even one, or mult or add"
            )
        if isinstance(self.tables, PerColumn):
            for column, dim in self.tables.dims.items():
                if dim > D:
                    raise ValueError(
                        f"tables per_column: dims.{column} is {dim}, more than embedding_dim, {D};"
                        " take at most that, or raise embedding_dim"
                    )
        return self

    def column_dims(self, columns: Sequence[str]) -> list[int]:
        """Return the dim of each categorical column's vectors before they are made D wide.

        Args:
            columns: The names of the columns.

        Returns:
            What `tables.dims` says, 0 for a column that is left out; D for all other kinds of
            tables.
        """
        dims = self.tables.dims if isinstance(self.tables, PerColumn) else {}
        return [dims.get(column, self.embedding_dim) for column in columns]
