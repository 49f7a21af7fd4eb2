"""The presets of `clickmill bench`."""

from pathlib import Path

import pytest
import torch

from common.config.loading import ConfigError
from tests.factories.features import training_params
from training.bench import preset as presets
from training.bench.preset import bench_preset, draw_rows, load_preset


def test_mlperf_dcnv2_has_the_sizes_of_the_benchmark() -> None:
    preset = load_preset("mlperf-dcnv2")
    assert len(preset.cardinalities) == 26
    assert sum(preset.cardinalities) == 204_184_588
    assert sum(preset.list_lengths) == 214
    assert preset.model.interaction.name == "cross"


def test_every_row_has_the_lists_of_the_preset() -> None:
    preset = load_preset("mlperf-dcnv2")
    cardinalities = [min(num_ids, 50) for num_ids in preset.cardinalities]
    rows = draw_rows(preset, cardinalities, 7, torch.Generator().manual_seed(1))
    assert rows.ids.shape == (7, preset.list_lengths.count(1))
    lengths = [length for length in preset.list_lengths if length > 1]
    sizes = [n for n, k in zip(cardinalities, preset.list_lengths, strict=True) if k > 1]
    for bag, length, num_ids in zip(rows.bags, lengths, sizes, strict=True):
        assert bag.starts.diff().tolist() == [length] * 7
        assert bag.values.max() < num_ids


def test_the_steps_of_a_preset_are_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(presets, "ROUNDS", 1)
    bench_preset("mlperf-dcnv2", training_params().train, 4, 100)
    output = capsys.readouterr().out
    assert "mlperf-dcnv2: 4 rows a step, 214 ids a row, 2,130 table rows of 128 numbers" in output
    assert "rows/s" in output


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="--preset 'dlrm': no such preset; the presets are mlperf"
    ):
        load_preset("dlrm")


def test_a_preset_has_a_length_for_each_feature(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = (presets.PRESETS / "mlperf-dcnv2.yaml").read_text().replace("100, 27", "100")
    (tmp_path / "short.yaml").write_text(text)
    monkeypatch.setattr(presets, "PRESETS", tmp_path)
    with pytest.raises(ConfigError, match="25 list_lengths found, 26 expected"):
        load_preset("short")
