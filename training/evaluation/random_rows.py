"""Random rows of a split, a bounded number of them."""

from common.artifact import Artifact
from features.schema.schema import Schema
from training.loop.batches import Batches, Rows

SPREAD_ROWS = 1 << 18  # the rows are drawn from so many, which are spread over all days


def random_rows(features: Artifact, schema: Schema, split: str, num_rows: int, seed: int) -> Rows:
    """Return rows of a split in random order.

    Memory does not grow with the rows of the split.

    Args:
        features: artifacts/features.
        schema: The columns of the features.
        split: The split; it has rows.
        num_rows: The number of rows; all if the split has fewer.
        seed: The seed of the choice and of the order.
    """
    batches = Batches(
        features.paths_in(split),
        schema,
        batch_size=num_rows,
        shuffle_rows=SPREAD_ROWS,
        seed=seed,
    )
    return next(batches.steps(0, 1)).rows
