"""Embedding tables spread over the ranks, behind the interface of EmbeddingTables.

A step asks for its rows, makes them leaves of the graph as it does with rows of its own, and hands their gradients back. For sharded
tables TorchRec carries ids, rows and gradients from rank to rank (all-to-all), and FBGEMM's fused optimizer, where the row is, adds up
its gradients and takes the step.

Shapes: B this rank's rows of a batch, F categorical fields, K of them that lie alike, D embedding dim, R rows of all replicated tables.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torchrec import KeyedJaggedTensor
from torchrec.distributed.comm_ops import set_gradient_division
from torchrec.distributed.types import ShardingEnv

from training.distributed.sharding.planner import REPLICATED, Placed, Sharder
from training.distributed.sharding.row_permutation import deal, places_of, shards_of, stride_of
from training.models.embedding_tables import EmbeddingTables, Tables
from training.optim.embedding_optimizers import (
    EmbeddingOptimizer,
    add_rows,
    make_embedding_optimizer,
)


class Replicated:
    """Tables that every rank has. To the optimizer they are one table, each row of which takes one step with the gradient that all
    ranks' rows add up to; a row that nobody looked up has the gradient 0, and stays as it is."""

    def __init__(
        self, sizes: Sequence[int], dim: int, optimizer: str, device: torch.device
    ) -> None:
        starts = [0, *accumulate(sizes)]
        self.spans = list(pairwise(starts))
        self.starts_K = torch.tensor(starts[:-1], device=device)
        self.tables = EmbeddingTables([starts[-1]], dim, torch.Generator()).to(device)
        self.optimizer = make_embedding_optimizer(optimizer, self.tables).to(device)

    def set_lr(self, lr: float) -> None:
        pass

    def look_up(self, ids_BK: Tensor) -> Tensor:
        self.rows = (ids_BK + self.starts_K).view(-1, 1)
        found_XD: Tensor = self.tables(self.rows)
        return found_XD.view(*ids_BK.shape, self.tables.embedding_dim)

    def step(self, grad_BKD: Tensor, lr: float) -> None:
        weight_RD = self.tables.weight
        grad_RD = add_rows(
            torch.zeros_like(weight_RD), self.rows.squeeze(1), grad_BKD.flatten(0, 1)
        )
        dist.all_reduce(grad_RD)
        every_R1 = torch.arange(len(weight_RD), device=weight_RD.device).unsqueeze(1)
        self.optimizer.step(self.tables, every_R1, grad_RD.unsqueeze(1), lr)

    def weights(self) -> list[Tensor]:
        return [self.tables.weight[start:end] for start, end in self.spans]

    def sums(self) -> list[Tensor]:
        return [part[start:end] for part in self.optimizer.buffers() for start, end in self.spans]


class Sharded:
    """Tables of whose rows this rank has some, all or none."""

    def __init__(
        self, names: Sequence[str], placed: Placed, optimizer: str, device: torch.device
    ) -> None:
        set_gradient_division(
            False
        )  # what comes here are gradients of the mean over all ranks' rows
        env = ShardingEnv.from_process_group(dist.group.WORLD)
        self.names = names
        self.module = Sharder(optimizer).shard(placed.collection, placed.shardings, env, device)

    def set_lr(self, lr: float) -> None:
        """Of the step that follows the next look-up: FBGEMM takes note of it as it looks up."""
        optimizer = self.module.fused_optimizer
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()  # takes none: it tells the kernels

    def look_up(self, ids_BK: Tensor) -> Tensor:
        """Told as one bag of B ids a table, of which nothing is summed up: an id goes to the rank of its row, and the row comes back."""
        B, K = ids_BK.shape
        found = self.module(
            KeyedJaggedTensor(
                list(self.names),
                ids_BK.T.flatten(),
                lengths=ids_BK.new_full((K,), B, dtype=torch.int32),
            )
        )
        self.found_BKD = torch.stack([found[name].values() for name in self.names], dim=1)
        return self.found_BKD.detach()

    def step(self, grad_BKD: Tensor, lr: float) -> None:
        """lr: set_lr had it."""
        torch.autograd.backward(self.found_BKD, grad_BKD)
        del self.found_BKD

    def weights(self) -> list[Any]:
        """To read and, before the next look-up, to write: no row is left in a cache, where tables have one."""
        state = self.module.state_dict()  # writes cached rows back
        for look_up in self.module._lookups:
            look_up.purge()
        return [state[f"embeddings.{name}.weight"] for name in self.names]

    def sums(self) -> list[Any]:
        """Of row-wise Adagrad. A rank without rows of a table has nothing to name for it."""
        state = self.module.fused_optimizer.state_dict()["state"]
        return [
            state.get(f"embeddings.{name}.weight", {}).get(f"{name}.momentum1")
            for name in self.names
        ]


