"""The compiled kernels and the oneDNN layers against plain PyTorch in float64.

The sizes are even and odd, smaller and larger than a vector; the same inputs must give the same
bytes.
"""

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from training.kernels import choice, compiler, embedding_ops, linear_layers
from training.kernels.choice import Implementations
from training.models.embedding_tables import EmbeddingTables
from training.models.interaction import DotInteraction
from training.models.mlp import MLP
from training.optim.embedding_optimizers import RowwiseAdagrad, make_embedding_optimizer

needs_library = pytest.mark.skipif(
    compiler.library() is None, reason="no kernels for this CPU, or no C++ compiler"
)
bf16 = pytest.param(
    "bf16",
    marks=pytest.mark.skipif(
        not choice.bf16_supported(), reason="this CPU has no bf16 instructions"
    ),
)
SIZES = [  # B, F, D
    (1, 2, 1),
    (3, 2, 5),
    (37, 5, 16),
    (64, 26, 16),
    (5, 33, 8),
    (130, 17, 40),
    (33, 3, 128),
    (0, 4, 16),
]
each_size = pytest.mark.parametrize("sizes", SIZES, ids=str)


def compiled(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test with all compiled kernels, whatever the rule of this CPU says."""
    return needs_library(pytest.mark.usefixtures("compiled_kernels")(test))


@pytest.fixture
def compiled_kernels() -> Iterator[None]:
    with choice.forced(Implementations("compiled", "compiled")):
        yield


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def random_tensor(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def make_tables(num_columns: int, dim: int) -> EmbeddingTables:
    """Return tables of 1, 4, 7, ... rows."""
    return EmbeddingTables(
        [1 + 3 * f for f in range(num_columns)], dim, torch.Generator().manual_seed(1)
    )


def make_ids(tables: EmbeddingTables, num_rows: int, dtype: torch.dtype) -> Tensor:
    """Return random ids (num_rows, F) of all values of each table."""
    cardinalities = torch.tensor([end - start for start, end in tables.spans])
    generator = torch.Generator().manual_seed(2)
    return (torch.rand(num_rows, len(cardinalities), generator=generator) * cardinalities).to(dtype)


@compiled
@each_size
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_embedding_lookup(sizes: tuple[int, int, int], dtype: torch.dtype) -> None:
    B, F, D = sizes
    tables = make_tables(F, D)
    ids = make_ids(tables, B, dtype)
    assert torch.equal(
        embedding_ops.embedding_lookup(tables.weight, ids, tables.offsets),
        tables.weight[ids + tables.offsets],
    )


@compiled
@each_size
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_distinct_rows(sizes: tuple[int, int, int], dtype: torch.dtype) -> None:
    B, F, _ = sizes
    tables = make_tables(F, 1)
    ids = make_ids(tables, B, dtype)
    found = embedding_ops.distinct_rows(ids, tables.offsets, tables.num_rows)
    expected = torch.unique(ids + tables.offsets, return_inverse=True)
    assert all(map(torch.equal, found, expected))


@compiled
def test_distinct_rows_of_large_tables() -> None:
    """The ids have one to four digits of the sort, and more than 4,096 of them larger digits."""
    sizes = torch.tensor([1, 256, 257, 65_537, 2**31 - 1])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)[:-1]])
    generator = torch.Generator().manual_seed(3)
    for num_rows in (4096, 4097):
        ids = (torch.rand(num_rows, len(sizes), generator=generator).double() ** 3 * sizes).long()
        ids[0], ids[1] = 0, sizes - 1
        found = embedding_ops.distinct_rows(ids.int(), offsets, int(sizes.sum()))
        expected = torch.unique(ids + offsets, return_inverse=True)
        assert all(map(torch.equal, found, expected))


@compiled
@each_size
@pytest.mark.parametrize("has_bottom", [False, True])
def test_pair_dots_and_their_gradients(sizes: tuple[int, int, int], has_bottom: bool) -> None:
    B, F, D = sizes
    interaction = DotInteraction(F, D, has_bottom=has_bottom)
    inputs = [random_tensor(B, D)] if has_bottom else []
    inputs += [random_tensor(B, F, D)]
    results = []
    for dtype in (torch.float32, torch.float64):  # float64 has no kernel
        leaves = [values.to(dtype, copy=True).requires_grad_() for values in inputs]
        assert embedding_ops.usable(leaves[-1]) == (dtype == torch.float32)
        outputs = interaction(leaves[0] if has_bottom else None, leaves[-1])
        assert outputs.shape == (B, interaction.num_outputs)
        (outputs * random_tensor(*outputs.shape)).sum().backward()
        results.append([outputs.detach(), *(leaf.grad for leaf in leaves)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@compiled
@each_size
@pytest.mark.parametrize("name", ["sgd", "rowwise_adagrad"])
def test_embedding_optimizers(sizes: tuple[int, int, int], name: str) -> None:
    """The tables have few rows, so nearly all ids of a large batch repeat."""
    B, F, D = sizes
    found, expected = make_tables(F, D), make_tables(F, D).double()
    steps = [
        (found, make_embedding_optimizer(name, found)),
        (expected, make_embedding_optimizer(name, expected)),
    ]
    for dtype in (torch.int32, torch.int64):
        ids, grad = make_ids(found, B, dtype), random_tensor(B, F, D)
        for tables, optimizer in steps:
            optimizer.step(tables, ids, grad.to(tables.weight.dtype), 0.1)
    torch.testing.assert_close(found.weight.double(), expected.weight, rtol=1e-4, atol=1e-5)
    (_, compiled_optimizer), (_, plain_optimizer) = steps
    for name, state in plain_optimizer.state_dict().items():
        found_state = compiled_optimizer.state_dict()[name].double()
        torch.testing.assert_close(found_state, state, rtol=1e-4, atol=1e-5)


@compiled
@pytest.mark.parametrize("bad", [-1, 4, 2**40])
def test_an_id_outside_its_table_is_refused_and_no_weight_changes(bad: int) -> None:
    tables = make_tables(3, 16)
    before = tables.weight.clone()
    ids = make_ids(tables, 9, torch.int64)
    ids[5, 1] = bad
    for name in ("sgd", "rowwise_adagrad"):
        with pytest.raises(IndexError, match=f"id {bad} of column 1 in row 5"):
            make_embedding_optimizer(name, tables).step(tables, ids, random_tensor(9, 3, 16), 0.1)
    with pytest.raises(IndexError, match=f"id {bad} of column 1 in row 5"):
        tables(ids)
    with pytest.raises(IndexError, match=f"id {bad} of column 1 in row 5"):
        embedding_ops.distinct_rows(ids, tables.offsets, tables.num_rows)
    assert torch.equal(tables.weight, before)


@compiled
def test_the_same_bytes_with_any_number_of_threads() -> None:
    results = set()
    for num_threads in (1, 2, 2, 3):
        torch.set_num_threads(num_threads)
        tables = make_tables(26, 16)
        ids, optimizer = make_ids(tables, 3000, torch.int32), RowwiseAdagrad(tables)
        dots = embedding_ops.PairDots.apply(random_tensor(3000, 16), tables(ids))
        optimizer.step(tables, ids, random_tensor(3000, 26, 16), 0.1)
        results.add(
            dots.numpy().tobytes()
            + tables.weight.numpy().tobytes()
            + optimizer.sums.numpy().tobytes()
        )
    assert len(results) == 1


@pytest.fixture(params=["onednn", pytest.param("compiled", marks=needs_library)])
def implementation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let oneDNN or the compiled kernels compute all linear layers."""
    operators: choice.Operators = "pytorch" if request.param == "onednn" else "compiled"
    with choice.forced(Implementations(operators, request.param)):
        yield


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("num_rows", [0, 1, 37, 3000])
@pytest.mark.parametrize("widths", [[13, 512, 37, 5], [3, 1], [200, 16, 129]], ids=str)
@pytest.mark.parametrize("relu_last", [False, True])
@pytest.mark.parametrize("precision", ["fp32", bf16])
def test_layers_and_their_gradients(
    num_rows: int, widths: list[int], relu_last: bool, precision: choice.Precision
) -> None:
    """float64 is computed by PyTorch's own operators.

    bf16 has 8 bits, and near zero it decides some ReLUs otherwise. Therefore errors are compared
    with the size of the whole tensor.
    """
    model = MLP(widths, torch.Generator().manual_seed(1), relu_last=relu_last)
    inputs, weights = random_tensor(num_rows, widths[0]), random_tensor(num_rows, widths[-1])
    results = []
    for dtype in (torch.float32, torch.float64):
        tested = MLP(widths, torch.Generator(), relu_last=relu_last).to(dtype)
        tested.load_state_dict(model.state_dict())
        tested.precision = precision if dtype == torch.float32 else "fp32"
        leaf = inputs.to(dtype, copy=True).requires_grad_()
        assert linear_layers.usable(leaf, precision) == (dtype == torch.float32)
        outputs = tested(leaf)
        assert outputs.dtype == dtype
        (outputs * weights).sum().backward()
        results.append(
            [outputs.detach(), leaf.grad, *(parameter.grad for parameter in tested.parameters())]
        )
    for found, expected in zip(*results, strict=True):
        assert found.shape == expected.shape
        error = np.linalg.norm(found.double() - expected) / max(np.linalg.norm(expected), 1)
        assert error < (0.15 if precision == "bf16" else 1e-5), error


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("precision", ["fp32", bf16])
def test_layers_give_the_same_bytes_every_time(precision: choice.Precision) -> None:
    model = MLP([367, 512, 1], torch.Generator().manual_seed(1), relu_last=False)
    model.precision = precision
    results = set()
    for _ in range(5):
        model.zero_grad()
        model(random_tensor(1024, 367)).square().sum().backward()
        results.add(b"".join(parameter.grad.numpy().tobytes() for parameter in model.parameters()))
    assert len(results) == 1


@compiled
@pytest.mark.parametrize("precision", ["fp32", bf16])
def test_compiled_layers_give_the_same_bytes_with_any_number_of_threads(
    precision: choice.Precision,
) -> None:
    results = set()
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        model = MLP([13, 512, 70, 1], torch.Generator().manual_seed(1), relu_last=False)
        model.precision = precision
        model(random_tensor(1000, 13)).square().sum().backward()
        results.add(b"".join(parameter.grad.numpy().tobytes() for parameter in model.parameters()))
    assert len(results) == 1


@compiled
@pytest.mark.parametrize("num_rows", [0, 1, 1000])
@pytest.mark.parametrize("has_relu", [False, True])
def test_relu_backward(num_rows: int, has_relu: bool) -> None:
    """The gradient has PyTorch's bytes; the sums are the same with any number of threads."""
    grad, outputs = (
        random_tensor(num_rows, 77).bfloat16(),
        random_tensor(num_rows, 77, 1).squeeze(2).relu().bfloat16(),
    )
    expected = torch.ops.aten.threshold_backward(grad, outputs, 0) if has_relu else grad
    results = set()
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        found, sums = linear_layers._relu_backward(grad.clone(), outputs if has_relu else None)
        assert torch.equal(found, expected)
        torch.testing.assert_close(sums, expected.float().sum(0), rtol=1e-5, atol=1e-4)
        results.add(sums.numpy().tobytes())
    assert len(results) == 1


@pytest.mark.parametrize(
    "environment",
    [
        {"CXX": "/nowhere/c++"},
        {"CXX": "false"},
        pytest.param(
            {"ATEN_CPU_CAPABILITY": "default"},
            marks=pytest.mark.skipif(
                compiler.instruction_set() == "neon", reason="every ARM CPU has NEON"
            ),
        ),
    ],
    ids=lambda environment: " ".join(environment.values()),
)
def test_without_a_compiler_or_avx2_pytorch_does_the_work(environment: dict[str, str]) -> None:
    code = """
import torch
from training.kernels import choice, compiler, embedding_ops
assert compiler.library() is None
assert compiler.kernels_name() == "none"
assert choice.operators() == "pytorch"
assert choice.layers(256, "fp32") == "onednn"
assert not embedding_ops.usable(torch.zeros(1))
"""
    environment = {"PATH": "/usr/bin:/bin", **environment}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


@pytest.mark.skipif(
    compiler.instruction_set() != "avx512", reason="it emulates AVX2 on a CPU with AVX-512"
)
@pytest.mark.slow
def test_all_of_this_holds_with_the_kernels_for_avx2() -> None:
    environment = os.environ | {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", __file__]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    assert "no kernels for this CPU" not in run.stdout


@needs_library
def test_the_library_is_built_once(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiler.library.cache_clear()
    first = compiler.library()
    monkeypatch.setenv("PATH", "/nowhere")
    assert first is not None
    compiler.library.cache_clear()
    # without the compiler its version is unknown, which is part of the library's name
    assert compiler.library() is None
    monkeypatch.undo()
    compiler.library.cache_clear()


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("num_rows", [64, 3000])  # of small and large products
@pytest.mark.parametrize("precision", ["fp32", bf16])
def test_nan_stays_nan_through_relu(precision: choice.Precision, num_rows: int) -> None:
    """As in PyTorch. Otherwise a run with lost weights would continue unnoticed."""
    inputs_BI = random_tensor(num_rows, 70)
    inputs_BI[5, 2] = float("nan")
    weights = [random_tensor(32, 70).requires_grad_(), random_tensor(16, 32).requires_grad_()]
    outputs_BO = linear_layers.linear_stack(
        inputs_BI, weights, [torch.zeros(32), torch.zeros(16)], relu_last=True, precision=precision
    )
    is_nan_B = outputs_BO.isnan().all(dim=1)
    assert is_nan_B[5]
    # With AMX, oneDNN reads row 4 past its end and multiplies the start of row 5 by zero.
    assert not is_nan_B[:4].any()
    assert not is_nan_B[6:].any()
    outputs_BO.sum().backward()
    for weight in weights:
        assert weight.grad is not None
        assert weight.grad.isnan().any()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="keep_memory needs glibc")
def test_freed_memory_is_kept() -> None:
    """A process allocates and frees blocks of 16 MiB, which are 4,096 pages.

    The page faults of the last 10 of 60 blocks count, because the heap needs some to settle.
    """
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
