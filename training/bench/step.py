"""A training step on one device without Lightning: what TrainDLRM.train_on does, taken apart for a stopwatch."""

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
from training.optim.embedding_optimizers import make_embedding_optimizer


class Step:
    """Calling it trains `model` on a batch. tables_s: seconds that looking up and updating table rows took since the start.

    sync: waits for the device, before every look at the clock.
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
        dense_BN, ids_BF, labels_B = batch
        started_s = self._now()
        ids = self.model.embeddings.ids(ids_BF)
        rows = [rows_k.requires_grad_() for rows_k in self.model.embeddings.lookup(ids)]
        looked_up_s = self._now()
        loss = self.loss(self.model.logits(dense_BN, rows), labels_B) / len(labels_B)
        self.dense_optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.dense_optimizer.step()
        learned_s = self._now()
        for tables, optimizer, ids_k, rows_k in zip(
            self.tables, self.embedding_optimizers, ids, rows, strict=True
        ):
            assert rows_k.grad is not None
            optimizer.step(tables, ids_k, rows_k.grad, self.params.embedding_optimizer.lr)
        self.tables_s += looked_up_s - started_s + self._now() - learned_s

    def _now(self) -> float:
        self.sync()
        return time.perf_counter()
