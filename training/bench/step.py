"""The training step of `TrainDLRM` without Lightning, with a clock around the tables.

`clickmill bench` needs the time of the tables alone, and the benchmarks compare a step without
Lightning with other libraries' steps. A test holds that it gives the same weights as
`TrainDLRM.training_step`.
"""

import time
from collections.abc import Callable
from typing import cast

from common.config.params import Train
from training.kernels.memory_hints import keep_memory
from training.loop.batches import Rows
from training.loop.losses import Loss
from training.models.dlrm import DLRM
from training.models.embedding_tables import EmbeddingTables
from training.optim.dense_optimizers import make_dense_optimizer
from training.optim.embedding_optimizers import make_embedding_optimizer, update_tables


class Step:
    """A training step; calling it trains the model on a batch.

    Args:
        model: The model that learns.
        loss: The loss that is minimised.
        params: The section `train` of params.yaml.
        sync: Waits for the device; it is called before the clock is read.

    Attributes:
        tables_s: Seconds that embedding lookups and updates of the tables have taken so far.
    """

    def __init__(
        self, model: DLRM, loss: Loss, params: Train, sync: Callable[[], None] = lambda: None
    ) -> None:
        keep_memory()
        self.model, self.loss, self.params, self.sync = model, loss, params, sync
        self.dense_optimizer = make_dense_optimizer(
            params.dense_optimizer, [p for p in model.parameters() if p.requires_grad]
        )
        self.tables = [cast(EmbeddingTables, tables) for tables in model.embeddings.tables]
        self.embedding_optimizers = [
            make_embedding_optimizer(params.embedding_optimizer.name, tables)
            for tables in self.tables
        ]
        self.tables_s = 0.0

    def __call__(self, batch: Rows) -> None:
        """Train the model on a batch."""
        dense_BN, ids_BF, labels_B, bags, weights_B, _ = batch
        embeddings = self.model.embeddings
        started_s = self._now()
        selections = embeddings.selections(ids_BF, bags)
        rows = [rows_k.requires_grad_() for rows_k in embeddings.lookup(selections)]
        looked_up_s = self._now()
        total_weight = len(labels_B) if weights_B is None else weights_B.sum()
        loss = self.loss(self.model.logits(dense_BN, rows, bags), labels_B, weights_B)
        loss = loss / total_weight
        self.dense_optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.dense_optimizer.step()
        learned_s = self._now()
        grads = [rows_k.grad for rows_k in rows if rows_k.grad is not None]
        lr = self.params.embedding_optimizer.lr
        for tables, optimizer, selection, of_group in zip(
            self.tables,
            self.embedding_optimizers,
            selections,
            embeddings.of_groups(grads),
            strict=True,
        ):
            update_tables(optimizer, tables, selection, of_group, lr)
        self.tables_s += looked_up_s - started_s + self._now() - learned_s

    def _now(self) -> float:
        self.sync()
        return time.perf_counter()
