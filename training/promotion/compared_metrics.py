"""The metrics by which challenger and champion are compared, as JSON has them.

Both the decision and the record of a nightly run check them. The record is read without torch, so
this module does not import it.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Number = Annotated[float, Field(ge=-1e9, le=1e9)]


class ComparedMetrics(BaseModel):
    """The metrics on the test rows, with their confidence intervals; None if undefined."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    auc: Number | None
    auc_low: Number | None
    auc_high: Number | None
    logloss: Number
    logloss_low: Number | None
    logloss_high: Number | None
    normalized_entropy: Number | None
