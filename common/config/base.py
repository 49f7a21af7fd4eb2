"""What every declaration (params.yaml, a schema, a preset) is checked by: models without defaults, and the kinds of numbers in them."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Strict(BaseModel):
    """No unknown key, no missing key, no silent conversion; a whole number is accepted where a float is asked for."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
