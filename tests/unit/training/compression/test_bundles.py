"""A compressed bundle is made of any model, has reproducible bytes, and is used like others."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from common.artifact import Artifact
from common.bundle_layout import HISTORY, MANIFEST, MODEL, STATE, WEIGHTS, weights_name
from common.checked_json import write_checked_json
from common.config.loading import ConfigError
from common.config.model import Model
from common.files import DataError, sha256_file
from common.layout import EVALUATION, FEATURES
from features.encode.feature_state import FeatureState
from tests.factories.html_pages import parsed_html
from tests.factories.models import (
    HISTORY_CSV,
    NUM_ROWS,
    NUM_TEST,
    log_lines,
    make_project,
    model_for,
    read_split,
    small_params,
)
from training.compression.compress_model import Statistics, Steps, compress_model
from training.compression.judge import Judge
from training.compression.recalibrate import recalibrate
from training.compression.stage import check_output, compress
from training.compression.statistics import count_reads, measure_activations
from training.evaluation.stage import evaluate
from training.inference.bundle import complete_bundle, load_bundle, save_weights
from training.inference.predict import predict
from training.inference.score import score
from training.loop.warm_start import WarmStart
from training.models.footprint import footprint_of
from training.promotion.decide import decide_promotion

QR = {"name": "quotient_remainder", "collisions": 4, "threshold": 50}
MODELS: dict[str, dict[str, Any]] = {
    "dot": {},
    "two models": {},
    "cat, no hidden layers": {"interaction": {"name": "cat"}, "bottom_mlp": [], "top_mlp": []},
    "cross": {"interaction": {"name": "cross", "layers": 2, "rank": None}},
    "cross of rank 5": {"interaction": {"name": "cross", "layers": 2, "rank": 5}},
    "mult": {"tables": QR | {"operation": "mult"}},
    "concat": {"tables": QR | {"operation": "concat"}, "embedding_dim": 6},
    "per_column": {
        "tables": {"name": "per_column", "dims": {"C1": 0, "C2": 3, "C3": 3, "C26": 5}},
    },
    "mixed_dim": {
        "tables": {"name": "mixed_dim", "alpha": 0.5, "threshold": 20},
        "embedding_dim": 8,
    },
}
ALL_STEPS = [
    Steps(8),
    Steps(16),
    Steps(4, rows=0.9, units=0.3),
    Steps(32, rows=0.5),
    Steps(32, units=0.5),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with features, and a bundle with random weights for each model."""
    folder = tmp_path_factory.mktemp("compression")
    make_project(folder, log_lines(NUM_ROWS, 1))
    for name, parts in MODELS.items():
        make_bundle(folder, folder / name, parts, num_members=2 if name == "two models" else 1)
    return folder


def make_bundle(root: Path, directory: Path, parts: dict[str, Any], num_members: int) -> None:
    params = small_params(root / "log.tsv", **parts)
    directory.mkdir(parents=True)
    (directory / HISTORY).write_text(HISTORY_CSV)
    generator = torch.Generator().manual_seed(2)
    for number in range(num_members):
        model = model_for(FeatureState.load(root / FEATURES / STATE), params.model)
        for tables in model.embeddings.tables:  # so that the scores depend on the rows
            tables.weight.copy_(torch.randn(tables.weight.shape, generator=generator))
        save_weights(directory / weights_name(number), model.state_dict())
    complete_bundle(directory, Artifact.open(root / FEATURES), params, root, {}, num_members)


def compressed(root: Path, name: str, steps: Steps, output: Path) -> Path:
    compress(root / name, output, steps, root)
    return output


