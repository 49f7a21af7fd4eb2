"""Training steps of models whose features have lists, share tables, or whose rows have weights.

The reference is a model of torch.nn.EmbeddingBag tables and the same dense layers, in one process.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from tests.factories.bags import random_bag
from tests.factories.features import training_params
from tests.factories.ranks import on_ranks
from training import stage as train
from training.distributed.collectives import share
from training.loop.batches import Batch, Rows
from training.loop.lightning_module import TrainDLRM
from training.loop.losses import make_loss
from training.loop.schedule import Schedule
from training.models.dlrm import DLRM
from training.models.factory import build_model, groups_of
from training.models.reads import CategoricalInputs

NUM_STEPS, NUM_ROWS, NUM_DENSE = 4, 61, 3
CARDINALITIES = [30, 300, 30, 30, 300]
NAMES = ["a", "b", "c", "d", "e"]
INPUTS = CategoricalInputs([0, 1, 0, 0, 1], ["sum", None, None, "max", "mean"], NAMES)
TABLES: dict[str, dict[str, Any]] = {
    "full": {"name": "full"},
    "quotient_remainder": {
        "name": "quotient_remainder",
        "operation": "mult",
        "collisions": 10,
        "threshold": 40,
    },
    "mixed_dim": {"name": "mixed_dim", "alpha": 0.3, "threshold": 40},
    "per_column": {"name": "per_column", "dims": {"a": 4, "c": 4, "d": 0}},
}
SGD = {
    "dense_optimizer": {"name": "sgd", "lr": 0.1},
    "embedding_optimizer": {"name": "sgd", "lr": 1.0},
    "logger": "none",
}
ADAGRAD = SGD | {"embedding_optimizer": {"name": "rowwise_adagrad", "lr": 0.05}}


def make_rows(step: int, *, weighted: bool) -> Rows:
    """Return the rows of a global batch."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.stack(
        [torch.randint(0, n, (NUM_ROWS,), generator=generator) for n in (300, 30)], dim=1
    ).int()
    return Rows(
        torch.randn(NUM_ROWS, NUM_DENSE, generator=generator),
        ids,
        torch.randint(2, (NUM_ROWS,), generator=generator).float(),
        (
            random_bag(30, NUM_ROWS, 10 * step + 1, weighted=True),
            random_bag(30, NUM_ROWS, 10 * step + 2),
            random_bag(300, NUM_ROWS, 10 * step + 3),
        ),
        3 * torch.rand(NUM_ROWS, generator=generator) if weighted else None,
    )


