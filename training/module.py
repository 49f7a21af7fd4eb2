"""The training step: one backward pass, the dense layers and the tables each with their own optimizer."""

import math

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from features.params import ConfigError, Train
from features.progress import Progress
from training.averaging import average, twin_of
from training.batches import Batch
from training.curves import Meter, Point
from training.models.dlrm import DLRM
from training.models.tables import EmbeddingTables
from training.optim.dense import make_dense_optimizer
from training.optim.schedule import lr_factor
from training.optim.tables import TableOptimizer, make_table_optimizer
from training.replicas import gather_rows
from training.restarts import Restarts

POINTS = 100  # of the training curve, per run


class TrainDLRM(pl.LightningModule):
    """Trains a model for num_steps; afterwards `history` holds the curves and `best` the weights of the lowest validation loss.

    progress: counts the rows of the global batches; None on all ranks but the first.
    """

    def __init__(self, model: DLRM, params: Train, num_steps: int, progress: Progress | None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model, self.params, self.num_steps, self.progress = model, params, num_steps, progress
        self.table_optimizers = nn.ModuleList(
            make_table_optimizer(params.table_optimizer.name, tables)  # type: ignore[arg-type]
            for tables in model.embeddings.tables
        )
        self.judged = twin_of(model) if params.averaging else model  # what is validated and kept
        self.steps_per_epoch = num_steps // params.epochs
        self.restarts = Restarts(model.embeddings.tables, self.table_optimizers) if params.restart_tables and params.epochs > 1 else None
        self.train_meter, self.valid_meter = Meter(), Meter(with_auc=True)
        self.history: list[Point] = []
        self.best: dict[str, Tensor] = {}
        self.best_loss = math.inf

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Of the dense layers; the tables take no gradient of their own."""
        return make_dense_optimizer(self.params.dense_optimizer, [p for p in self.model.parameters() if p.requires_grad])

    def training_step(self, batch: Batch) -> None:
        """A step of the global batch: its mean loss, whatever share of it this rank has."""
        (dense_BN, ids_BF, labels_B), num_rows = batch
        optimizer = self.optimizers()
        assert isinstance(optimizer, pl.core.optimizer.LightningOptimizer)
        step_of_epoch = self.global_step % self.steps_per_epoch
        if self.restarts and self.global_step and not step_of_epoch:
            self.restarts.restart()
        factor = lr_factor(self.global_step, self.num_steps, self.params)
        ids = self.model.embeddings.ids(ids_BF)
        rows = [rows_k.requires_grad_() for rows_k in self.model.embeddings.look_up(ids)]
        logits_B = self.model.logits(dense_BN, rows)
        loss_sum = binary_cross_entropy_with_logits(logits_B, labels_B, reduction="sum")
        optimizer.zero_grad()
        self.manual_backward(loss_sum * (self.trainer.world_size / num_rows))  # DDP divides the dense gradients by world_size
        for group in optimizer.param_groups:
            group["lr"] = self.params.dense_optimizer.lr * factor
        optimizer.step()
        self._step_tables(ids, rows, num_rows, self.params.table_optimizer.lr * factor)
        if self.params.averaging:
            average(self.judged, self.model, step_of_epoch)
        self.train_meter.add(loss_sum, logits_B, labels_B)
        if self.global_step % max(1, self.num_steps // POINTS) == 0 or self.global_step == self.num_steps:
            self._record("train", self.train_meter)
        if self.progress:
            self.progress.update(num_rows)

    def _step_tables(self, ids: list[Tensor], rows: list[Tensor], num_rows: int, lr: float) -> None:
        """Every rank's ids and gradients, gathered, to each tables' optimizer."""
        for tables, optimizer, ids_k, rows_k in zip(self.model.embeddings.tables, self.table_optimizers, ids, rows, strict=True):
            assert isinstance(tables, EmbeddingTables)
            assert isinstance(optimizer, TableOptimizer)
            assert rows_k.grad is not None
            optimizer.step(tables, gather_rows(ids_k, num_rows), gather_rows(rows_k.grad, num_rows) / self.trainer.world_size, lr)

    def validation_step(self, batch: Batch) -> None:
        dense_BN, ids_BF, labels_B = batch.rows
        logits_B = self.judged(dense_BN, ids_BF)
        self.valid_meter.add(binary_cross_entropy_with_logits(logits_B, labels_B, reduction="sum"), logits_B, labels_B)

    def on_validation_epoch_end(self) -> None:
        """Keep the weights if they are the best so far: in memory on the first rank, a second copy of the tables."""
        point = self._record("valid", self.valid_meter)
        if self.trainer.is_global_zero:
            area = "none" if point.auc is None else f"{point.auc:.4f}"
            print(f"valid  step {point.step}  loss {point.loss:.4f}  accuracy {point.accuracy:.4f}  AUC {area}", flush=True)
            if point.loss < self.best_loss:
                self.best_loss = point.loss
                self.best = {name: weight.detach().to("cpu", copy=True) for name, weight in self.judged.state_dict().items()}

    def _record(self, split: str, meter: Meter) -> Point:
        point = Point(self.global_step, split, *meter.mean())
        if not math.isfinite(point.loss):
            raise ConfigError(
                f"training diverged: {split} loss {point.loss} at step {point.step} of {self.num_steps}, with params.yaml:"
                f" train.dense_optimizer.lr {self.params.dense_optimizer.lr} and train.table_optimizer.lr {self.params.table_optimizer.lr};"
                " lower them or raise train.warmup_steps"
            )
        self.history.append(point)
        if self.logger:
            measured = {"loss": point.loss, "accuracy": point.accuracy} | ({} if point.auc is None else {"auc": point.auc})
            self.logger.log_metrics({f"{split}/{name}": value for name, value in measured.items()}, step=point.step)
        return point
