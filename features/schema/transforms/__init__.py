"""The registry of transforms, the rules that make a feature from columns of the log.

A schema chooses a transform by its name: `transform: log1p`, or with options
`transform: {name: clip, low: 0, high: 100}`. Nothing else can be executed by a schema. A new
transform is a new module with a subclass of `Transform`, and a member of `AnyTransform` below.
CONTRIBUTING.md lists all steps.
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


def expand_short_form(value: Any) -> Any:
    """Expand `log1p` to `{name: log1p}`; other values are returned unchanged."""
    return {"name": value} if isinstance(value, str) else value


AnyTransform = Annotated[
    Annotated[
        Log1p | Clip | Quantile | FloorLn2 | TimePart | Cross | Count, Field(discriminator="name")
    ],
    BeforeValidator(expand_short_form),
]
