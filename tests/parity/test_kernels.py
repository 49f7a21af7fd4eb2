"""The compiled operations and the oneDNN layers against plain PyTorch in float64: any sizes, any alignment, the same bytes every time."""

import platform
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from training.kernels import compiler as build
from training.kernels import embedding_ops as rows
from training.kernels import linear_layers as linear
from training.models.embedding_tables import EmbeddingTables
from training.models.interaction import DotInteraction
from training.models.mlp import MLP
from training.optim.embedding_optimizers import RowwiseAdagrad, make_embedding_optimizer

compiled = pytest.mark.skipif(build.library() is None, reason=build.why_not_compiled() or "")
bf16 = pytest.param(
    "bf16",
    marks=pytest.mark.skipif(
        not linear.bf16_supported(), reason="this CPU has no bf16 instructions"
    ),
)
SIZES = [
    (1, 2, 1),
    (3, 2, 5),
    (37, 5, 16),
    (64, 26, 16),
    (5, 33, 8),
    (130, 17, 40),
    (33, 3, 128),
    (0, 4, 16),
]  # B, F, D
each_size = pytest.mark.parametrize("sizes", SIZES, ids=str)


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def make_tables(num_columns: int, dim: int) -> EmbeddingTables:
    """Tables of 1, 4, 7, ... rows."""
    return EmbeddingTables(
        [1 + 3 * f for f in range(num_columns)], dim, torch.Generator().manual_seed(1)
    )


def make_ids(tables: EmbeddingTables, num_rows: int, dtype: torch.dtype) -> Tensor:
    ends = torch.tensor([*tables.offsets.tolist()[1:], len(tables.weight)])
    return (
        torch.rand(num_rows, len(ends), generator=torch.Generator().manual_seed(2))
        * (ends - tables.offsets)
    ).to(dtype)


@compiled
@each_size
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_look_up(sizes: tuple[int, int, int], dtype: torch.dtype) -> None:
    B, F, D = sizes
    tables = make_tables(F, D)
    ids = make_ids(tables, B, dtype)
    assert torch.equal(
        rows.embedding_lookup(tables.weight, ids, tables.offsets), tables.weight[ids + tables.offsets]
    )


