"""The LightningDataModule: artifacts/features as batches.

The order of the rows follows from the seed and the epoch alone (training/loop/batches.py), and
every rank reads its own share of each global batch; so Lightning must not put a sampler in between
(`use_distributed_sampler=False`).
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytorch_lightning as pl

from common.numbers import ceil_div
from training.loop.batches import Batch, Batches
from training.loop.feature_batches import FeatureBatches


class FeatureData(FeatureBatches, pl.LightningDataModule):
    """The training and validation rows of artifacts/features, of each rank its share.

    Args:
        args: As of FeatureBatches.
    """

    def __init__(self, *args: Any) -> None:
        pl.LightningDataModule.__init__(self)
        FeatureBatches.__init__(self, *args)
        self.train_reader: ReadAhead | None = None

    def batch_of_step(self, step: int) -> Batch:
        """Return all ranks' rows of a step, counted from 0."""
        batches = self.train_batches()
        batches.rank, batches.world_size = 0, 1
        return next(batches.steps(step, step + 1))

    def setup(self, stage: str) -> None:
        """Open the training rows. Lightning calls this on every rank, when the ranks are known."""
        if stage == "fit":
            self.train_reader = ReadAhead(self.train_batches(), self.params.epochs)

    def train_dataloader(self) -> "TrainLoader":
        """Return the loader of the training batches."""
        assert self.train_reader is not None
        return TrainLoader(self.train_reader, self._current_epoch)

    def val_dataloader(self) -> "ValidationLoader":
        """Return the loader of the validation rows."""
        return ValidationLoader(self.valid_batches())

    def _current_epoch(self) -> int:
        return 0 if self.trainer is None else self.trainer.current_epoch

    def _rank(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size


class StepReader(Protocol):
    """Gives the batches of steps.

    Attributes:
        steps_per_epoch: The number of steps of an epoch.
    """

    steps_per_epoch: int

    def batch(self, step: int) -> Any:
        """Return the batch of a step, counted from 0 over all epochs."""


class ReadAhead:
    """The training batches of consecutive steps.

    The next pool of rows is read while one is trained on, also over the end of an epoch.

    Args:
        batches: The training rows.
        num_epochs: The number of epochs; nothing is read ahead after the last one.
    """

    def __init__(self, batches: Batches, num_epochs: int) -> None:
        self.steps_per_epoch = batches.steps_per_epoch
        self._batches = batches
        self._num_steps = num_epochs * batches.steps_per_epoch
        self._coming: Iterator[Batch] = iter(())
        self._next_step = -1

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, from 0, over all epochs; it reads ahead from that step on."""
        if step != self._next_step:
            self._coming = self._batches.steps(step, self._num_steps)
        self._next_step = step + 1
        return next(self._coming)


class TrainLoader:
    """The training batches of this rank; each iteration is the Trainer's current epoch.

    Its state is the epoch and the number of batches that it has given, so that Lightning resumes in
    the middle of an epoch.
    """

    def __init__(self, reader: StepReader, current_epoch: Callable[[], int]) -> None:
        self.reader, self.current_epoch = reader, current_epoch
        self.epoch = self.num_given = 0
        self._resumes = False

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return self.reader.steps_per_epoch

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of the epoch; after `load_state_dict`, those that are left."""
        epoch = self.current_epoch()
        start = self.num_given if self._resumes and self.epoch == epoch else 0
        self.epoch, self._resumes = epoch, False
        first_step = epoch * len(self)
        for number in range(start, len(self)):
            self.num_given = number + 1
            yield self.reader.batch(first_step + number)

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the number of its batches that have been given."""
        return {"epoch": self.epoch, "num_given": self.num_given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration continue after the batches that had been given."""
        self.epoch, self.num_given = state["epoch"], state["num_given"]
        self._resumes = True


class ValidationLoader:
    """The validation batches of a rank; all ranks have the same number, the last may be empty."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        """Return the number of batches of each rank."""
        return ceil_div(self.batches.steps_per_epoch, self.batches.world_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches in file order."""
        return self.batches.rounds()