def contents(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_compressed_by_every_step(root: Path, tmp_path: Path, name: str) -> None:
    original = load_bundle(root / name)
    rows = read_split(root, "valid")
    expected = score(original, rows)
    for steps in ALL_STEPS:
        bundle = load_bundle(compressed(root, name, steps, tmp_path / "small"))
        compression = bundle.manifest.compression
        assert compression is not None
        assert compression.source_version == original.version != bundle.version
        assert (compression.bits, compression.rows, compression.units) == steps
        files = [tmp_path / "small" / weights_name(k) for k in range(bundle.manifest.num_members)]
        tensors = [tensor for file in files for tensor in load_file(file).values()]
        footprint = footprint_of(bundle.model)
        assert footprint.bytes == sum(tensor.nbytes for tensor in tensors)
        scores = score(bundle, rows)
        if steps in (Steps(8), Steps(16)):
            assert np.abs(scores - expected).max() < 0.06
        if name == "cat, no hidden layers" and steps == Steps(32, units=0.5):
            assert np.array_equal(scores, expected)
        else:
            assert footprint.bytes < footprint_of(original.model).bytes
            assert not np.array_equal(scores, expected)
        # a score does not depend on the other rows of its batch
        order = np.random.default_rng(3).permutation(rows.height)
        assert np.array_equal(score(bundle, rows[order]), scores[order])
        assert np.array_equal(score(bundle, rows[17:18]), scores[17:18])


@pytest.mark.parametrize("steps", [Steps(8, rows=0.5, units=0.3), Steps(4), Steps(16, units=0.5)])
def test_a_loaded_bundle_has_the_scores_of_the_model_that_was_saved(
    root: Path, tmp_path: Path, steps: Steps
) -> None:
    bundle = load_bundle(root / "dot")
    features, schema = Artifact.open(root / FEATURES), bundle.state.schema
    statistics = Statistics(
        count_reads(bundle.model, bundle.state, features, lambda _: None),
        measure_activations([bundle.model], schema, features, lambda _: None),
    )
    model = compress_model(bundle.model, steps, statistics)
    judge = Judge(bundle.model, features, schema, lambda _: None)
    recalibrate(model, judge.calibration(judge.logits(model)))
    loaded = load_bundle(compressed(root, "dot", steps, tmp_path / "small"))
    dense = torch.randn(100, len(schema.dense_features))
    ids = torch.randint(0, 3, (100, len(schema.single_valued_features)), dtype=torch.int32)
    assert torch.equal(loaded.model(dense, ids), model(dense, ids))
    assert score(load_bundle(root / "dot"), read_split(root, "valid")).std() > 0  # not changed


def test_counts_are_those_of_the_training_rows(root: Path) -> None:
    for name in ("dot", "mult", "per_column"):
        bundle = load_bundle(root / name)
        found = count_reads(
            bundle.model, bundle.state, Artifact.open(root / FEATURES), lambda _: None
        )
        rows, schema = read_split(root, "train"), bundle.state.schema
        expected = [np.zeros(len(each.counts), np.int64) for each in found]
        for table, column in enumerate(schema.categorical_features):
            ids = torch.from_numpy(rows[column].to_numpy().copy())
            places = bundle.model.embeddings.places(table)
            if (name, column) == ("per_column", "C1"):  # it is left out
                assert places == []
                continue
            for (group, number), part in zip(
                places, bundle.model.embeddings.split_ids(table, ids), strict=True
            ):
                first = bundle.model.embeddings.tables[group].spans[number][0]
                np.add.at(expected[group], first + part.numpy(), 1)
        for each, counts in zip(found, expected, strict=True):
            assert np.array_equal(each.counts.numpy(), counts)


def test_the_same_inputs_give_the_same_bytes(root: Path, tmp_path: Path) -> None:
    steps = Steps(4, rows=0.4, units=0.25)
    first = contents(compressed(root, "mixed_dim", steps, tmp_path / "small"))
    before = torch.get_num_threads()
    torch.set_num_threads(3 - min(before, 2))
    try:
        assert contents(compressed(root, "mixed_dim", steps, tmp_path / "small")) == first
    finally:
        torch.set_num_threads(before)
    assert contents(compressed(root, "mixed_dim", steps, tmp_path / "other")) == first
    assert {path.name for path in tmp_path.iterdir()} == {
        *("small", "small.html", "other", "other.html"),
    }


def test_a_bundle_that_is_not_compressed_does_not_mention_compression(root: Path) -> None:
    assert "compression" not in json.loads((root / "dot" / MANIFEST).read_text())
    assert load_bundle(root / "dot").manifest.compression is None


def test_predict_evaluation_and_comparison_agree(root: Path, tmp_path: Path) -> None:
    """A compressed bundle takes the place of the model that it was made from, and is compared."""
    project = Path(shutil.copytree(root, tmp_path / "project"))
    params = small_params(project / "log.tsv")
    compressed(project, "dot", Steps(8, rows=0.5, units=0.25), project / MODEL.name)
    shutil.copytree(project / MODEL.name, project / MODEL)
    evaluate(params, project)
    evaluated = pl.read_parquet(project / EVALUATION / "scores.parquet")
    metrics = json.loads((project / EVALUATION / "metrics.json").read_text())
    bundle = load_bundle(project / MODEL)
    assert metrics["footprint"]["bytes"] == footprint_of(bundle.model).bytes
    predict(project / MODEL, project / "log.tsv", tmp_path / "scores.parquet")
    predicted = pl.read_parquet(tmp_path / "scores.parquet")["score"].tail(2 * NUM_TEST)
    assert predicted.equals(evaluated["score"])
    test = read_split(project, "test")
    assert np.array_equal(score(bundle, test), predicted.tail(NUM_TEST).to_numpy())
    decision = decide_promotion(params, project, project / "dot")
    assert next(check for check in decision.checks if check.name == "smoke test").passed
    assert decision.champion is not None
    assert decision.champion["version"] == load_bundle(project / "dot").version
    decision = decide_promotion(params, project, project / MODEL.name)  # as the champion
    assert decision.difference["logloss"].value == 0


def test_the_report_compares_each_step(root: Path, tmp_path: Path) -> None:
    compressed(root, "dot", Steps(8, rows=0.5), tmp_path / "small")
    html = (tmp_path / "small.html").read_text()
    page = parsed_html(html)
    assert page.loads == []
    assert {
        *("original", "bf16", "int8", "int4 tables, int8 layers", "50% of the rows left out"),
        *("25% of the units removed", "int8, 50% of the rows left out"),
        *(f"{share}% of the single MLP weights are 0" for share in (30, 50, 70)),
    } <= set(page.texts)
    assert "nothing is saved" in page.texts
    assert html.count("(this bundle)") == 1
    assert f"{footprint_of(load_bundle(root / 'dot').model).macs:,}" in page.texts


def test_compressed_bundles_are_not_compressed_or_trained_again(root: Path, tmp_path: Path) -> None:
    small = compressed(root, "dot", Steps(8), tmp_path / "small")
    version = load_bundle(root / "dot").version
    with pytest.raises(DataError, match=rf"small: compressed already; .* model {version}$"):
        compress(small, tmp_path / "smaller", Steps(4), root)
    state = FeatureState.load(root / FEATURES / STATE)
    with pytest.raises(DataError, match=rf"small: it is compressed, .* model {version}, in train"):
        WarmStart(small, small_params(root / "log.tsv").model, state)
    assert not (tmp_path / "smaller").exists()


def test_steps_that_change_nothing_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--bits 32 alone changes nothing: add --rows or"):
        compress(root / "dot", tmp_path / "small", Steps(32), root)


def test_other_features_are_refused(root: Path, tmp_path: Path) -> None:
    make_project(tmp_path, log_lines(NUM_ROWS, 8))
    with pytest.raises(DataError, match=r"day_000\.parquet is not what the model in .*dot was"):
        compress(root / "dot", tmp_path / "small", Steps(8), tmp_path)
    assert not (tmp_path / "small").exists()


def test_only_a_compressed_bundle_or_an_empty_folder_is_replaced(
    root: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    compressed(root, "dot", Steps(8), tmp_path / "empty")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("mine")
    shutil.copytree(root / "dot", tmp_path / "model")
    (tmp_path / "file").write_text("")
    for name in ("notes", "model", "file"):
        with pytest.raises(DataError, match=rf"{name}: this exists and is no compressed bundle"):
            compress(root / "dot", tmp_path / name, Steps(8), root)
    assert (tmp_path / "notes/a.txt").read_text() == "mine"
    with pytest.raises(DataError, match="this is inside the model"):
        compress(root / "dot", tmp_path / "model/small", Steps(8), root)
    (tmp_path / "params.yaml").write_text("")
    with pytest.raises(DataError, match="where the stages keep their outputs"):
        compress(root / "dot", tmp_path / "artifacts/small", Steps(8), root)


def rewrite(directory: Path, tensors: dict[str, torch.Tensor], **changes: Any) -> None:
    """Change the weights and the compression of a bundle, with the right hashes."""
    save_file(tensors, directory / WEIGHTS)
    values = json.loads((directory / MANIFEST).read_text())
    values["files"][WEIGHTS] = sha256_file(directory / WEIGHTS)
    values["compression"] |= changes
    write_checked_json(directory / MANIFEST, values)


TABLE, LAYER = "embeddings.tables.0", "top.0"
DAMAGE: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"version": 2}, r"bundle\.json: compression\.version: .*found 2"),
    ({}, {"bits": 4}, r"tensor embeddings\.tables\.0\.codes: I8 \[\d+, 13\] found, U8"),
    ({}, {"bits": 7}, r"bundle\.json: compression\.bits"),
    ({}, {"kept_rows": []}, r"kept_rows does not have one number for each group"),
    ({}, {"kept_rows": [10, 10]}, r"kept_rows does not have one number for each group"),
    ({}, {"kept_rows": [None]}, r"embeddings\.tables\.0: [\d,]+ rows found, [\d,]+ expected"),
    ({}, {"kept_rows": [10**15]}, r"0: [\d,]+ rows found, 1,000,000,000,000,0\d\d expected"),
    ({}, {"kept_rows": [-1]}, r"compression\.kept_rows"),
    ({}, {"top_mlp": [10**9] * 5}, r"params\.model makes a model of [\d,]+ weights"),
    ({}, {"top_mlp": [5]}, r"tensor top\.\d\.\w+: .* found, .* expected from the feature state"),
    ({}, {"scale": "x"}, r"compression\.scale: .*found 'x'"),
    ({}, {"more": 1}, r"compression\.more"),
    ({f"{TABLE}.codes": -128}, {}, r"embeddings\.tables\.0: a code is -128; restore"),
    ({f"{TABLE}.scale": float("nan")}, {}, r"embeddings\.tables\.0: a scale is negative, NaN"),
    ({f"{TABLE}.kept": 0}, {}, r"embeddings\.tables\.0: [\d,]+ rows are kept, [\d,]+ expected"),
    ({f"{LAYER}.codes": -128}, {}, r"top\.0: a code is -128; restore"),
    ({f"{LAYER}.scale": -1}, {}, r"top\.0: a scale is negative"),
    ({f"{LAYER}.bias": float("inf")}, {}, r"tensor top\.0\.bias: value inf at \[0\]"),
    ({"top.4.weight": float("nan")}, {}, r"tensor top\.4\.weight: value nan at"),
]


