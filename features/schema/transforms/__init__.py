"""The closed registry of transforms: a schema names one of these, and nothing else is ever executed.

In YAML: `transform: log1p`, or with its values `transform: {name: clip, low: 0, high: 100}`.
"""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from features.schema.transforms.clip import Clip
from features.schema.transforms.count import Count
from features.schema.transforms.cross import Cross
from features.schema.transforms.floor_ln2 import FloorLn2
from features.schema.transforms.log1p import Log1p
from features.schema.transforms.quantile import Quantile
from features.schema.transforms.time_parts import TimePart


def named(value: Any) -> Any:
    """`log1p` is short for `{name: log1p}`."""
    return {"name": value} if isinstance(value, str) else value


AnyTransform = Annotated[
    Annotated[
        Log1p | Clip | Quantile | FloorLn2 | TimePart | Cross | Count, Field(discriminator="name")
    ],
    BeforeValidator(named),
]