class ShardedTables(Tables):
    """Each table as `placed` says, its rows dealt out (training/distributed/sharding/row_permutation.py); a rank draws the values of all, one table after the
    other, and keeps its own.

    What is replicated or sharded is held out of this module's children: DDP would copy the first rank's shards over the others', and the
    dense optimizer would take them for layers.
    """

    def __init__(
        self,
        cardinalities: Sequence[int],
        embedding_dim: int,
        generator: torch.Generator,
        bounds: Sequence[float] | None = None,
        *,
        placed: Placed,
        optimizer: str,
        device: torch.device,
    ) -> None:
        super().__init__(cardinalities, embedding_dim, generator, bounds)
        replicated = [k for k, kind in enumerate(placed.kinds) if kind == REPLICATED]
        sharded = [k for k, kind in enumerate(placed.kinds) if kind != REPLICATED]
        self.held: list[tuple[list[int], Replicated | Sharded]] = []
        if replicated:
            self.held.append(
                (
                    replicated,
                    Replicated(
                        [cardinalities[k] for k in replicated], embedding_dim, optimizer, device
                    ),
                )
            )
        if sharded:
            self.held.append(
                (sharded, Sharded([placed.names[k] for k in sharded], placed, optimizer, device))
            )
        self.numbers_F, self.sizes_F = (
            torch.arange(len(cardinalities), device=device),
            torch.tensor(cardinalities, device=device),
        )
        self.strides_F = torch.tensor(list(map(stride_of, cardinalities)), device=device)
        self._draw(generator)

    def _draw(self, generator: torch.Generator) -> None:
        weights = self.parts()
        for k, ((start, end), bound) in enumerate(zip(self.spans, self.bounds, strict=True)):
            values = torch.empty(end - start, self.embedding_dim).uniform_(
                -bound, bound, generator=generator
            )
            self.put(k, weights[f"{k}.weight"], values)

    def put(self, k: int, part: Any, values: Tensor) -> None:
        deal(k, part, values)

    def forward(self, ids_BF: Tensor) -> Tensor:
        """Collective: every rank calls it, with as many rows as it has."""
        self.check(ids_BF)
        places_BF = places_of(ids_BF, self.numbers_F, self.sizes_F, self.strides_F).int()
        rows_BFD = torch.empty(*ids_BF.shape, self.embedding_dim, device=ids_BF.device)
        for columns, held in self.held:
            rows_BFD[:, columns] = held.look_up(places_BF[:, columns])
        return rows_BFD

    def check(self, ids_BF: Tensor) -> None:
        """Raises IndexError, on a CPU, for an id outside its column's table: it would be another row's place."""
        if ids_BF.device.type == "cpu" and bool(((ids_BF < 0) | (ids_BF >= self.sizes_F)).any()):
            raise IndexError("an id of the batch lies outside its table")

    def parts(self) -> dict[str, Any]:
        return {
            f"{k}.weight": part
            for columns, held in self.held
            for k, part in zip(columns, held.weights(), strict=True)
        }

    def sums(self) -> dict[str, Any]:
        found = {
            f"{k}.sums": part
            for columns, held in self.held
            for k, part in zip(columns, held.sums(), strict=False)
        }
        return {name: part for name, part in found.items() if part is not None}

    def make_optimizer(self) -> "FusedOptimizer":
        return FusedOptimizer()


class FusedOptimizer(EmbeddingOptimizer):
    """Steps where the rows are. It has no state of its own: the tables' `sums` are with the rows."""

    def before_look_up(self, tables: Tables, lr: float) -> None:
        assert isinstance(tables, ShardedTables)
        for _, held in tables.held:
            held.set_lr(lr)

    def step(self, tables: Tables, ids_BF: Tensor, grad_BFD: Tensor, lr: float) -> None:
        """Collective. ids_BF and grad_BFD: this rank's rows of the batch, those that were looked up last."""
        assert isinstance(tables, ShardedTables)
        for columns, held in tables.held:
            held.step(grad_BFD[:, columns], lr)

    def reset_parameters(self, tables: Tables) -> None:
        for part in self.parts(tables).values():
            for _, rows in shards_of(part):
                rows.zero_()

    def parts(self, tables: Tables) -> dict[str, Any]:
        assert isinstance(tables, ShardedTables)
        return tables.sums()