@pytest.mark.parametrize(("values", "changes", "message"), DAMAGE, ids=str)
def test_a_damaged_bundle_is_refused_with_the_name_of_what_is_wrong(
    root: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    values: dict[str, Any],
    changes: dict[str, Any],
    message: str,
) -> None:
    small = one_bundle(root, tmp_path)
    tensors = load_file(small / WEIGHTS)
    for name, value in values.items():
        tensors[name].view(-1)[0] = value
    rewrite(small, tensors, **changes)
    with pytest.raises(DataError, match=message) as error:
        load_bundle(small)
    assert str(error.value).isprintable()


ONE: dict[Path, Path] = {}


def one_bundle(root: Path, tmp_path: Path) -> Path:
    """Return a copy of one compressed bundle."""
    if root not in ONE:
        ONE[root] = compressed(root, "dot", Steps(8, rows=0.5, units=0.25), root / "one")
    return Path(shutil.copytree(ONE[root], tmp_path / "small"))


@pytest.mark.parametrize("name", ["more", f"{TABLE}.codes", f"{TABLE}.kept", "top.0.bias"])
def test_other_tensors_are_refused(root: Path, tmp_path: Path, name: str) -> None:
    small = one_bundle(root, tmp_path)
    tensors = load_file(small / WEIGHTS)
    if name in tensors:
        rewrite(small, tensors | {name: tensors[name].double()})
        with pytest.raises(DataError, match=rf"tensor {name}: F64 "):
            load_bundle(small)
        del tensors[name]
        expected = "no rows found" if name == f"{TABLE}.codes" else f"tensor {name}: none found"
    else:
        tensors[name] = torch.zeros(1)
        expected = r"tensor more: F32 \[1\] found, none expected"
    rewrite(small, tensors)
    with pytest.raises(DataError, match=expected):
        load_bundle(small)


def test_the_original_widths_stay_in_the_recorded_parameters(root: Path, tmp_path: Path) -> None:
    bundle = load_bundle(compressed(root, "dot", Steps(32, units=0.5), tmp_path / "small"))
    model = Model.model_validate(bundle.manifest.params["model"])
    compression = bundle.manifest.compression
    assert compression is not None
    assert (model.bottom_mlp, model.top_mlp) == ([17], [21, 12])
    assert (compression.bottom_mlp, compression.top_mlp) == ([9], [11, 6])


def test_an_output_that_cannot_be_made_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    (tmp_path / "file").touch()
    (tmp_path / "small.html").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for name, words in {
        "link": "this exists and is no compressed bundle; name a new folder",
        "file/small": r"file is no folder; name a folder somewhere else",
        "small": r"the report .*small\.html is a folder; name another output",
    }.items():
        with pytest.raises(DataError, match=words):
            check_output(tmp_path / name)
    with pytest.raises(DataError, match=r"--output \.: this is no name of a new folder"):
        check_output(Path())
    check_output(tmp_path / "empty")
    check_output(tmp_path / "new/folder")
