"""A model with dims per column equals the uniform model whose other numbers are zero.

Features may have lists, share tables or be left out. The compiled kernels and PyTorch's operators
are both tested.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.config.model import Model
from tests.factories.bags import random_bag
from tests.factories.support import plain_model
from training.kernels import choice, compiler
from training.kernels.choice import Implementations
from training.models.bags import Bag
from training.models.dlrm import DLRM
from training.models.embedding_tables import Tables
from training.models.factory import build_model, groups_of, num_weights
from training.models.per_column import PerColumnTables
from training.models.reads import CategoricalInputs
from training.optim.embedding_optimizers import make_embedding_optimizer, update_tables

D, NUM_ROWS, NUM_DENSE, LR = 8, 60, 3, 0.3
NAMES = ["user", "item", "viewed", "tags", "city"]
# Each feature has one value and a table of its own; or two share a table; or two have lists, too.
PLAIN = CategoricalInputs([0, 1, 2, 3, 4], [None] * 5, NAMES)
SHARED = CategoricalInputs([0, 0, 1, 2, 3], [None] * 5, NAMES)
SHARED_LISTS = CategoricalInputs([0, 1, 1, 2, 3], [None, None, "sum", "max", None], NAMES)
TABLE_SIZES = [30, 17, 9, 40, 5]
each_implementation = pytest.mark.parametrize(
    "operators",
    [
        "pytorch",
        pytest.param(
            "compiled",
            marks=pytest.mark.skipif(compiler.library() is None, reason="no compiled kernels"),
        ),
    ],
)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[CategoricalInputs, list[int]]:
    """Draw inputs and the dim of each feature: that of its table, or 0."""
    inputs = draw(st.sampled_from([PLAIN, SHARED, SHARED_LISTS]))
    of_tables = draw(st.lists(st.integers(1, D), min_size=5, max_size=5))
    dims = [
        draw(st.sampled_from([0, of_tables[table], of_tables[table]])) for table in inputs.tables
    ]
    if not any(dims):
        dims[0] = of_tables[0]
    return inputs, dims


def make_models(
    inputs: CategoricalInputs, dims: Sequence[int], **parts: Any
) -> tuple[DLRM, DLRM, Tensor]:
    """Return the tested model, the uniform one, and the mask (F, D) of the latter's vectors.

    The tables of the tested one have the first numbers of the uniform one's rows.
    """
    widths = {"embedding_dim": D, "bottom_mlp": [4], "top_mlp": [6]} | parts
    cardinalities = [TABLE_SIZES[table] for table in inputs.tables]
    models = []
    for tables in (
        {"name": "per_column", "dims": dict(zip(NAMES, dims, strict=True))},
        {"name": "full"},
    ):
        params = Model.model_validate(plain_model(**widths, tables=tables))
        generator = torch.Generator().manual_seed(1)
        model = build_model(params, cardinalities, NUM_DENSE, generator, inputs=inputs)
        num_found = sum(tensor.numel() for tensor in model.state_dict().values())
        assert num_weights(params, cardinalities, NUM_DENSE, inputs) == num_found
        groups = groups_of(params, cardinalities, inputs)
        assert [(sum(sizes), dim) for sizes, dim in groups] == [
            tuple(each.weight.shape) for each in model.embeddings.tables
        ]
        models.append(model)
    tested, uniform = models
    with torch.no_grad():
        for found, wanted in paired_rows(tested, uniform):
            found.copy_(wanted[:, : found.shape[1]])
    mask_FD = (torch.arange(D) < torch.tensor(dims)[:, None]).float()
    return tested, uniform, mask_FD


def paired_rows(tested: DLRM, uniform: DLRM) -> list[tuple[Tensor, Tensor]]:
    """Return the rows of each table that both models have, and of the uniform one."""
    (full,) = uniform.embeddings.tables
    pairs = []
    for number, (start, end) in enumerate(full.spans):
        for group, table in tested.embeddings.places(number):
            tables = tested.embeddings.tables[group]
            first, last = tables.spans[table]
            pairs.append((tables.weight[first:last], full.weight[start:end]))
    return pairs


def make_batch(inputs: CategoricalInputs, seed: int) -> tuple[Tensor, list[Bag]]:
    generator = torch.Generator().manual_seed(seed)
    ids, bags = [], []
    for table, pooling in zip(inputs.tables, inputs.poolings, strict=True):
        if pooling is None:
            ids.append(torch.randint(TABLE_SIZES[table], (NUM_ROWS,), generator=generator).int())
        else:
            weighted = pooling == "sum"
            bags.append(random_bag(TABLE_SIZES[table], NUM_ROWS, seed + table, weighted=weighted))
    return torch.stack(ids, dim=1), bags


def step(
    model: DLRM, batch: tuple[Tensor, list[Bag]], upstream: Tensor, mask_FD: Tensor, optimizer: str
) -> tuple[Tensor, list[Any]]:
    """Update the tables by the gradient of the vectors; return the vectors and the optimizers."""
    ids, bags = batch
    embeddings = model.embeddings
    selections = embeddings.selections(ids, bags)
    rows = [rows_k.requires_grad_() for rows_k in embeddings.lookup(selections)]
    vectors = embeddings.vectors(rows, bags) * mask_FD
    vectors.backward(upstream)
    grads = [torch.zeros_like(each) if each.grad is None else each.grad for each in rows]
    optimizers = []
    for tables, selection, of_group in zip(
        embeddings.tables, selections, embeddings.of_groups(grads), strict=True
    ):
        assert isinstance(tables, Tables)
        optimizers.append(make_embedding_optimizer(optimizer, tables))
        update_tables(optimizers[-1], tables, selection, of_group, LR)
    return vectors.detach(), optimizers


@each_implementation
@settings(max_examples=40, deadline=None)
@given(layout=layouts(), seed=st.integers(0, 1000))
@example(layout=(PLAIN, [4] * 5), seed=1)  # one group of tables, none of dim D
@example(layout=(PLAIN, [D] * 5), seed=1)
@example(layout=(SHARED, [4, 0, 3, 0, 2]), seed=1)  # each table that is left has one feature
@example(layout=(SHARED_LISTS, [0, 0, 3, 0, 0]), seed=1)  # a shared table that one feature reads
@example(layout=(SHARED_LISTS, [0, D, 0, D, 0]), seed=1)
def test_vectors_and_updates_are_those_of_the_masked_uniform_model(
    operators: Any, layout: tuple[CategoricalInputs, list[int]], seed: int
) -> None:
    inputs, dims = layout
    kept = [k for k, dim in enumerate(dims) if dim]
    with choice.forced(Implementations(operators, "pytorch")):
        tested, uniform, mask_FD = make_models(inputs, dims)
        batch = make_batch(inputs, seed)
        upstream = torch.randn(NUM_ROWS, 5, D, generator=torch.Generator().manual_seed(seed))
        found, _ = step(tested, batch, upstream[:, kept], torch.ones(len(kept), D), "sgd")
        expected, _ = step(uniform, batch, upstream, mask_FD, "sgd")
    torch.testing.assert_close(found, expected[:, kept], rtol=1e-6, atol=1e-6)
    for rows, of_uniform in paired_rows(tested, uniform):
        torch.testing.assert_close(rows, of_uniform[:, : rows.shape[1]], rtol=1e-5, atol=1e-5)


@each_implementation
def test_adagrad_divides_by_the_numbers_of_the_row(operators: Any) -> None:
    """Its mean is over the d numbers of a row, so d times the sum is D times the uniform one's."""
    dims = [4, 0, 2, 8, 4]
    with choice.forced(Implementations(operators, "pytorch")):
        tested, uniform, mask_FD = make_models(PLAIN, dims)
        batch = make_batch(PLAIN, 1)
        upstream = torch.randn(NUM_ROWS, 5, D, generator=torch.Generator().manual_seed(1))
        ones = torch.ones(4, D)
        _, found = step(tested, batch, upstream[:, [0, 2, 3, 4]], ones, "rowwise_adagrad")
        _, (of_uniform,) = step(uniform, batch, upstream, mask_FD, "rowwise_adagrad")
    (full,) = uniform.embeddings.tables
    for number, dim in enumerate(dims):
        for group, table in tested.embeddings.places(number):
            first, last = tested.embeddings.tables[group].spans[table]
            start, end = full.spans[number]
            sums = found[group].sums[first:last]
            assert sums.any()
            torch.testing.assert_close(dim * sums, D * of_uniform.sums[start:end])