class Loader:
    """A loader of given batches; of a list, Lightning would make several loaders."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


def train_model(
    tables: str,
    options: dict[str, Any],
    rank: int = 0,
    num_ranks: int = 1,
    *,
    weighted: bool = False,
    batches: list[Rows] | None = None,
) -> dict[str, Any]:
    """Train for some steps; return the tables of each group, the dense weights, and the curve."""
    params = training_params({"embedding_dim": 8, "tables": TABLES[tables]}, **options)
    groups = groups_of(params.model, CARDINALITIES, INPUTS)
    parallelism = train.make_parallelism(params.train, groups, "cpu")
    model = build_model(
        params.model,
        CARDINALITIES,
        NUM_DENSE,
        torch.Generator().manual_seed(1),
        parallelism.make_tables,
        INPUTS,
    )
    schedule = Schedule(NUM_STEPS, NUM_STEPS, NUM_STEPS, NUM_STEPS)
    module = TrainDLRM(model, make_loss(params.model.loss), params.train, schedule)
    batches = batches or [make_rows(step, weighted=weighted) for step in range(NUM_STEPS)]
    shares = []
    for rows in batches:
        mine = share(len(rows.labels), rank, num_ranks)
        shares.append(Batch(rows.part(mine.start, mine.stop).copy(), len(rows.labels)))
    trainer = train.make_trainer(params.train, Path(), "cpu", schedule, parallelism.strategy)
    trainer.fit(module, train_dataloaders=Loader(shares), val_dataloaders=Loader(shares[:1]))
    return {
        "dense": {name: w.detach().clone() for name, w in dense_weights(model).items()},
        "tables": whole_tables(model),
        "curve": [tuple(point) for point in module.curves.history],
    }


def dense_weights(model: DLRM) -> dict[str, Tensor]:
    return {
        name: weight
        for name, weight in model.named_parameters()
        if not name.startswith("embeddings.tables.")
    }


def whole_tables(model: DLRM) -> list[Tensor]:
    """Return the vector of each id of each table, found by looking it up. Collective."""
    ids = torch.arange(max(CARDINALITIES))
    with torch.no_grad():
        single = ids.clamp(max=29)
        empty = torch.zeros(len(ids) + 1, dtype=torch.int64)
        bags = [random_bag(1, len(ids), 1)._replace(values=ids[:0].int(), starts=empty)] * 3
        rows = model.embeddings.lookup(
            model.embeddings.selections(torch.stack([ids, single], dim=1).int(), bags)
        )
        vectors = model.embeddings.vectors(rows, bags)
    return [vectors[:, 1].clone(), vectors[:30, 2].clone()]


def assert_same(found: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-5) -> None:
    for name, weight in expected["dense"].items():
        np.testing.assert_allclose(
            found["dense"][name], weight, rtol=tolerance, atol=tolerance, err_msg=name
        )
    for table, values in zip(found["tables"], expected["tables"], strict=True):
        np.testing.assert_allclose(table, values, rtol=tolerance, atol=tolerance)
    for point, other in zip(found["curve"], expected["curve"], strict=True):
        assert point[:2] == other[:2]
        assert point[2:] == pytest.approx(other[2:], abs=tolerance)


class Reference(nn.Module):
    """The DLRM of these tests, with tables of nn.EmbeddingBag."""

    def __init__(self, model: DLRM) -> None:
        super().__init__()
        (tables,) = model.embeddings.tables
        self.tables = nn.ParameterList(
            tables.weight[start:end].detach().clone() for start, end in tables.spans
        )
        self.model = model

    def forward(self, rows: Rows) -> Tensor:
        singles, bags = iter(rows.ids.long().unbind(1)), iter(rows.bags)
        vectors = []
        for table, pooling in zip(INPUTS.tables, INPUTS.poolings, strict=True):
            weight = self.tables[table]
            if pooling is None:
                vectors.append(weight[next(singles)])
                continue
            bag, (num_rows, dim) = next(bags), weight.shape
            layer = nn.EmbeddingBag(
                num_rows, dim, mode=pooling, include_last_offset=True, _weight=weight
            )
            layer.weight = weight
            vectors.append(layer(bag.values.long(), bag.starts, bag.weights))
        vectors_BFD = torch.stack(vectors, dim=1)
        bottom_BD = self.model.bottom(rows.dense)
        return self.model.top(self.model.interaction(bottom_BD, vectors_BFD)).squeeze(1)


@pytest.mark.parametrize("max_grad_norm", [None, 0.02])
@pytest.mark.parametrize("weighted", [False, True])
def test_steps_equal_those_of_embedding_bag(weighted: bool, max_grad_norm: float | None) -> None:
    options = SGD | {"max_grad_norm": max_grad_norm}
    found = train_model("full", options, weighted=weighted)
    params = training_params({"embedding_dim": 8}, **options)
    model = build_model(
        params.model, CARDINALITIES, NUM_DENSE, torch.Generator().manual_seed(1), inputs=INPUTS
    )
    reference = Reference(model)
    dense = dense_weights(model)
    optimizer = torch.optim.SGD(
        [{"params": list(dense.values()), "lr": 0.1}, {"params": [*reference.tables], "lr": 1.0}]
    )
    for step in range(NUM_STEPS):
        rows = make_rows(step, weighted=weighted)
        losses_B = binary_cross_entropy_with_logits(reference(rows), rows.labels, reduction="none")
        weights_B = torch.ones(NUM_ROWS) if rows.weights is None else rows.weights
        optimizer.zero_grad()
        ((losses_B * weights_B).sum() / weights_B.sum()).backward()
        if max_grad_norm is not None:
            weights = [*dense.values(), *reference.tables]
            assert nn.utils.clip_grad_norm_(weights, max_grad_norm) > max_grad_norm
        optimizer.step()
    for name, weight in dense.items():
        torch.testing.assert_close(found["dense"][name], weight.detach(), rtol=1e-4, atol=1e-5)
    for table, number in zip(found["tables"], (1, 0), strict=True):
        torch.testing.assert_close(table, reference.tables[number].detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tables", TABLES)
def test_accumulated_parts_equal_one_batch(tables: str) -> None:
    whole = train_model(tables, ADAGRAD, weighted=True)
    parts = train_model(tables, ADAGRAD | {"accumulate_grad_batches": 3}, weighted=True)
    assert_same(parts, whole)


def test_a_row_of_the_weight_2_counts_as_two_rows() -> None:
    weighted, repeated = [], []
    for step in range(NUM_STEPS):
        rows = make_rows(step, weighted=False)
        weights = torch.ones(NUM_ROWS)
        weights[::3] = 2
        weights[1::3] = 0
        weighted.append(rows._replace(weights=weights))
        numbers = torch.arange(NUM_ROWS).repeat_interleave(weights.long())
        repeated.append(
            Rows(
                rows.dense[numbers],
                rows.ids[numbers],
                rows.labels[numbers],
                tuple(bag.take(numbers) for bag in rows.bags),
            )
        )
    found, expected = (train_model("full", ADAGRAD, batches=each) for each in (weighted, repeated))
    assert_same(found, expected)


def test_weights_of_1_and_no_weights_train_the_same_model() -> None:
    plain = [make_rows(step, weighted=False) for step in range(NUM_STEPS)]
    ones = [rows._replace(weights=torch.ones(NUM_ROWS)) for rows in plain]
    found, expected = (train_model("full", ADAGRAD, batches=each) for each in (ones, plain))
    assert_same(found, expected, tolerance=1e-6)


def test_a_batch_of_weights_0_changes_nothing() -> None:
    zeros = [
        make_rows(step, weighted=False)._replace(weights=torch.zeros(NUM_ROWS))
        for step in range(NUM_STEPS)
    ]
    trained = train_model("full", ADAGRAD, batches=zeros)
    start = build_model(
        training_params({"embedding_dim": 8}).model,
        CARDINALITIES,
        NUM_DENSE,
        torch.Generator().manual_seed(1),
        inputs=INPUTS,
    )
    for name, weight in dense_weights(start).items():
        assert torch.equal(trained["dense"][name], weight), name
    for table, expected in zip(trained["tables"], whole_tables(start), strict=True):
        assert torch.equal(table, expected)


@pytest.mark.parametrize("pooling", ["sum", "mean", "max"])
@pytest.mark.parametrize("tables", TABLES)
def test_a_large_table_that_only_lists_read_is_trained(
    tables: str, pooling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If its vectors are composed before they are pooled, its group of tables has no column."""
    changes = {
        "CARDINALITIES": [300, 30, 30],
        "INPUTS": CategoricalInputs([0, 1, 2], [pooling, None, None], ["a", "b", "c"]),
        "whole_tables": lambda model: [each.weight.clone() for each in model.embeddings.tables],
    }
    for name, value in changes.items():
        monkeypatch.setattr(sys.modules[__name__], name, value)
    batches = []
    for step in range(NUM_STEPS):
        rows = make_rows(step, weighted=False)
        batches.append(rows._replace(ids=rows.ids % 30, bags=rows.bags[2:]))
    whole = train_model(tables, ADAGRAD, batches=batches)
    parts = train_model(tables, ADAGRAD | {"accumulate_grad_batches": 3}, batches=batches)
    assert_same(parts, whole)
    zeros = [rows._replace(weights=torch.zeros(NUM_ROWS)) for rows in batches]
    untrained = train_model(tables, ADAGRAD, batches=zeros)
    for found, before in zip(whole["tables"], untrained["tables"], strict=True):
        assert (found != before).any()


