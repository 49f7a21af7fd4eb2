"""Embedding tables that are distributed over the ranks, with the interface of EmbeddingTables.

A step looks up its rows, makes them leaves of the autograd graph and passes their gradients on, as
with tables of one device. For sharded tables TorchRec sends ids, rows and gradients from rank to
rank (all-to-all), and FBGEMM's fused optimizer updates a row on the rank that has it.

Shapes: B this rank's rows of a batch, F tables, K of them that are replicated or that are sharded,
D embedding dim, R rows of all replicated tables.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torchrec import KeyedJaggedTensor
from torchrec.distributed.comm_ops import set_gradient_division
from torchrec.distributed.types import ShardingEnv

from training.distributed.sharding.planner import REPLICATED, Placement, Sharder
from training.distributed.sharding.row_permutation import (
    permute,
    positions_of,
    shards_of,
    stride_of,
)
from training.kernels.read import Read
from training.models.embedding_tables import EmbeddingTables, Tables, drawn_blocks, moved_blocks
from training.models.reads import Reads, vectors_of
from training.optim.embedding_optimizers import (
    EmbeddingOptimizer,
    add_rows,
    make_embedding_optimizer,
)


class TableStore(Protocol):
    """K tables of one kind, with their optimizer: replicated or sharded ones."""

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the step whose rows are looked up next."""

    def lookup(self, positions_BK: Tensor) -> Tensor:
        """Return the rows at these positions, (B, K, D). Collective."""

    def step(self, grad_BKD: Tensor, lr: float) -> None:
        """Update the rows that were looked up last. Collective."""

    def lookup_lists(self, positions: Sequence[Tensor]) -> list[Tensor]:
        """Return the rows at these positions of each table, (V, D), differentiable. Collective.

        The gradient is passed by autograd, which is collective too. Then `step_lists` follows.
        """

    def step_lists(self, lr: float) -> None:
        """Update the rows that `lookup_lists` has returned. Collective."""

    def weights(self) -> list[Any]:
        """Return the rows of each table, as in Tables.parts."""

    def sums(self) -> list[Any]:
        """Return the accumulators of row-wise Adagrad, or None for tables that have none here."""


class ReplicatedTables:
    """Tables that every rank has.

    For the optimizer they are one table. In a step every row is updated, with the sum of all ranks'
    gradients; a row that no rank has looked up has the gradient 0 and stays as it is.
    """

    def __init__(
        self, cardinalities: Sequence[int], dim: int, optimizer: str, device: torch.device
    ) -> None:
        starts = [0, *accumulate(cardinalities)]
        self.spans = list(pairwise(starts))
        self.starts_K = torch.tensor(starts[:-1], device=device)
        self.tables = EmbeddingTables([starts[-1]], dim, torch.Generator()).to(device)
        self.optimizer = make_embedding_optimizer(optimizer, self.tables).to(device)

    def set_lr(self, lr: float) -> None:
        """Do nothing: `step` gets the learning rate."""

    def lookup(self, positions_BK: Tensor) -> Tensor:
        """Return the rows at these positions, (B, K, D)."""
        self.looked_up = (positions_BK + self.starts_K).view(-1, 1)
        rows: Tensor = self.tables(self.looked_up)
        return rows.view(*positions_BK.shape, self.tables.embedding_dim)

    def lookup_lists(self, positions: Sequence[Tensor]) -> list[Tensor]:
        """Return the rows at these positions of each table, (V, D), differentiable."""
        rows = [
            of_table.long() + start
            for of_table, (start, _) in zip(positions, self.spans, strict=True)
        ]
        self.looked_up = torch.cat(rows).unsqueeze(1)
        self.rows_VD = self.tables(self.looked_up).squeeze(1).requires_grad_()
        return list(self.rows_VD.split([len(of_table) for of_table in rows]))

    def step_lists(self, lr: float) -> None:
        """Update all rows by the sum of all ranks' gradients. Collective."""
        assert self.rows_VD.grad is not None
        self.step(self.rows_VD.grad.unsqueeze(1), lr)
        del self.rows_VD

    def step(self, grad_BKD: Tensor, lr: float) -> None:
        """Update all rows by the sum of all ranks' gradients. Collective."""
        weight_RD = self.tables.weight
        grad_RD = add_rows(
            torch.zeros_like(weight_RD), self.looked_up.squeeze(1), grad_BKD.flatten(0, 1)
        )
        dist.all_reduce(grad_RD)
        all_rows_R1 = torch.arange(len(weight_RD), device=weight_RD.device).unsqueeze(1)
        self.optimizer.step(self.tables, all_rows_R1, grad_RD.unsqueeze(1), lr)

    def weights(self) -> list[Any]:
        """Return the rows of each table, without a copy."""
        return [self.tables.weight[start:end] for start, end in self.spans]

    def sums(self) -> list[Any]:
        """Return the optimizer's state of each table, without a copy; an empty list for SGD."""
        return [state[start:end] for state in self.optimizer.buffers() for start, end in self.spans]