def kept_inputs(interaction: str, dims: Sequence[int]) -> list[int]:
    """Return which inputs of the uniform model's top MLP the tested model has."""
    vectors = [0, *(k + 1 for k, dim in enumerate(dims) if dim)]  # 0 is the bottom MLP's
    if interaction != "dot":
        return [D * vector + number for vector in vectors for number in range(D)]
    pairs = [(a, b) for a in range(len(dims) + 1) for b in range(a)]
    return [*range(D), *(D + k for k, (a, b) in enumerate(pairs) if {a, b} <= {*vectors})]


@pytest.mark.parametrize("dims", [[4, 0, 2, 8, 4], [0, 0, 0, 3, 0], [1, 2, 3, 5, 7]], ids=str)
@pytest.mark.parametrize("interaction", ["dot", "cat", "cross"])
def test_logits_and_dense_gradients_are_those_of_the_masked_uniform_model(
    interaction: str, dims: list[int]
) -> None:
    """The uniform model multiplies the inputs that the tested one does not have by 0."""
    section = {"name": interaction} | (
        {"layers": 2, "rank": None} if interaction == "cross" else {}
    )
    tested, uniform, mask_FD = make_models(PLAIN, dims, interaction=section)
    kept = kept_inputs(interaction, dims)
    assert tested.interaction.num_outputs == len(kept)
    copy_dense(tested, uniform, kept)
    uniform.interaction.register_forward_pre_hook(lambda _, args: (args[0], args[1] * mask_FD))
    ids, bags = make_batch(PLAIN, 1)
    dense = torch.randn(NUM_ROWS, NUM_DENSE, generator=torch.Generator().manual_seed(1))
    logits = [model(dense, ids, bags) for model in (tested, uniform)]
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)
    assert logits[0].std() > 0.01
    for of_model in logits:
        of_model.square().sum().backward()
    torch.testing.assert_close(
        tested.top[0].weight.grad, uniform.top[0].weight.grad[:, kept], rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        tested.bottom[0].weight.grad, uniform.bottom[0].weight.grad, rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
def copy_dense(tested: DLRM, uniform: DLRM, kept: list[int]) -> None:
    """Give the uniform model the dense weights of the tested one, and zeros for other inputs."""
    where = np.ix_(kept, kept)
    of_tested = dict(tested.named_parameters())
    for name, weight in uniform.named_parameters():
        if "tables" in name:
            continue
        value = of_tested[name]
        weight.zero_()
        if name.startswith("interaction.") and weight.ndim == 2:
            weight[where] = value
        elif name.startswith("interaction."):
            weight[kept] = value
        elif name == "top.0.weight":
            weight[:, kept] = value
        else:
            weight.copy_(value)


def test_dims_that_are_all_the_embedding_dim_make_full_tables() -> None:
    tested, uniform, _ = make_models(PLAIN, [D] * 5)
    assert not isinstance(tested.embeddings, PerColumnTables)
    for (name, found), (_, expected) in zip(
        tested.state_dict().items(), uniform.state_dict().items(), strict=True
    ):
        assert torch.equal(found, expected), name


def test_a_column_without_a_dim_has_the_embedding_dim() -> None:
    tables = {"name": "per_column", "dims": {"item": 2, "city": 0}}
    params = Model.model_validate(
        plain_model(embedding_dim=D, bottom_mlp=[], top_mlp=[], tables=tables)
    )
    assert params.column_dims(NAMES) == [D, 2, D, D, 0]
    groups = groups_of(params, TABLE_SIZES, PLAIN)
    assert [(list(sizes), dim) for sizes, dim in groups] == [([30, 9, 40], D), ([17], 2)]
