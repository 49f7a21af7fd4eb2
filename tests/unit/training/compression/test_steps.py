"""The steps of a compression, each against its definition."""

import numpy as np
import pytest
import torch
from torch import nn

from training.compression.recalibrate import Calibration, fit_calibration, probabilities
from training.compression.remove import choose_rows, remove_units
from training.compression.statistics import Activations, RowReads
from training.models import embedding_tables
from training.models.compressed_tables import CompressedTables
from training.models.embedding_tables import EmbeddingTables
from training.models.mlp import MLP
from training.models.number_formats import Format

CARDINALITIES, D = [40, 3, 57], 5


def make_tables(seed: int = 1) -> tuple[EmbeddingTables, RowReads]:
    generator = torch.Generator().manual_seed(seed)
    tables = EmbeddingTables(CARDINALITIES, D, generator)
    counts = torch.randint(0, 50, (tables.num_rows,), generator=generator)
    is_shared = torch.zeros(tables.num_rows, dtype=torch.bool)
    is_shared[[0, 1, 40, 41, 43, 44]] = True
    return tables, RowReads(counts, is_shared)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_the_rows_that_are_left_out_are_worth_least(share: float) -> None:
    tables, reads = make_tables()
    weight, counts = tables.weight.numpy().astype(np.float64), reads.counts.numpy()
    worth = {
        row: float(np.sqrt((weight[row] ** 2).sum()) * np.sqrt(counts[row]))
        for row in range(tables.num_rows)
        if not reads.is_shared[row]
    }
    expected = sorted(worth, key=worth.__getitem__)[: int(share * tables.num_rows)]
    kept = choose_rows(tables, reads, share, bytes_of_row=7)
    assert kept is not None
    assert np.flatnonzero(~kept.is_kept.numpy()).tolist() == sorted(expected)
    for k, (start, end) in enumerate(tables.spans):
        of_table = [row for row in expected if start <= row < end]
        total = sum(counts[row] for row in of_table)
        mean = sum(weight[row] * counts[row] for row in of_table) / max(total, 1)
        np.testing.assert_allclose(kept.substitutes[k].numpy(), mean * np.ones(D), rtol=1e-6)


def test_rows_of_ids_that_many_values_share_are_always_kept() -> None:
    tables, reads = make_tables()
    kept = choose_rows(tables, reads, 1.0, bytes_of_row=7)
    assert kept is not None
    assert torch.equal(kept.is_kept, reads.is_shared)


@pytest.mark.parametrize(("share", "is_worth_it"), [(0, False), (0.04, False), (0.05, True)])
def test_no_row_is_left_out_if_the_index_takes_more_bytes(share: float, is_worth_it: bool) -> None:
    """The index of 100 rows has 13 bytes, and 3 substitutes have 21: as much as 4.9 rows."""
    found = choose_rows(*make_tables(), share, bytes_of_row=7)
    assert (found is not None) == is_worth_it


@pytest.mark.parametrize("share", [0, 0.5])
@pytest.mark.parametrize("bits", [4, 8, 16, 32, "fp16"])
def test_rows_that_are_encoded_in_blocks_are_the_same(
    monkeypatch: pytest.MonkeyPatch, bits: Format, share: float
) -> None:
    tables, reads = make_tables()
    kept = choose_rows(tables, reads, share, bytes_of_row=7)
    num_kept = None if kept is None else int(kept.is_kept.sum())
    whole, in_blocks = (
        CompressedTables(CARDINALITIES, D, bits=bits, num_kept=num_kept) for _ in range(2)
    )
    whole.store(tables.weight, *(kept or ()))
    monkeypatch.setattr(embedding_tables, "BLOCK_BYTES", 300)
    in_blocks.store(tables.weight, *(kept or ()))
    expected, found = whole.state_dict(), in_blocks.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert in_blocks.fault() is None
    if in_blocks.scale is not None:
        in_blocks.scale[-1] = -1  # in the last block
        assert in_blocks.fault() == "a scale is negative, NaN or infinite"