@pytest.mark.slow
@pytest.mark.parametrize("tables", TABLES)
@pytest.mark.parametrize("parallel", ["data", "hybrid", "model"])
def test_ranks_train_the_same_model_as_one_process(tables: str, parallel: str) -> None:
    if parallel != "data":
        pytest.importorskip("torchrec", reason="TorchRec is not installed (make setup)")
    options = ADAGRAD | {"accumulate_grad_batches": 2, "max_grad_norm": 0.05}
    (alone,) = on_ranks(1, train_weighted, tables, options)
    ranked = options | {"devices": 2, "parallel": parallel, "batch_size": 64}
    first, second = (on_ranks(2, train_weighted, tables, ranked) for _ in range(2))
    for found in first:
        assert_same(found, alone)
    for found, again in zip(first, second, strict=True):
        assert_same(found, again, tolerance=0)


def train_weighted(tables: str, options: dict[str, Any]) -> dict[str, Any]:
    """Train as one rank; a process passes its results on as bytes, because tensors share memory."""
    rank, num_ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    trained = train_model(tables, options, rank, num_ranks, weighted=True)
    return {
        "dense": {name: weight.numpy() for name, weight in trained["dense"].items()},
        "tables": [table.numpy() for table in trained["tables"]],
        "curve": trained["curve"],
    }
