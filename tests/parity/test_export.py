"""Exported models give PyTorch's scores, and a row the same bits in every batch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.config.model import Model
from common.config.params import MlpFormat, TableFormat
from serving.runtime import Runtime
from tests.factories.support import plain_model
from training.compression.compress_model import Statistics, Steps, compress_model
from training.compression.statistics import (
    Activations,
    RowReads,
    groups_of_tables,
    hidden_widths,
    mlps_of,
)
from training.export.formats import with_formats
from training.export.onnx_file import EXTERNAL_DATA, write_onnx
from training.export.parity import MAX_DIFFERENCE
from training.export.traced_model import trace
from training.models.dlrm import DLRM
from training.models.embedding_tables import EmbeddingTables
from training.models.ensemble import Ensemble, members_of
from training.models.factory import build_model
from training.models.reads import CategoricalInputs

CARDINALITIES = [3, 100, 50, 700, 20, 30]
NAMES = [f"C{k}" for k in range(6)]
NUM_DENSE, NUM_ROWS = 5, 300
SHARED = CategoricalInputs([0, 1, 2, 3, 1, 4], [None] * 6, NAMES)
OF_SHARED = [3, 100, 50, 700, 100, 30]
QR = {"name": "quotient_remainder", "collisions": 4, "threshold": 40}
MIXED = {"name": "mixed_dim", "alpha": 0.5, "threshold": 25}
PER_COLUMN = {"name": "per_column", "dims": {"C0": 1, "C1": 3, "C3": 0, "C5": 5}}
VARIANTS: dict[str, dict[str, Any]] = {
    "dot": {},
    "cat": {"interaction": {"name": "cat"}},
    "cross": {"interaction": {"name": "cross", "layers": 3, "rank": None}},
    "cross of low rank": {"interaction": {"name": "cross", "layers": 2, "rank": 4}},
    "mult": {"tables": QR | {"operation": "mult"}},
    "add": {"tables": QR | {"operation": "add"}},
    "concat": {"tables": QR | {"operation": "concat"}},
    "mixed_dim": {"tables": MIXED},
    "per_column": {"tables": PER_COLUMN},
}
QUICK = {"dot", "mixed_dim"}


def slow_unless(quick: set[str], names: Sequence[str]) -> list[Any]:
    marks = {name: [] if name in quick else [pytest.mark.slow] for name in names}
    return [pytest.param(name, marks=marks[name]) for name in names]


def make_model(
    params: dict[str, Any],
    *,
    num_dense: int = NUM_DENSE,
    inputs: CategoricalInputs | None = None,
    seed: int = 1,
) -> DLRM:
    """Make a model with random weights, and a mean and a std of its dense features."""
    widths = {"embedding_dim": 8, "bottom_mlp": [17, 9], "top_mlp": [21, 12]}
    own_tables = CategoricalInputs(list(range(6)), [None] * 6, NAMES)
    generator = torch.Generator().manual_seed(seed)
    model = build_model(
        Model.model_validate(plain_model(**widths | params)),
        OF_SHARED if inputs else CARDINALITIES,
        num_dense,
        generator,
        inputs=inputs or own_tables,
    )
    model.standardise.fit(3 * torch.randn(50, num_dense, generator=generator) + 1)
    for group in model.embeddings.tables:  # rows that matter beside the dense features
        group.weight.mul_(10)
    return model.eval().requires_grad_(False)


def random_rows(num_dense: int, sizes: Sequence[int]) -> tuple[Any, Any]:
    rng = np.random.default_rng(7)
    dense = rng.normal(1, 3, (NUM_ROWS, num_dense)).astype(np.float32)
    return dense, rng.integers(0, sizes, (NUM_ROWS, len(sizes))).astype(np.int32)


def check(
    model: DLRM | Ensemble,
    tmp_path: Path,
    *,
    num_dense: int = NUM_DENSE,
    sizes: Sequence[int] = CARDINALITIES,
) -> np.ndarray:
    """Export a model, compare it with PyTorch, and return its scores."""
    dense, ids = random_rows(num_dense, sizes)
    expected = torch.sigmoid(model(torch.from_numpy(dense), torch.from_numpy(ids))).numpy()
    assert expected.std() > 0.01
    write_onnx(trace(model, num_dense, len(sizes)), tmp_path)
    for num_threads in (1, 2):
        runtime = Runtime(tmp_path / "model.onnx", num_threads)
        scores = runtime.scores(dense, ids)
        assert np.abs(scores - expected).max() <= MAX_DIFFERENCE
        for batch_rows in (1, 3, 17):
            parts = [slice(k, k + batch_rows) for k in range(0, NUM_ROWS, batch_rows)]
            found = np.concatenate([runtime.scores(dense[part], ids[part]) for part in parts])
            assert found.tobytes() == scores.tobytes()
    return scores


@pytest.mark.parametrize("name", slow_unless(QUICK, list(VARIANTS)))
def test_each_variant_gives_the_scores_of_pytorch(name: str, tmp_path: Path) -> None:
    check(make_model(VARIANTS[name]), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dot", "mixed_dim", "add"])
def test_features_that_share_a_table_are_exported(name: str, tmp_path: Path) -> None:
    check(make_model(VARIANTS[name], inputs=SHARED), tmp_path, sizes=OF_SHARED)


@pytest.mark.slow
@pytest.mark.parametrize("interaction", ["dot", "cat"])
def test_a_model_without_dense_features_takes_ids_alone(interaction: str, tmp_path: Path) -> None:
    check(make_model({"interaction": {"name": interaction}}, num_dense=0), tmp_path, num_dense=0)


def test_an_ensemble_gives_the_sigmoid_of_the_mean_logit(tmp_path: Path) -> None:
    members = [make_model(VARIANTS["dot"], seed=1), make_model(VARIANTS["cross"], seed=2)]
    check(Ensemble(members).eval(), tmp_path)


@pytest.mark.parametrize("tables", slow_unless({"int4"}, ["fp16", "int8", "int4"]))
@pytest.mark.parametrize("mlps", slow_unless({"bf16"}, ["fp32", "bf16"]))
def test_formats_of_fewer_bits_are_those_of_pytorch(
    tables: TableFormat, mlps: MlpFormat, tmp_path: Path
) -> None:
    model = make_model(VARIANTS["mixed_dim"])
    exact = check(model, tmp_path)
    size = (tmp_path / "model.onnx").stat().st_size
    scores = check(with_formats(model, tables, mlps), tmp_path)
    assert 0 < np.abs(scores - exact).max() < {"fp16": 0.01, "int8": 0.05, "int4": 0.5}[tables]
    assert (tmp_path / "model.onnx").stat().st_size < size


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8, 16, 32])
def test_a_compressed_model_with_removed_rows_and_units_is_exported(
    bits: Any, tmp_path: Path
) -> None:
    model = make_model(VARIANTS["dot"])
    generator = torch.Generator().manual_seed(3)
    reads = []
    for tables in groups_of_tables(model):
        assert isinstance(tables, EmbeddingTables)
        counts = torch.randint(0, 9, (tables.num_rows,), generator=generator)
        reads.append(RowReads(counts, torch.zeros(tables.num_rows, dtype=torch.bool)))
    activations = [
        {
            name: [Activations(np.ones(n), np.arange(n) / n) for n in hidden_widths(mlp)]
            for name, mlp in mlps_of(member).items()
        }
        for member in members_of(model)
    ]
    steps = Steps(bits, rows=0.4, units=0.2)
    compressed = compress_model(model, steps, Statistics(reads, activations))
    assert compressed.embeddings.tables[0].num_kept is not None
    check(compressed, tmp_path)


def test_large_weights_lie_in_a_file_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(VARIANTS["dot"])
    scores = check(model, tmp_path)
    monkeypatch.setattr("training.export.onnx_file.MAX_BYTES_INSIDE", 1000)
    (tmp_path / "large").mkdir()
    assert check(model, tmp_path / "large").tobytes() == scores.tobytes()
    weight = model.embeddings.tables[0].weight
    assert (tmp_path / "large" / EXTERNAL_DATA).stat().st_size > weight.nbytes


def test_a_row_whose_logit_is_infinite_or_nan_has_no_score(tmp_path: Path) -> None:
    model = make_model(VARIANTS["dot"])
    write_onnx(trace(model, NUM_DENSE, len(CARDINALITIES)), tmp_path)
    dense, ids = random_rows(NUM_DENSE, CARDINALITIES)
    expected = Runtime(tmp_path / "model.onnx").scores(dense, ids)
    dense[3], dense[5] = np.nan, np.inf
    logits = model(torch.from_numpy(dense), torch.from_numpy(ids))
    assert not logits[[3, 5]].isfinite().any()
    scores = Runtime(tmp_path / "model.onnx").scores(dense, ids)
    assert np.flatnonzero(np.isnan(scores)).tolist() == [3, 5]
    others = np.delete(np.arange(NUM_ROWS), [3, 5])
    assert scores[others].tobytes() == expected[others].tobytes()