def activations_of(mlp: MLP, inputs: torch.Tensor) -> list[Activations]:
    found, x = [], inputs
    layers = [layer for layer in mlp if isinstance(layer, nn.Linear)]
    for layer in layers[:-1]:
        x = torch.relu(layer(x)).detach()
        values = x.double().numpy()
        found.append(Activations(values.mean(axis=0), values.std(axis=0)))
    return found


def test_units_that_never_change_can_be_removed_without_a_loss() -> None:
    generator = torch.Generator().manual_seed(3)
    mlp = MLP([6, 8, 10, 2], generator, relu_last=False)
    with torch.no_grad():
        for layer, constant in ((mlp[0], [1, 5]), (mlp[2], [0, 3, 9])):
            layer.weight[constant] = 0
            layer.bias[constant] = torch.tensor([0.7, -0.4, 0.2])[: len(constant)]
    inputs = torch.randn(50, 6, generator=generator)
    before = mlp(inputs)
    remove_units(mlp, activations_of(mlp, inputs), 0.25)  # of 8, and 2 of 10
    assert [mlp[k].weight.shape for k in (0, 2, 4)] == [(6, 6), (8, 6), (2, 8)]
    torch.testing.assert_close(mlp(inputs), before, rtol=1e-5, atol=1e-5)


def test_the_units_with_the_smallest_spread_times_outgoing_norm_are_removed() -> None:
    generator = torch.Generator().manual_seed(4)
    mlp = MLP([6, 8, 1], generator, relu_last=False)
    inputs = torch.randn(50, 6, generator=generator)
    (of_units,) = activations_of(mlp, inputs)
    outgoing = mlp[2].weight.detach().abs().squeeze(0).numpy()
    kept = sorted(np.argsort(of_units.std * outgoing)[4:].tolist())
    expected_weight = mlp[0].weight.detach()[kept]
    removed = [unit for unit in range(8) if unit not in kept]
    means = torch.tensor(of_units.mean)[removed].float()
    expected_bias = mlp[2].bias.detach() + (mlp[2].weight.detach()[:, removed] * means).sum(1)
    remove_units(mlp, [of_units], 0.5)
    assert torch.equal(mlp[0].weight, expected_weight)
    torch.testing.assert_close(mlp[2].bias.detach(), expected_bias)


def test_the_recalibration_undoes_a_factor_and_a_term() -> None:
    original = np.random.default_rng(1).normal(-1, 2, 5000).astype(np.float32)
    changed = ((original - 0.5) / 1.7).astype(np.float32)
    found = fit_calibration(changed, original, None)
    assert found == pytest.approx((1.7, 0.5), abs=1e-5)
    np.testing.assert_allclose(found.apply(changed), original, atol=1e-4)


def test_scores_that_have_not_changed_are_not_recalibrated() -> None:
    original = np.random.default_rng(1).normal(-1, 2, 500).astype(np.float32)
    assert fit_calibration(original, original, None) == pytest.approx((1.0, 0.0), abs=1e-7)


@pytest.mark.parametrize("value", [-30.0, 0.0, 80.0])
def test_equal_logits_have_one_recalibration(value: float) -> None:
    """Only the sum of both terms matters; the smallest change of both is taken."""
    original = np.full(20, -1.0, np.float32)
    found = fit_calibration(np.full(20, value, np.float32), original, None)
    assert np.isfinite(found).all()
    assert found.scale * value + found.shift == pytest.approx(-1.0, abs=1e-3)


def test_the_recalibration_minimises_the_weighted_cross_entropy() -> None:
    random = np.random.default_rng(2)
    x, original = random.normal(0, 2, 300), random.normal(0, 1, 300)
    weights = random.integers(0, 3, 300).astype(np.float32)
    found = fit_calibration(x, original, weights)
    repeated = np.repeat(np.arange(300), weights.astype(int))
    assert found == pytest.approx(fit_calibration(x[repeated], original[repeated], None), abs=1e-6)

    def loss(calibration: Calibration) -> float:
        p = probabilities(calibration.scale * x + calibration.shift)
        target = probabilities(original)
        return float((weights * -(target * np.log(p) + (1 - target) * np.log(1 - p))).sum())

    for scale, shift in ((0.01, 0), (-0.01, 0), (0, 0.01), (0, -0.01)):
        assert loss(found) < loss(Calibration(found.scale + scale, found.shift + shift))
