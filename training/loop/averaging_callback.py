"""The callback that averages the weights of a training, with `weight_averaging.py`."""

from typing import Any

import pytorch_lightning as pl

from training.loop.weight_averaging import EpochMean, average
from training.models.dlrm import DLRM


class WeightAveraging(pl.Callback):
    """Updates the averaged weights after each step, and their mean over epochs after each epoch.

    The averages are modules of the LightningModule, so that they move, are saved and are restored
    with it.

    Args:
        model: The model that learns.
        averaged_model: The model with the averaged dense weights.
        epoch_mean: The mean over epochs, where each epoch begins with the same tables.
    """

    def __init__(self, model: DLRM, averaged_model: DLRM, epoch_mean: EpochMean | None) -> None:
        self.model, self.averaged_model, self.epoch_mean = model, averaged_model, epoch_mean

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Update the averages, at an epoch's end before the validation, which needs them."""
        average(self.averaged_model, self.model, batch_idx)
        self.update_epoch_mean(trainer, batch_idx)

    def update_epoch_mean(self, trainer: pl.Trainer, batch_idx: int) -> None:
        """Update the mean over epochs after the last step of each epoch but the first."""
        is_last = batch_idx + 1 == trainer.num_training_batches
        if self.epoch_mean is not None and is_last and trainer.current_epoch > 0:
            self.epoch_mean.update(self.averaged_model, trainer.current_epoch + 1)
