"""Features with lists of ids and shared tables against torch.nn.EmbeddingBag.

The model of the test is float32, with the compiled kernels and with PyTorch's operators; the
reference is float64.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from common.config import model as model_params
from tests.factories.bags import random_bag
from training.kernels import choice, compiler
from training.kernels.choice import Implementations
from training.models.bags import Bag
from training.models.embedding_tables import EmbeddingTables
from training.models.embeddings import Embeddings
from training.models.factory import make_embeddings
from training.models.reads import CategoricalInputs
from training.optim.embedding_optimizers import (
    EPS,
    EmbeddingOptimizer,
    RowwiseAdagrad,
    make_embedding_optimizer,
    update_tables,
)

NUM_ROWS, NUM_STEPS, LR = 150, 3, 0.1
TABLE_SIZES = [30, 7, 50]
# Feature 4 shares the table of features 0 and 3, feature 5 that of feature 2, which has one value.
INPUTS = CategoricalInputs(
    tables=[0, 1, 2, 0, 0, 2], poolings=["sum", "mean", None, "max", None, "sum"]
)
FULL = model_params.Full(name="full")
QUOTIENT_REMAINDER = [
    model_params.QuotientRemainder(
        name="quotient_remainder", operation=operation, collisions=4, threshold=25
    )
    for operation in ("mult", "add", "concat")
]
MIXED_DIM = model_params.MixedDim(name="mixed_dim", alpha=0.9, threshold=10)
each_dim = pytest.mark.parametrize("dim", [4, 16, 40])
each_optimizer = pytest.mark.parametrize("optimizer", ["sgd", "rowwise_adagrad"])


@pytest.fixture(
    params=[
        "pytorch",
        pytest.param(
            "compiled",
            marks=pytest.mark.skipif(compiler.library() is None, reason="no compiled kernels"),
        ),
    ],
    autouse=True,
)
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    with choice.forced(Implementations(request.param, "pytorch")):
        yield request.param


def make_batch(seed: int) -> tuple[Tensor, list[Bag]]:
    """Return the ids of features 2 and 4, and the lists of the others."""
    ids = torch.randint(0, 30, (NUM_ROWS, 2), generator=torch.Generator().manual_seed(seed)).int()
    bags = [
        random_bag(30, NUM_ROWS, 10 * seed),
        random_bag(7, NUM_ROWS, 10 * seed + 1),
        random_bag(30, NUM_ROWS, 10 * seed + 2),
        random_bag(50, NUM_ROWS, 10 * seed + 3, weighted=True),
    ]
    return ids, bags


def random_gradient(dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(NUM_ROWS, len(INPUTS.tables), dim, generator=generator)


def make_tested(kind: model_params.Tables, dim: int) -> Embeddings:
    generator = torch.Generator().manual_seed(1)
    tested = make_embeddings(kind, TABLE_SIZES, dim, generator, EmbeddingTables)
    tested.read_by(INPUTS)
    return tested


def optimizers_of(tested: Embeddings, name: str) -> list[EmbeddingOptimizer]:
    return [make_embedding_optimizer(name, tables) for tables in tested.tables]


def train_step(
    tested: Embeddings,
    optimizers: list[EmbeddingOptimizer],
    batch: tuple[Tensor, list[Bag]],
    upstream: Tensor,
) -> Tensor:
    """Update the tables for a loss with a given gradient; return the vectors before."""
    ids, bags = batch
    selections = tested.selections(ids, bags)
    rows = [rows_k.requires_grad_() for rows_k in tested.lookup(selections)]
    vectors = tested.vectors(rows, bags)
    vectors.backward(upstream)
    grads = tested.of_groups([rows_k.grad for rows_k in rows])
    for tables, optimizer, selection, of_group in zip(
        tested.tables, optimizers, selections, grads, strict=True
    ):
        update_tables(optimizer, tables, selection, of_group, LR)
    return vectors.detach()


def reference_vectors(
    bags_of_table: list[dict[str, nn.EmbeddingBag]], batch: tuple[Tensor, list[Bag]]
) -> Tensor:
    """Compute the vectors by EmbeddingBag alone: a single value is a list of one."""
    ids, lists = batch
    singles, several = iter(ids.unbind(1)), iter(lists)
    vectors = []
    for table, pooling in zip(INPUTS.tables, INPUTS.poolings, strict=True):
        if pooling is None:
            values, starts = next(singles).long(), torch.arange(NUM_ROWS + 1)
            weights, pooling = None, "sum"
        else:
            bag = next(several)
            values, starts, weights = bag.values.long(), bag.starts, bag.weights
        bag_layer = bags_of_table[table][pooling]
        vectors.append(bag_layer(values, starts, None if weights is None else weights.double()))
    return torch.stack(vectors, dim=1)


def reference_layers(
    tested: Embeddings, *, sparse: bool
) -> tuple[list[dict[str, nn.EmbeddingBag]], list[nn.Parameter]]:
    """Return for each table an EmbeddingBag of each pooling, and their shared weight."""
    (tables,) = tested.tables
    layers, weights = [], []
    for start, end in tables.spans:
        weight = nn.Parameter(tables.weight[start:end].detach().double())
        of_table = {}
        for pooling in ("sum", "mean", "max"):
            layer = nn.EmbeddingBag(
                *weight.shape,
                mode=pooling,
                sparse=sparse and pooling != "max",
                include_last_offset=True,
                _weight=weight,
            )
            layer.weight = weight
            of_table[pooling] = layer
        layers.append(of_table)
        weights.append(weight)
    return layers, weights


@each_dim
def test_sgd_gives_the_weights_of_embedding_bag(dim: int) -> None:
    tested = make_tested(FULL, dim)
    layers, weights = reference_layers(tested, sparse=False)
    optimizers, reference = optimizers_of(tested, "sgd"), torch.optim.SGD(weights, lr=LR)
    for step in range(NUM_STEPS):
        batch, upstream = make_batch(step), random_gradient(dim, step)
        expected = reference_vectors(layers, batch)
        reference.zero_grad()
        expected.backward(upstream.double())
        found = train_step(tested, optimizers, batch, upstream)
        torch.testing.assert_close(found.double(), expected.detach(), rtol=1e-4, atol=1e-5)
        reference.step()
        torch.testing.assert_close(
            tested.tables[0].weight.double(), torch.cat(weights).detach(), rtol=1e-4, atol=1e-5
        )


@each_dim
def test_adagrad_sees_the_total_gradient_of_each_row(dim: int) -> None:
    """The reference adds up the gradients of all features that share a table, then steps once."""
    tested = make_tested(FULL, dim)
    layers, weights = reference_layers(tested, sparse=False)
    optimizers, sums = optimizers_of(tested, "rowwise_adagrad"), torch.zeros(sum(TABLE_SIZES))
    sums = sums.double()
    for step in range(NUM_STEPS):
        batch, upstream = make_batch(step), random_gradient(dim, step)
        for weight in weights:
            weight.grad = None
        reference_vectors(layers, batch).backward(upstream.double())
        train_step(tested, optimizers, batch, upstream)
        grad = torch.cat([weight.grad for weight in weights])
        sums += grad.square().mean(dim=1)
        scaled = grad / (sums.sqrt() + EPS).unsqueeze(1)
        with torch.no_grad():
            for weight, of_table in zip(weights, scaled.split(TABLE_SIZES), strict=True):
                weight -= LR * of_table
    torch.testing.assert_close(
        tested.tables[0].weight.double(), torch.cat(weights).detach(), rtol=1e-4, atol=1e-5
    )
    (optimizer,) = optimizers
    assert isinstance(optimizer, RowwiseAdagrad)
    torch.testing.assert_close(optimizer.sums.double(), sums, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_sparse_gradients_are_those_of_embedding_bag(pooling: str) -> None:
    weighted = pooling == "sum"
    bag = random_bag(40, NUM_ROWS, 3, weighted=weighted)
    tables = EmbeddingTables([40], 8, torch.Generator().manual_seed(1))
    embeddings = make_embeddings(FULL, [40], 8, torch.Generator().manual_seed(1), EmbeddingTables)
    embeddings.read_by(CategoricalInputs([0], [pooling]))
    layer = nn.EmbeddingBag(
        40,
        8,
        mode=pooling,
        sparse=True,
        include_last_offset=True,
        _weight=tables.weight.detach().clone(),
    )
    upstream = torch.randn(NUM_ROWS, 1, 8, generator=torch.Generator().manual_seed(2))
    layer(bag.values.long(), bag.starts, bag.weights).backward(upstream[:, 0])
    expected = layer.weight.grad.coalesce()
    (reads,) = embeddings.selections(torch.empty(NUM_ROWS, 0, dtype=torch.int32), [bag])
    rows, grads = embeddings.tables[0].value_gradients(reads, [upstream])
    found = torch.sparse_coo_tensor(rows[None], grads, (40, 8), check_invariants=True).coalesce()
    assert torch.equal(found.indices(), expected.indices())
    torch.testing.assert_close(found.values(), expected.values(), rtol=1e-5, atol=1e-6)


@each_optimizer
@pytest.mark.parametrize("kind", [*QUOTIENT_REMAINDER, MIXED_DIM], ids=repr)
def test_a_row_is_composed_before_it_is_pooled(kind: model_params.Tables, optimizer: str) -> None:
    """The reference composes the vector of every id of a table by the one-value code of `combine`.

    That code has parity tests of its own. The vectors are the weight of an EmbeddingBag, and
    autograd leads from them to the rows.
    """
    dim = 16
    tested, reference = (
        make_tested(kind, dim),
        make_embeddings(kind, TABLE_SIZES, dim, torch.Generator().manual_seed(1), EmbeddingTables),
    )
    optimizers, of_reference = optimizers_of(tested, optimizer), optimizers_of(reference, optimizer)
    largest = max(TABLE_SIZES)
    # all ids of each table; a shorter table repeats its first id, which has no gradient there
    ids_NT = torch.stack(
        [torch.arange(largest) * (torch.arange(largest) < n) for n in TABLE_SIZES], 1
    )
    for step in range(NUM_STEPS):
        batch, upstream = make_batch(step), random_gradient(dim, step)
        selections = reference.ids(ids_NT)
        rows = [rows_k.requires_grad_() for rows_k in reference.lookup(selections)]
        all_vectors_NTD = reference.combine(rows)
        vectors, (ids, lists) = [], batch
        singles, several = iter(ids.unbind(1)), iter(lists)
        for table, pooling in zip(INPUTS.tables, INPUTS.poolings, strict=True):
            weight_ND = all_vectors_NTD[:, table]
            if pooling is None:
                vectors.append(weight_ND[next(singles).long()])
                continue
            bag = next(several)
            vectors.append(
                nn.functional.embedding_bag(
                    bag.values.long(),
                    weight_ND,
                    bag.starts,
                    mode=pooling,
                    per_sample_weights=bag.weights,
                    include_last_offset=True,
                )
            )
        expected = torch.stack(vectors, dim=1)
        expected.backward(upstream)
        found = train_step(tested, optimizers, batch, upstream)
        torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-5)
        for tables, each, selection, rows_k in zip(
            reference.tables, of_reference, selections, rows, strict=True
        ):
            each.step(tables, selection, rows_k.grad, LR)
    for found_k, expected_k in zip(tested.tables, reference.tables, strict=True):
        torch.testing.assert_close(found_k.weight, expected_k.weight, rtol=1e-4, atol=1e-5)
    for (name, found_w), (_, expected_w) in zip(
        tested.named_parameters(), reference.named_parameters(), strict=True
    ):
        if found_w.requires_grad:  # the projections of mixed_dim
            torch.testing.assert_close(
                found_w.grad, expected_w.grad, rtol=1e-3, atol=1e-3, msg=name
            )


def test_an_empty_list_gives_zeros_and_changes_nothing() -> None:
    for kind in (FULL, QUOTIENT_REMAINDER[0], MIXED_DIM):
        for pooling in ("sum", "mean", "max"):
            tested = make_embeddings(
                kind, [50], 16, torch.Generator().manual_seed(1), EmbeddingTables
            )
            tested.read_by(CategoricalInputs([0], [pooling]))
            before = [tables.weight.clone() for tables in tested.tables]
            empty = Bag(torch.empty(0, dtype=torch.int32), torch.zeros(4, dtype=torch.int64), None)
            ids = torch.empty(3, 0, dtype=torch.int32)
            selections = tested.selections(ids, [empty])
            rows = [rows_k.requires_grad_() for rows_k in tested.lookup(selections)]
            assert torch.equal(tested.vectors(rows, [empty]), torch.zeros(3, 1, 16))
            grads = tested.of_groups([torch.ones_like(rows_k) for rows_k in rows])
            for tables, selection, of_group, weight in zip(
                tested.tables, selections, grads, before, strict=True
            ):
                for name in ("sgd", "rowwise_adagrad"):
                    update_tables(
                        make_embedding_optimizer(name, tables), tables, selection, of_group, LR
                    )
                assert torch.equal(tables.weight, weight)


@each_optimizer
def test_the_same_bytes_with_any_number_of_threads(optimizer: str) -> None:
    threads, results = torch.get_num_threads(), set()
    try:
        for num_threads in (1, 2, 2, 3):
            torch.set_num_threads(num_threads)
            tested = make_tested(FULL, 16)
            optimizers = optimizers_of(tested, optimizer)
            vectors = train_step(tested, optimizers, make_batch(1), random_gradient(16, 1))
            results.add(vectors.numpy().tobytes() + tested.tables[0].weight.numpy().tobytes())
    finally:
        torch.set_num_threads(threads)
    assert len(results) == 1


@pytest.mark.parametrize("bad", [-1, 30, 2**30])
def test_an_id_outside_its_table_is_refused_and_no_weight_changes(bad: int) -> None:
    tested = make_tested(FULL, 16)
    before = tested.tables[0].weight.clone()
    ids, bags = make_batch(1)
    bags[2].values[5] = bad
    selections = tested.selections(ids, bags)
    with pytest.raises(IndexError, match="is outside its table"):
        tested.lookup(selections)
    (optimizer,) = optimizers_of(tested, "rowwise_adagrad")
    with pytest.raises(IndexError, match="is outside its table"):
        update_tables(optimizer, tested.tables[0], selections[0], [random_gradient(16, 1)], LR)
    assert torch.equal(tested.tables[0].weight, before)


def test_a_part_of_the_rows_is_that_of_the_batch() -> None:
    """Accumulated gradients are computed from parts of the rows of one lookup."""
    for kind in (FULL, QUOTIENT_REMAINDER[0], MIXED_DIM):
        tested = make_tested(kind, 16)
        ids, bags = make_batch(2)
        rows = tested.lookup(tested.selections(ids, bags))
        whole = tested.vectors(rows, bags)
        for part in (slice(0, 70), slice(70, 70), slice(70, NUM_ROWS)):
            part_bags = [bag.part(part.start, part.stop) for bag in bags]
            found = tested.vectors(tested.part(rows, bags, part), part_bags)
            torch.testing.assert_close(found, whole[part], rtol=1e-6, atol=1e-7)
