"""The rule that picks an implementation for each operator, and what it records."""

import pytest
import torch

from training.kernels import choice
from training.kernels.advice import what_would_be_faster
from training.kernels.choice import Implementations, Precision
from training.kernels.compiler import InstructionSet


def pretend(
    monkeypatch: pytest.MonkeyPatch, target: InstructionSet | None, has_library: bool
) -> None:
    """Make the rule decide for another machine."""
    monkeypatch.setattr(choice, "instruction_set", lambda: target)
    monkeypatch.setattr(choice, "library", lambda: object() if has_library else None)


@pytest.mark.parametrize(
    ("target", "has_library", "num_rows", "precision", "expected"),
    [
        ("avx512", True, 8192, "fp32", ("compiled", "compiled")),
        ("avx512", True, 1024, "bf16", ("compiled", "compiled")),
        ("avx512", True, 1025, "bf16", ("compiled", "onednn")),
        ("avx512", False, 256, "fp32", ("pytorch", "onednn")),
        ("avx2", True, 8192, "fp32", ("compiled", "compiled")),
        ("avx2", False, 256, "fp32", ("pytorch", "onednn")),
        ("neon", True, 256, "fp32", ("pytorch", "onednn")),
        (None, False, 256, "fp32", ("pytorch", "onednn")),
    ],
)
def test_the_rule(
    monkeypatch: pytest.MonkeyPatch,
    target: InstructionSet | None,
    has_library: bool,
    num_rows: int,
    precision: Precision,
    expected: tuple[str, str],
) -> None:
    pretend(monkeypatch, target, has_library)
    assert (choice.operators(), choice.layers(num_rows, precision)) == expected
    described = choice.describe(num_rows, precision)
    assert described["embedding operators"] == expected[0]
    assert described[f"{precision} linear layers"] == expected[1]
    assert described["CPU"] == (target or torch.backends.cpu.get_cpu_capability())


def test_implementations_can_be_forced_for_a_while() -> None:
    before = choice.operators(), choice.layers(8, "fp32")
    with choice.forced(Implementations("pytorch", "pytorch")):
        assert (choice.operators(), choice.layers(8, "fp32")) == ("pytorch", "pytorch")
    assert (choice.operators(), choice.layers(8, "fp32")) == before


def test_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "avx512", True)
    assert what_would_be_faster(choice.describe(256, "fp32")) is None
    pretend(monkeypatch, "avx512", False)
    assert "install g++" in (what_would_be_faster(choice.describe(256, "fp32")) or "")
    pretend(monkeypatch, "avx2", True)
    assert "a CPU with AVX-512" in (what_would_be_faster(choice.describe(256, "fp32")) or "")
    pretend(monkeypatch, "neon", True)
    assert "This CPU has NEON" in (what_would_be_faster(choice.describe(256, "fp32")) or "")
    pretend(monkeypatch, None, False)
    assert "compiler" not in (what_would_be_faster({"CPU": "DEFAULT"}) or "compiler")
    assert what_would_be_faster({}) is None
