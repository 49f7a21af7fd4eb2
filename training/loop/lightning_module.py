"""The LightningModule: the training step and the validation step of a DLRM.

Optimization is manual, because the dense layers have a PyTorch optimizer while the embedding tables
have sparse optimizers of their own. Any `pl.Trainer` can fit it; `training.stage.make_trainer`
makes the one that the train stage uses. Averaged weights, embedding resets and the training curve
are callbacks, which the module adds to any Trainer (`configure_callbacks`).

Shapes: B this rank's rows of a batch, N dense columns, F categorical fields with one value.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from common.config.params import Train
from training.distributed.collectives import gather_rows, gather_uneven
from training.distributed.gathered_reads import gather_gradients, gather_reads
from training.distributed.sharding.table_checkpoint import (
    Saved,
    is_of_tables,
    parts_of,
    restore,
    saved_tables,
    write_parts,
)
from training.loop.averaging_callback import WeightAveraging
from training.loop.batches import Batch
from training.loop.callbacks import TrainingCurves, ValidateAtEpochEnd
from training.loop.diverged import Diverged
from training.loop.embedding_reset import EmbeddingReset
from training.loop.losses import Loss, logloss
from training.loop.schedule import Schedule, lr_factor
from training.loop.step_loss import StepLoss
from training.loop.training_curves import RunningMetrics
from training.loop.warm_start import WarmStart
from training.loop.weight_averaging import EpochMean, averaged_model_of, dense_weights
from training.models.dlrm import DLRM
from training.models.embedding_tables import EmbeddingTables, Tables
from training.models.reads import Reads
from training.optim.dense_optimizers import make_dense_optimizer
from training.optim.embedding_optimizers import (
    EmbeddingOptimizer,
    make_embedding_optimizer,
    update_tables,
)
from training.optim.gradient_clipping import clip_gradients


class TrainDLRM(pl.LightningModule):
    """A DLRM with its optimizers and metrics.

    Args:
        model: The model that learns.
        loss: The loss that is minimised; metrics and the choice of weights use the logloss. With
            distillation it takes soft labels (`of_soft_labels`).
        params: The section `train` of params.yaml.
        schedule: The number of steps, and which of them a validation or a point of the training
            curve follows.
        warm_start: The bundle that the weights come from, if any; an embedding reset returns to its
            tables.

    Attributes:
        embedding_optimizers: The sparse optimizer of each group of embedding tables.
        averaged_model: The model with averaged dense weights and the same embedding tables; None
            without `weight_averaging`.
        epoch_mean: The mean of the averaged weights over epochs; None unless the embeddings are
            reset each epoch as well.
        curves: The callback that measures the training curve.
    """

    def __init__(
        self,
        model: DLRM,
        loss: Loss,
        params: Train,
        schedule: Schedule,
        warm_start: WarmStart | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model, self.loss, self.params, self.schedule = model, loss, params, schedule
        self.warm_start = warm_start
        self.resets_embeddings = params.reset_embeddings_each_epoch and params.epochs > 1
        optimizer_name = params.embedding_optimizer.name
        self.embedding_optimizers = nn.ModuleList(
            make_embedding_optimizer(optimizer_name, tables)  # type: ignore[arg-type]
            for tables in model.embeddings.tables
        )
        self.sharded = not all(
            isinstance(tables, EmbeddingTables) for tables in model.embeddings.tables
        )
        self.averaged_model: DLRM | None = None
        self.epoch_mean: EpochMean | None = None
        if params.weight_averaging:
            self.averaged_model = averaged_model_of(model)
            if self.resets_embeddings:
                self.epoch_mean = self.make_epoch_mean(self.averaged_model)
        self.train_metrics, self.valid_metrics = RunningMetrics(), RunningMetrics(with_auc=True)
        self.curves = TrainingCurves(
            model,
            schedule,
            self.train_metrics,
            self.valid_metrics,
            params.accumulate_grad_batches,
        )
        self.step_loss = StepLoss(model, loss, params, self.train_metrics)

    @property
    def is_consistent(self) -> bool:
        """Whether all weights are those of the same step, so that they may be saved."""
        return True

    def make_epoch_mean(self, averaged_model: DLRM) -> EpochMean:
        """Make the mean of the averaged weights over epochs."""
        return EpochMean(averaged_model)

    @property
    def exported_model(self) -> DLRM:
        """The model that is validated and exported: the averaged one if weights are averaged."""
        return self.model if self.averaged_model is None else self.averaged_model

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make the optimizer of the dense layers; the embedding tables have their own."""
        return make_dense_optimizer(self.params.dense_optimizer, dense_weights(self.model))

    def configure_callbacks(self) -> list[pl.Callback]:
        """Give the Trainer the callbacks that averages, embedding resets and curves need."""
        callbacks: list[pl.Callback] = [ValidateAtEpochEnd()]
        if self.resets_embeddings:
            callbacks.append(EmbeddingReset(self.model, self.embedding_optimizers, self.warm_start))
        if self.averaged_model is not None:
            callbacks.append(WeightAveraging(self.model, self.averaged_model, self.epoch_mean))
        return [*callbacks, self.curves]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Update all weights by the gradient of the global batch's mean loss.

        With sample weights w the mean is sum(w * loss) / sum(w), both over the global batch: a row
        of the weight 2 counts as two rows, and a factor of all weights changes nothing.

        Args:
            batch: This rank's share of the global batch.
            batch_idx: The number of the batch in its epoch, from 0.

        Raises:
            Diverged: The loss is NaN or infinite. Only on a single CPU; elsewhere the training
                curve finds it later.
        """
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        factor = lr_factor(self.global_step, self.schedule.num_steps, self.params)
        embedding_lr = self.params.embedding_optimizer.lr * factor
        for group in optimizer.param_groups:
            group["lr"] = self.params.dense_optimizer.lr * factor
        for tables, embedding_optimizer in self._tables():
            embedding_optimizer.before_lookup(tables, embedding_lr)

        optimizer.zero_grad()
        selections, grads = self._backward(batch)
        if self.params.max_grad_norm is not None:
            clip_gradients(
                self.params.max_grad_norm,
                self.model,
                selections,
                grads,
                gather_uneven if self.sharded else lambda of_all_ranks: of_all_ranks,
            )

        optimizer.step()
        for (tables, embedding_optimizer), selection, of_group in zip(
            self._tables(), selections, self.model.embeddings.of_groups(grads), strict=True
        ):
            update_tables(embedding_optimizer, tables, selection, of_group, embedding_lr)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch of validation rows to the validation metrics."""
        dense_BN, ids_BF, labels_B, bags, weights_B, _ = batch.rows
        logits_B = self.exported_model(dense_BN, ids_BF, bags)
        loss_sum = logloss(logits_B, labels_B, weights_B)
        self.valid_metrics.update(loss_sum, logits_B, labels_B, weights_B)

    def write_tables(self, directory: Path) -> dict[str, int]:
        """Write sharded tables into a new directory. Collective.

        Returns:
            The CRC-32 of each file.
        """
        parts = parts_of(self.model, self.embedding_optimizers, self.epoch_mean)
        return write_parts(directory, parts)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the embedding tables; Lightning restores the rest. Collective."""
        self.restore_tables(checkpoint["state_dict"], saved_tables(checkpoint))
        self._match_table_names(checkpoint["state_dict"])

    def restore_tables(self, weights: dict[str, Tensor], saved: Saved | None) -> None:
        """Restore the tables from `saved`, or from the weights of the module if it is None."""
        restore(self.model, self.embedding_optimizers, self.epoch_mean, weights, saved)

    def _match_table_names(self, weights: dict[str, Tensor]) -> None:
        """Give the weights of a checkpoint the same entries for tables as this module has.

        A checkpoint of sharded tables has no such entries, and a module with sharded tables has
        none.
        """
        own = self.state_dict()
        for name in [name for name in weights if name not in own and is_of_tables(name)]:
            del weights[name]
        for name in [name for name in own if name not in weights and is_of_tables(name)]:
            weights[name] = own[name]

    def _tables(self) -> Iterator[tuple[Tables, EmbeddingOptimizer]]:
        for tables, optimizer in zip(
            self.model.embeddings.tables, self.embedding_optimizers, strict=True
        ):
            assert isinstance(tables, Tables)
            assert isinstance(optimizer, EmbeddingOptimizer)
            yield tables, optimizer

    def _backward(self, batch: Batch) -> tuple[Sequence[Tensor | Reads], list[Tensor]]:
        """Compute the gradient of the mean loss; the dense layers' gradients are in their `.grad`.

        Returns:
            What was read from each group of tables, and the gradients of what was looked up: those
            of all ranks if the tables are replicated, those of this rank if they are sharded.
        """
        embeddings = self.model.embeddings
        selections = embeddings.selections(batch.rows.ids, batch.rows.bags)
        num_ranks = self.trainer.world_size
        grads = self.step_loss.backward(
            batch,
            selections,
            num_ranks,
            # DDP averages over the ranks what all parts have added up
            self.manual_backward,
            self._check_finite,
        )
        if num_ranks > 1:
            for grad in grads:
                grad /= num_ranks  # as DDP has done with the dense layers' gradients
        if self.sharded:
            return selections, grads
        gathered: list[Tensor | Reads] = []
        gathered_grads: list[Tensor] = []
        for selection, of_group in zip(selections, embeddings.of_groups(grads), strict=True):
            if isinstance(selection, Tensor):
                gathered.append(gather_rows(selection, batch.num_rows))
                gathered_grads += [gather_rows(grad, batch.num_rows) for grad in of_group]
            else:
                gathered.append(gather_reads(selection, batch.num_rows))
                gathered_grads += gather_gradients(of_group, batch.num_rows)
        return gathered, gathered_grads

    def _check_finite(self, loss_sum: Tensor) -> None:
        """Raise Diverged if the loss is NaN or infinite, before any weight is changed.

        With several ranks or on a GPU it does not look, because that would wait for the device.
        """
        if self.trainer.world_size > 1 or loss_sum.is_cuda:
            return
        loss = loss_sum.item()
        if not math.isfinite(loss):
            raise Diverged(self.global_step + 1, f"train loss {loss}")