class TorchRecTables:
    """Tables of which this rank has some, all or no rows."""

    def __init__(
        self, names: Sequence[str], placement: Placement, optimizer: str, device: torch.device
    ) -> None:
        # TorchRec would divide the gradients by the number of ranks. Ours are those of the mean
        # over all ranks' rows already.
        set_gradient_division(False)
        env = ShardingEnv.from_process_group(dist.group.WORLD)
        self.names = names
        self.module = Sharder(optimizer).shard(
            placement.collection, placement.shardings, env, device
        )

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the step whose rows are looked up next.

        FBGEMM reads the rate during the lookup.
        """
        optimizer = self.module.fused_optimizer
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()  # updates no row: it passes the rate on to the kernels

    def lookup(self, positions_BK: Tensor) -> Tensor:
        """Return the rows at these positions, (B, K, D). Collective.

        TorchRec gets one bag of B ids per table, without pooling: each id goes to the rank that has
        the row, and the row comes back.
        """
        self.rows_BKD = torch.stack(self.lookup_lists(positions_BK.T.unbind()), dim=1)
        return self.rows_BKD.detach()

    def lookup_lists(self, positions: Sequence[Tensor]) -> list[Tensor]:
        """Return the rows at these positions of each table, (V, D), differentiable. Collective."""
        lengths = [len(of_table) for of_table in positions]
        jagged_rows = self.module(
            KeyedJaggedTensor(
                list(self.names),
                torch.cat(list(positions)),
                lengths=torch.tensor(lengths, dtype=torch.int32, device=positions[0].device),
            )
        )
        return [jagged_rows[name].values() for name in self.names]

    def step_lists(self, lr: float) -> None:
        """Do nothing: autograd has updated the rows, with the rate of `set_lr`."""

    def step(self, grad_BKD: Tensor, lr: float) -> None:
        """Update the rows that were looked up last, with the rate of `set_lr`. Collective."""
        torch.autograd.backward(self.rows_BKD, grad_BKD)
        del self.rows_BKD

    def weights(self) -> list[Any]:
        """Return the rows of each table, to be read, or written before the next lookup.

        Rows in a cache on the device are written back first, and the cache is emptied.
        """
        state = self.module.state_dict()  # writes cached rows back
        for lookup in self.module._lookups:
            lookup.purge()
        return [state[f"embeddings.{name}.weight"] for name in self.names]

    def sums(self) -> list[Any]:
        """Return the accumulators of row-wise Adagrad; None if this rank has no rows of a table."""
        state = self.module.fused_optimizer.state_dict()["state"]
        return [
            state.get(f"embeddings.{name}.weight", {}).get(f"{name}.momentum1")
            for name in self.names
        ]


class ShardedTables(Tables):
    """Tables that are placed as `placement` says, with permuted rows (row_permutation.py).

    Each rank draws the initial values of all tables, one block of rows after the other, and keeps
    its own rows.

    The stores are not children of this module: DDP would copy the first rank's shards to the
    others, and the dense optimizer would treat them as dense layers.
    """

    def __init__(
        self,
        cardinalities: Sequence[int],
        embedding_dim: int,
        generator: torch.Generator,
        bounds: Sequence[float] | None = None,
        *,
        placement: Placement,
        optimizer: str,
        device: torch.device,
    ) -> None:
        super().__init__(cardinalities, embedding_dim, generator, bounds)
        replicated = [k for k, kind in enumerate(placement.kinds) if kind == REPLICATED]
        sharded = [k for k, kind in enumerate(placement.kinds) if kind != REPLICATED]
        self.stores: list[tuple[list[int], TableStore]] = []  # with the columns of each
        if replicated:
            rows = [cardinalities[k] for k in replicated]
            store = ReplicatedTables(rows, embedding_dim, optimizer, device)
            self.stores.append((replicated, store))
        if sharded:
            names = [placement.names[k] for k in sharded]
            self.stores.append((sharded, TorchRecTables(names, placement, optimizer, device)))
        self.cardinalities = list(cardinalities)
        self.numbers_F = torch.arange(len(cardinalities), device=device)
        self.cardinalities_F = torch.tensor(cardinalities, device=device)
        self.strides_F = torch.tensor(list(map(stride_of, cardinalities)), device=device)
        self._draw(generator)

    def _draw(self, generator: torch.Generator) -> None:
        weights = self.parts()
        for k, ((start, end), bound) in enumerate(zip(self.spans, self.bounds, strict=True)):
            part = weights[f"{k}.weight"]
            for first, values in drawn_blocks(end - start, self.embedding_dim, bound, generator):
                permute(k, part, values, first)

    def load_rows(self, k: int, part: Any, values: Tensor) -> None:
        for first, block in moved_blocks(values):
            permute(k, part, block, first)

    def forward(self, ids_BF: Tensor) -> Tensor:
        """Look up rows, (B, F, D). Collective: every rank calls it with its share of the batch.

        Raises:
            IndexError: On a CPU, if an id is outside its column's table.
        """
        self._check_ids(ids_BF)
        positions_BF = positions_of(
            ids_BF, self.numbers_F, self.cardinalities_F, self.strides_F
        ).int()
        rows_BFD = torch.empty(*ids_BF.shape, self.embedding_dim, device=ids_BF.device)
        for columns, store in self.stores:
            rows_BFD[:, columns] = store.lookup(positions_BF[:, columns])
        return rows_BFD

    def read(self, reads: Reads) -> list[Tensor]:
        """Look up vectors. Collective: every rank calls it with its share of the batch.

        The rows of all values are sent to the rank that asks for them, and pooled there.

        Raises:
            IndexError: On a CPU, if an id is outside its table.
        """
        each_read = [*reads.columns, *reads.lists]
        numbers_of_tables: list[list[int]] = [[] for _ in self.spans]
        for number, read in enumerate(each_read):
            numbers_of_tables[read.table].append(number)
        positions = [self._positions_of(read) for read in each_read]
        rows_of: dict[int, Tensor] = {}
        for columns, store in self.stores:
            of_tables = [
                torch.cat([positions[number] for number in numbers_of_tables[k]]) for k in columns
            ]
            for k, rows_VD in zip(columns, store.lookup_lists(of_tables), strict=True):
                numbers = numbers_of_tables[k]
                sizes = [len(positions[number]) for number in numbers]
                parts = rows_VD.split(sizes)  # type: ignore[no-untyped-call]
                rows_of |= dict(zip(numbers, parts, strict=True))
        self.rows_of_reads = [rows_of[number] for number in range(len(each_read))]
        vectors = list(map(vectors_of, self.rows_of_reads, each_read))
        K = len(reads.columns)
        if K:
            columns_BKD = torch.stack(vectors[:K], dim=1)
        else:
            columns_BKD = torch.empty(
                reads.num_rows, 0, self.embedding_dim, device=self.offsets.device
            )
        self.outputs = [columns_BKD, *vectors[K:]]
        return [output.detach().clone() for output in self.outputs]

    def _positions_of(self, read: Read) -> Tensor:
        num_rows = int(self.cardinalities[read.table])
        is_invalid_V = (read.values < 0) | (read.values >= num_rows)
        if read.values.device.type == "cpu" and bool(is_invalid_V.any()):
            raise IndexError(f"an id of the batch is outside its table {read.table}")
        return positions_of(read.values, read.table, num_rows, stride_of(num_rows)).int()

    def value_gradients(self, reads: Reads, grads: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the row and the gradient of each value that this rank has looked up last."""
        outputs, of_outputs = self._differentiable(grads)
        of_values = torch.autograd.grad(outputs, self.rows_of_reads, of_outputs, retain_graph=True)
        rows = [
            read.values.long() + self.spans[read.table][0]
            for read in (*reads.columns, *reads.lists)
        ]
        return torch.cat(rows), torch.cat(of_values)

    def backward(self, grads: Sequence[Tensor]) -> None:
        """Pass the gradients of what `read` returned to the ranks with the rows. Collective."""
        torch.autograd.backward(*self._differentiable(grads))
        del self.outputs, self.rows_of_reads

    def _differentiable(self, grads: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the outputs of `read` that depend on rows, and their gradients."""
        pairs = [
            (output, grad)
            for output, grad in zip(self.outputs, grads, strict=True)
            if output.requires_grad
        ]
        return [output for output, _ in pairs], [grad for _, grad in pairs]

    def _check_ids(self, ids_BF: Tensor) -> None:
        """Check the ids: modulo the size of a table, a wrong id would select another row."""
        is_invalid_BF = (ids_BF < 0) | (ids_BF >= self.cardinalities_F)
        if ids_BF.device.type == "cpu" and bool(is_invalid_BF.any()):
            raise IndexError("an id of the batch is outside its table")

    def parts(self) -> dict[str, Any]:
        return {
            f"{k}.weight": weight
            for columns, store in self.stores
            for k, weight in zip(columns, store.weights(), strict=True)
        }

    def sums(self) -> dict[str, Any]:
        """Return the accumulators of row-wise Adagrad under the name `k.sums`, without a copy."""
        return {
            f"{k}.sums": sums
            for columns, store in self.stores
            for k, sums in zip(columns, store.sums(), strict=False)  # none with SGD
            if sums is not None
        }

    def make_optimizer(self) -> "FusedOptimizer":
        return FusedOptimizer()


class FusedOptimizer(EmbeddingOptimizer):
    """Updates rows where they are. It has no state of its own: `ShardedTables.sums` has it."""

    def before_lookup(self, tables: Tables, lr: float) -> None:
        assert isinstance(tables, ShardedTables)
        for _, store in tables.stores:
            store.set_lr(lr)

    def step(self, tables: Tables, ids_BF: Tensor, grad_BFD: Tensor, lr: float) -> None:
        """Update the rows that this rank's share of the batch looked up last. Collective."""
        assert isinstance(tables, ShardedTables)
        for columns, store in tables.stores:
            store.step(grad_BFD[:, columns], lr)

    def step_reads(self, tables: Tables, reads: Reads, grads: Sequence[Tensor], lr: float) -> None:
        """Update the rows that this rank's share of the batch read last. Collective."""
        assert isinstance(tables, ShardedTables)
        tables.backward(grads)
        for _, store in tables.stores:
            store.step_lists(lr)

    def reset_parameters(self, tables: Tables) -> None:
        for part in self.parts(tables).values():
            for _, rows in shards_of(part):
                rows.zero_()

    def parts(self, tables: Tables) -> dict[str, Any]:
        assert isinstance(tables, ShardedTables)
        return tables.sums()
