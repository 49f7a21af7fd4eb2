"""The base class of all models that a YAML file is checked against, and their kinds of numbers."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MAX_INT = 2**63 - 1  # what NumPy, PyTorch and Parquet can store
Positive = Annotated[int, Field(gt=0, le=MAX_INT)]
NotNegative = Annotated[int, Field(ge=0, le=MAX_INT)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0)]


class Strict(BaseModel):
    """A model that refuses unknown keys, missing keys and values of another type.

    There is one conversion: a whole number is accepted for a float. NaN and infinity are refused.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
