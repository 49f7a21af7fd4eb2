"""The training step: one backward pass, the dense layers and the tables each with their own optimizer."""

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from common.config.params import Train
from common.logs import get_logger
from common.progress import Progress
from training.distributed.collectives import gather_rows, concatenate, min_over_ranks
from training.distributed.sharding.table_checkpoint import Saved, restore
from training.loop.batches import Batch, share
from training.loop.divergence import diverged
from training.loop.embedding_reset import restart
from training.loop.losses import Loss, logloss
from training.loop.schedule import Plan, lr_factor
from training.loop.training_curves import Meter, Point
from training.loop.warm_start import Start
from training.loop.weight_averaging import EpochMean, average, twin_of
from training.models.dlrm import DLRM
from training.models.embedding_tables import EmbeddingTables, Tables
from training.optim.dense_optimizers import make_dense_optimizer
from training.optim.embedding_optimizers import EmbeddingOptimizer, make_embedding_optimizer
from training.optim.gradient_clipping import clip_gradients

log = get_logger("train")


class TrainDLRM(pl.LightningModule):
    """Trains a model by a plan; `step` counts the steps done, `history` holds the curves.

    loss: what is minimised; the curves and the choice of weights go by logloss. root: where runs/ is.
    progress: counts the rows of the global batches; None on all ranks but the first. start: what the model's weights began with.
    """

    progress: Progress | None = None
    start: Start | None = None

    def __init__(self, model: DLRM, loss: Loss, params: Train, plan: Plan, root: Path) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model, self.loss, self.params, self.plan, self.root = model, loss, params, plan, root
        self.embedding_optimizers = nn.ModuleList(
            make_embedding_optimizer(params.embedding_optimizer.name, tables)  # type: ignore[arg-type]
            for tables in model.embeddings.tables
        )
        self.sharded = not all(
            isinstance(tables, EmbeddingTables) for tables in model.embeddings.tables
        )
        self.average = twin_of(model) if params.weight_averaging else None
        self.mean: EpochMean | None = None  # from the end of the second epoch on
        self.restarts = params.reset_embeddings_each_epoch and params.epochs > 1
        self.train_meter, self.valid_meter = Meter(), Meter(with_auc=True)
        self.history: list[Point] = []
        self.step = 0
        self.optimizer_state: dict[str, Any] | None = None
        self.num_finite = torch.zeros(
            (), dtype=torch.int64
        )  # losses since the last point, of this rank

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Of the dense layers; the tables take no gradient of their own."""
        optimizer = make_dense_optimizer(
            self.params.dense_optimizer, [p for p in self.model.parameters() if p.requires_grad]
        )
        if self.optimizer_state:
            optimizer.load_state_dict(self.optimizer_state)
        return optimizer

    def training_step(self, batches: Iterator[Batch]) -> None:
        for batch in batches:
            self.train_on(batch.to(self.device))

    def train_on(self, batch: Batch) -> None:
        """A step of the global batch: its mean loss, whatever share of it this rank has."""
        optimizer = self.optimizers(
            use_pl_optimizer=False
        )  # Lightning's counts steps, which `step` does here, at 0.1 ms a step
        assert isinstance(optimizer, torch.optim.Optimizer)
        factor, step_of_epoch = (
            lr_factor(self.step, self.plan.num_steps, self.params),
            self.step % self.plan.steps_per_epoch,
        )
        if self.restarts and self.step and not step_of_epoch:
            restart(self.model.embeddings.tables, self.embedding_optimizers)
            if self.start:
                self.start.rows_into(self.model)
        for tables, embedding_optimizer in self._tables():
            embedding_optimizer.before_lookup(tables, self.params.embedding_optimizer.lr * factor)
        optimizer.zero_grad()
        ids, grads = self._backward(batch)
        if self.params.max_grad_norm is not None:
            others = (
                {"all_gather": partial(gather_rows, num_rows=batch.num_rows)}
                if self.sharded
                else {}
            )
            clip_gradients(self.params.max_grad_norm, self.model, ids, grads, **others)
        for group in optimizer.param_groups:
            group["lr"] = self.params.dense_optimizer.lr * factor
        optimizer.step()
        for (tables, embedding_optimizer), ids_k, grad_k in zip(
            self._tables(), ids, grads, strict=True
        ):
            embedding_optimizer.step(
                tables, ids_k, grad_k, self.params.embedding_optimizer.lr * factor
            )
        if self.average is not None:
            average(self.average, self.model, step_of_epoch)
        self.step += 1
        if self.restarts and not self.step % self.plan.steps_per_epoch:
            self._end_epoch(self.step // self.plan.steps_per_epoch)
        if self.plan.records_at(self.step):
            self._record("train", self.train_meter)
        if self.progress:
            self.progress.update(batch.num_rows)

    def _end_epoch(self, epoch: int) -> None:
        """What is judged becomes the mean over the epochs. The dense layers that go on learning are others, and the tables begin again."""
        if self.average is not None and epoch > 1:
            if self.mean is None:
                self.mean = EpochMean(self.average)
            self.mean.take_in(self.average, epoch)

    def _tables(self) -> Iterator[tuple[Tables, EmbeddingOptimizer]]:
        for tables, optimizer in zip(
            self.model.embeddings.tables, self.embedding_optimizers, strict=True
        ):
            assert isinstance(tables, Tables)
            assert isinstance(optimizer, EmbeddingOptimizer)
            yield tables, optimizer

    def _backward(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """The gradient of the mean loss: the dense layers' in their .grad; for each tables, its ids and its looked-up rows' gradients,
        of all ranks if the rows are replicated, else of this rank. The layers' memory is what one of train.accumulate_grad_batches parts takes."""
        ids = self.model.embeddings.ids(batch.rows.ids)
        rows = self.model.embeddings.lookup(ids)
        parts = [
            self._backward_part(batch, rows, k) for k in range(self.params.accumulate_grad_batches)
        ]
        grads = [concatenate(of_tables) for of_tables in zip(*parts, strict=True)]
        if self.trainer.world_size > 1:
            for grad in grads:
                grad /= self.trainer.world_size  # as DDP has done with the dense layers'
        if self.sharded:
            return ids, grads
        return [gather_rows(ids_k, batch.num_rows) for ids_k in ids], [
            gather_rows(grad, batch.num_rows) for grad in grads
        ]

    def _backward_part(self, batch: Batch, rows: list[Tensor], k: int) -> list[Tensor]:
        part = share(len(batch.rows.labels), k, self.params.accumulate_grad_batches)
        dense_BN, _, labels_B = batch.rows.part(part.start, part.stop)
        leaves = [rows_k[part].detach().requires_grad_() for rows_k in rows]
        logits_B = self.model.logits(dense_BN, leaves)
        loss_sum = self.loss(logits_B, labels_B)
        self._watch(loss_sum)
        self.train_meter.add(
            loss_sum if self.loss is logloss else logloss(logits_B.detach(), labels_B),
            logits_B,
            labels_B,
        )
        loss = loss_sum * (self.trainer.world_size / batch.num_rows)
        if self.trainer.world_size == 1 or k < self.params.accumulate_grad_batches - 1:
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            self.manual_backward(
                loss
            )  # here DDP takes the mean over the ranks of what all parts have added up
        return [leaf.grad for leaf in leaves if leaf.grad is not None]

    def _watch(self, loss_sum: Tensor) -> None:
        """Alone on a CPU a loss that is not finite stops the run before its step. Elsewhere nothing waits: the finite ones are counted."""
        if self.trainer.world_size > 1 or loss_sum.is_cuda:
            self.num_finite = self.num_finite + loss_sum.detach().isfinite()
        elif not math.isfinite(loss := loss_sum.item()):
            raise diverged(self, f"train loss {loss}", self.step + 1)

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Left to the steps, which take their batches when they need them."""
        return batch

    def validation_step(self, batch: Batch) -> None:
        dense_BN, ids_BF, labels_B = batch.to(self.device).rows
        logits_B = self.judged(dense_BN, ids_BF)
        self.valid_meter.add(logloss(logits_B, labels_B), logits_B, labels_B)

    def on_validation_epoch_end(self) -> None:
        point = self._record("valid", self.valid_meter)
        if self.trainer.is_global_zero:
            area = "none" if point.auc is None else f"{point.auc:.4f}"
            log.info(
                f"validation at step {point.step:,}: loss {point.loss:.4f}, accuracy {point.accuracy:.4f}, AUC {area}"
            )
        self.trainer.should_stop = self.done
        if self.progress and self.done and self.step < self.plan.num_steps:
            self.progress.stopped = True
            log.info(
                f"stops at step {self.step:,} of {self.plan.num_steps:,}: step {self.best.step:,} stays the best"
            )

    @property
    def judged(self) -> DLRM:
        """What is validated and kept."""
        return self.model if self.average is None else self.average

    @property
    def best(self) -> Point:
        """The validation with the lowest loss, the first such."""
        return min(
            (point for point in self.history if point.split == "valid"),
            key=lambda point: point.loss,
        )

    @property
    def done(self) -> bool:
        """All steps are, or the last train.early_stopping_patience validations were none better than one before."""
        since_best = [
            p
            for p in self.history
            if p.split == "valid" and p.step > self.best.step and self._tells(p)
        ]
        return self.step == self.plan.num_steps or (
            self.params.early_stopping_patience is not None
            and len(since_best) >= self.params.early_stopping_patience
        )

    def _tells(self, point: Point) -> bool:
        """Whether a validation that is not better speaks for a stop; after a restart one in the middle of an epoch does not."""
        return not self.restarts or point.step % self.plan.steps_per_epoch == 0

    def state(self) -> dict[str, Any]:
        """All that a run has come to, to go on from at the same point of the curves. Nothing is drawn at random after the start."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        history = [list(point) for point in self.history]
        return {
            "step": self.step,
            "history": history,
            "weights": self.state_dict(),
            "optimizer": optimizer.state_dict(),
        }

    def go_on_from(self, state: dict[str, Any], tables: Saved | None) -> None:
        """Take over what state() gave, and the tables where they were sharded, before the fit. Collective."""
        self.step, self.optimizer_state = state["step"], state["optimizer"]
        self.history = [Point(*values) for values in state["history"]]
        if any(name.startswith("mean.") for name in state["weights"]):
            assert self.average is not None
            self.mean = EpochMean(self.average)
        restore(self, state["weights"], tables)

    def _record(self, split: str, meter: Meter) -> Point:
        """A point of the curve from what the meter has."""
        point = Point(self.step, split, *meter.mean())
        if not math.isfinite(point.loss):
            raise diverged(
                self,
                f"{split} loss {point.loss}",
                self._first_not_finite() if split == "train" else self.step,
            )
        if not all(
            weight.isfinite().all() for weight in self.model.parameters() if weight.requires_grad
        ):
            raise diverged(
                self, "a weight that is no number", self.step
            )  # a ReLU may hide it from the loss
        self.num_finite = torch.zeros_like(self.num_finite)
        self.history.append(point)
        if self.logger:
            measured = {"loss": point.loss, "accuracy": point.accuracy} | (
                {} if point.auc is None else {"auc": point.auc}
            )
            self.logger.log_metrics(
                {f"{split}/{name}": value for name, value in measured.items()}, step=point.step
            )
        return point

    def _first_not_finite(self) -> int:
        """The step, from 1, whose loss was the first since the last point that was no number."""
        last_point = max(
            (point.step for point in self.history if point.split == "train"), default=0
        )
        return (
            last_point
            + min_over_ranks(self.num_finite) // self.params.accumulate_grad_batches
            + 1
        )