@compiled
@each_size
@pytest.mark.parametrize("has_bottom", [False, True])
def test_dots_and_their_gradients(sizes: tuple[int, int, int], has_bottom: bool) -> None:
    B, F, D = sizes
    interaction = DotInteraction(F, D, has_bottom=has_bottom)
    inputs = [drawn(B, D)] if has_bottom else []
    inputs += [drawn(B, F, D)]
    results = []
    for dtype in (torch.float32, torch.float64):  # float64 goes the plain way
        leaves = [values.to(dtype, copy=True).requires_grad_() for values in inputs]
        assert rows.usable(leaves[-1]) == (dtype == torch.float32)
        outputs = interaction(leaves[0] if has_bottom else None, leaves[-1])
        assert outputs.shape == (B, interaction.num_outputs)
        (outputs * drawn(*outputs.shape)).sum().backward()
        results.append([outputs.detach(), *(leaf.grad for leaf in leaves)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@compiled
@each_size
@pytest.mark.parametrize("name", ["sgd", "rowwise_adagrad"])
def test_table_optimizers(sizes: tuple[int, int, int], name: str) -> None:
    """With few rows and many ids nearly all repeat."""
    B, F, D = sizes
    found, expected = make_tables(F, D), make_tables(F, D).double()
    steps = [
        (found, make_embedding_optimizer(name, found)),
        (expected, make_embedding_optimizer(name, expected)),
    ]
    for dtype in (torch.int32, torch.int64):
        ids, grad = make_ids(found, B, dtype), drawn(B, F, D)
        for tables, optimizer in steps:
            optimizer.step(tables, ids, grad.to(tables.weight.dtype), 0.1)
    torch.testing.assert_close(found.weight.double(), expected.weight, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(
        *(optimizer.state_dict().values() for _, optimizer in steps), strict=True
    ):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-5)


@compiled
@pytest.mark.parametrize("bad", [-1, 4, 2**40])
def test_an_id_without_a_row_is_refused_and_nothing_written(bad: int) -> None:
    tables = make_tables(3, 16)
    before = tables.weight.clone()
    ids = make_ids(tables, 9, torch.int64)
    ids[5, 1] = bad
    for name in ("sgd", "rowwise_adagrad"):
        with pytest.raises(IndexError, match=f"id {bad} of column 1 in row 5"):
            make_embedding_optimizer(name, tables).step(tables, ids, drawn(9, 3, 16), 0.1)
    with pytest.raises(IndexError, match=f"id {bad} of column 1 in row 5"):
        tables(ids)
    assert torch.equal(tables.weight, before)


@compiled
def test_the_same_bytes_with_any_number_of_threads() -> None:
    made = set()
    for num_threads in (1, 2, 2, 3):
        torch.set_num_threads(num_threads)
        tables = make_tables(26, 16)
        ids, optimizer = make_ids(tables, 3000, torch.int32), RowwiseAdagrad(tables)
        dots = rows.PairDots.apply(drawn(3000, 16), tables(ids))
        optimizer.step(tables, ids, drawn(3000, 26, 16), 0.1)
        made.add(
            dots.numpy().tobytes()
            + tables.weight.numpy().tobytes()
            + optimizer.sums.numpy().tobytes()
        )
    assert len(made) == 1


@pytest.fixture(params=["onednn", pytest.param("compiled", marks=compiled)])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "onednn":
        monkeypatch.setattr(linear, "library", lambda: None)
    else:
        monkeypatch.setitem(linear.MAX_COMPILED_ROWS, "bf16", 1 << 30)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("num_rows", [0, 1, 37, 3000])
@pytest.mark.parametrize("widths", [[13, 512, 37, 5], [3, 1], [200, 16, 129]], ids=str)
@pytest.mark.parametrize("relu_last", [False, True])
@pytest.mark.parametrize("precision", ["fp32", bf16])
def test_layers_and_their_gradients(
    num_rows: int, widths: list[int], relu_last: bool, precision: linear.Precision
) -> None:
    """float64 goes PyTorch's own way; bf16 has 8 bits, so its error is compared with the size of the whole tensor."""
    model = MLP(widths, torch.Generator().manual_seed(1), relu_last=relu_last)
    inputs, weights = drawn(num_rows, widths[0]), drawn(num_rows, widths[-1])
    results = []
    for dtype in (torch.float32, torch.float64):
        twin = MLP(widths, torch.Generator(), relu_last=relu_last).to(dtype)
        twin.load_state_dict(model.state_dict())
        twin.precision = precision if dtype == torch.float32 else "fp32"
        leaf = inputs.to(dtype, copy=True).requires_grad_()
        assert linear.usable(leaf) == (dtype == torch.float32)
        outputs = twin(leaf)
        assert outputs.dtype == dtype
        (outputs * weights).sum().backward()
        results.append(
            [outputs.detach(), leaf.grad, *(parameter.grad for parameter in twin.parameters())]
        )
    for found, expected in zip(*results, strict=True):
        assert found.shape == expected.shape
        error = np.linalg.norm(found.double() - expected) / max(np.linalg.norm(expected), 1)
        assert error < (0.15 if precision == "bf16" else 1e-5), (
            error
        )  # near zero bf16 decides some ReLUs otherwise


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("precision", ["fp32", bf16])
def test_layers_give_the_same_bytes_every_time(precision: linear.Precision) -> None:
    model = MLP([367, 512, 1], torch.Generator().manual_seed(1), relu_last=False)
    model.precision = precision
    made = set()
    for _ in range(5):
        model.zero_grad()
        model(drawn(1024, 367)).square().sum().backward()
        made.add(b"".join(parameter.grad.numpy().tobytes() for parameter in model.parameters()))
    assert len(made) == 1


@compiled
@pytest.mark.parametrize("precision", ["fp32", bf16])
def test_compiled_layers_give_the_same_bytes_with_any_number_of_threads(
    precision: linear.Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = set()
    monkeypatch.setitem(linear.MAX_COMPILED_ROWS, "bf16", 1 << 30)
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        model = MLP([13, 512, 70, 1], torch.Generator().manual_seed(1), relu_last=False)
        model.precision = precision
        model(drawn(1000, 13)).square().sum().backward()
        made.add(b"".join(parameter.grad.numpy().tobytes() for parameter in model.parameters()))
    assert len(made) == 1


@compiled
@pytest.mark.parametrize("num_rows", [0, 1, 1000])
@pytest.mark.parametrize("has_relu", [False, True])
def test_the_way_back_through_a_relu(num_rows: int, has_relu: bool) -> None:
    """... is PyTorch's, bit for bit, its sums those of float32, and the same with any number of threads."""
    grad, outputs = (
        drawn(num_rows, 77).bfloat16(),
        drawn(num_rows, 77, 1).squeeze(2).relu().bfloat16(),
    )
    expected = torch.ops.aten.threshold_backward(grad, outputs, 0) if has_relu else grad
    made = set()
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        found, sums = linear._relu_backward(grad.clone(), outputs if has_relu else None)
        assert torch.equal(found, expected)
        torch.testing.assert_close(sums, expected.float().sum(0), rtol=1e-5, atol=1e-4)
        made.add(sums.numpy().tobytes())
    assert len(made) == 1


@pytest.mark.parametrize(
    "environment", [{"CXX": "/nowhere/c++"}, {"CXX": "false"}, {"ATEN_CPU_CAPABILITY": "avx2"}]
)
def test_without_a_compiler_or_avx512_pytorch_does_the_work(environment: dict[str, str]) -> None:
    code = """
import torch
from training.kernels import compiler as build
from training.kernels import embedding_ops as rows
print(build.library(), rows.usable(torch.zeros(1)), build.kernels_name(), build.why_not_compiled() is None)
"""
    environment = {"PATH": "/usr/bin:/bin", **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "None False none False\n"


@compiled
def test_the_library_is_built_once(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build.library.cache_clear()
    first = build.library()
    monkeypatch.setenv("PATH", "/nowhere")
    assert first is not None
    build.library.cache_clear()
    assert build.library() is None  # the compiler's version is part of the name
    monkeypatch.undo()
    build.library.cache_clear()


@pytest.mark.parametrize("precision", ["fp32", bf16])
def test_the_compiled_relu_keeps_what_is_no_number(precision: linear.Precision) -> None:
    """As PyTorch's does: or a run whose weights are lost would go on unseen."""
    generator = torch.Generator().manual_seed(1)
    inputs_BI = torch.randn(64, 13, generator=generator)
    inputs_BI[5, 2] = float("nan")
    outputs_BO = linear.linear_stack(
        inputs_BI,
        [torch.randn(32, 13, generator=generator)],
        [torch.zeros(32)],
        relu_last=True,
        precision=precision,
    )
    assert outputs_BO.isnan().all(dim=1).tolist() == [k == 5 for k in range(64)]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="elsewhere it does nothing")
def test_freed_memory_is_kept() -> None:
    """Blocks of 16 MiB, 4,096 pages, taken and freed in a process of their own: the last ten of 60, as the heap takes some to settle."""
    code = """
import resource, sys, torch
from training.kernels.memory_hints import keep_memory
keep_memory()
for k in range(60):
    if k == 50:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 22)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 4096
