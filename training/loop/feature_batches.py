"""artifacts/features as batches, for processes that do without Lightning."""

from collections.abc import Sequence
from pathlib import Path

from common.artifact import Artifact
from common.config.params import Train
from features.schema.schema import Schema
from training.loop.batches import Batches

VALID_BATCH_SIZE = 8192  # rows scored together; of no effect on what is learned


class FeatureBatches:
    """The training and validation rows of artifacts/features, all of them.

    Args:
        features: artifacts/features.
        schema: The columns of the features.
        params: The section `train` of params.yaml.
        teacher_scores: For each file of the training rows, the one with the teachers' scores; empty
            without distillation.
    """

    def __init__(
        self,
        features: Artifact,
        schema: Schema,
        params: Train,
        teacher_scores: Sequence[Path] = (),
    ) -> None:
        self.features, self.schema, self.params = features, schema, params
        self.teacher_scores = teacher_scores

    def train_batches(self, kind: type[Batches] = Batches) -> Batches:
        """Return the training rows in batches of one step."""
        return self._batches(
            kind,
            "train",
            self.params.batch_size * self.params.accumulate_grad_batches,
            self.params.shuffle_rows,
            self.params.last_days,
            self.teacher_scores,
        )

    def valid_batches(self) -> Batches:
        """Return the validation rows in the batches that are scored together."""
        return self._batches(Batches, "valid", VALID_BATCH_SIZE)

    def _rank(self) -> tuple[int, int]:
        """Return the rank that reads its share of the rows, and the number of ranks."""
        return 0, 1

    def _batches(
        self,
        kind: type[Batches],
        split: str,
        batch_size: int,
        shuffle_rows: int = 0,
        last_days: int | None = None,
        teacher_scores: Sequence[Path] = (),
    ) -> Batches:
        rank, world_size = self._rank()
        return kind(
            self.features.paths_in(split),
            self.schema,
            batch_size=batch_size,
            shuffle_rows=shuffle_rows,
            seed=self.params.seed,
            last_days=last_days,
            teacher_scores=teacher_scores,
            rank=rank,
            world_size=world_size,
        )
