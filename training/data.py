"""The features as Lightning wants them."""

from pathlib import Path

import pytorch_lightning as pl

from features.params import Train
from features.schema import Schema
from training.batches import Batches

VALID_BATCH_SIZE = 8192  # rows scored together; of no effect on what is learned


class FeatureData(pl.LightningDataModule):
    """directory: artifacts/features. Every rank gets its share of each global batch; the order of an epoch follows from seed and epoch."""

    def __init__(self, directory: Path, schema: Schema, params: Train) -> None:
        super().__init__()
        self.directory, self.schema, self.params = directory, schema, params

    def train_dataloader(self) -> Batches:
        """Called for each epoch (reload_dataloaders_every_n_epochs=1)."""
        epoch = self.trainer.current_epoch if self.trainer else 0
        return self._batches("train", self.params.batch_size, self.params.shuffle_rows, (self.params.seed, epoch))

    def val_dataloader(self) -> Batches:
        return self._batches("valid", VALID_BATCH_SIZE, shuffle_rows=0, seed=())

    def _batches(self, split: str, batch_size: int, shuffle_rows: int, seed: tuple[int, ...]) -> Batches:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return Batches(
            self.directory / split,
            self.schema,
            batch_size=batch_size,
            shuffle_rows=shuffle_rows,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )
