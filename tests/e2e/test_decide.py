"""Comparisons of a challenger with a champion, on a log with a file for each day.

The pipelines and the bundles are real, and the smoke test starts a fresh process.
"""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from safetensors.torch import load_file, save_file

from common.artifact import Artifact, write_manifest
from common.bundle_layout import MANIFEST, MODEL, WEIGHTS
from common.checked_json import write_checked_json
from common.config.params import Params
from common.files import DataError, read_json, sha256_file, write_json
from common.layout import DECISION, EVALUATION, FEATURES
from common.progress import Progress
from features.encode.split import TEST
from features.sample.generate import write_sample
from features.schema.schema import load_schema
from tests.factories.generated_logs import write_log
from tests.factories.models import make_bundle
from tests.factories.support import CRITEO, make_features, make_params, plain_model
from training.evaluation import metrics
from training.evaluation.stage import evaluate
from training.inference.bundle import Bundle, load_bundle
from training.inference.predict import predict
from training.promotion.comparable import check_comparable
from training.promotion.decide import decide_promotion, rescoring_error
from training.promotion.evaluated_test_set import EvaluatedTestSet
from training.promotion.paired_bootstrap import PairedBootstrap
from training.promotion.smoke_test import smoke_test
from training.stage import train

pytestmark = pytest.mark.slow

NUM_DAYS, DAY_ROWS = 5, 1500
Root = tuple[Path, Params]


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    with Progress("sample", None, None) as progress:
        write_sample(folder / "all.log", NUM_DAYS * DAY_ROWS, NUM_DAYS, 1, CRITEO, progress)
    lines = (folder / "all.log").read_text().splitlines(keepends=True)
    for k in range(NUM_DAYS):
        (folder / f"day_{k}.tsv").write_text("".join(lines[k * DAY_ROWS : (k + 1) * DAY_ROWS]))
    return folder


def params_of(logs: Path, **changes: Any) -> Params:
    model = plain_model(embedding_dim=16, bottom_mlp=[16], top_mlp=[16])
    small = {
        "batch_size": 32,
        "epochs": 1,
        "reset_embeddings_each_epoch": False,
        "weight_averaging": False,
        "validations": 2,
        "logger": "none",
    }
    values = {f"train__{name}": value for name, value in small.items()} | {
        "features__fit_days": 2,
        "model": model,
        **changes,
    }
    return make_params(data__source=f"{logs}/day_*.tsv", **values)


def pipeline(root: Path, params: Params) -> Root:
    make_features(root, params)
    train(params, root)
    evaluate(params, root)
    return root, params


@pytest.fixture(scope="module")
def older(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Root:
    """Run the pipeline with days 0 to 2 for training and the second half of day 3 for the test."""
    return pipeline(tmp_path_factory.mktemp("older"), params_of(logs, data__until="day_3.tsv"))


@pytest.fixture(scope="module")
def newer(logs: Path, older: Root, tmp_path_factory: pytest.TempPathFactory) -> Root:
    """Run the pipeline again with day 4, as the next nightly run does."""
    root = shutil.copytree(older[0], tmp_path_factory.mktemp("newer") / "root")
    return pipeline(root, params_of(logs, train__epochs=2))


@pytest.fixture
def copied(newer: Root, tmp_path: Path) -> Root:
    """Return a copy of the newer run, which a test may damage."""
    return shutil.copytree(newer[0], tmp_path / "root"), newer[1]


def open_test_set(root: Path, params: Params) -> EvaluatedTestSet:
    return EvaluatedTestSet.open(load_bundle(root / MODEL).state.schema, params, root)


def by_predict(model: Path, log: Path, tmp_path: Path) -> Any:
    """Score a log with predict, and return the scores of its second half."""
    predict(model, log, tmp_path / "scores.parquet")
    return pl.read_parquet(tmp_path / "scores.parquet")["score"].to_numpy()[DAY_ROWS // 2 :]


def test_both_models_are_compared_on_the_challengers_test_rows(
    older: Root, newer: Root, logs: Path, tmp_path: Path, capsys: Any
) -> None:
    root, params = newer
    decision = decide_promotion(params, root, older[0] / MODEL)
    log = logs / "day_4.tsv"
    labels_N = np.array(
        [line[0] == "1" for line in log.read_text().splitlines()[DAY_ROWS // 2 :]], np.uint8
    )
    champion_N, challenger_N = (by_predict(one / MODEL, log, tmp_path) for one in (older[0], root))
    sums = metrics.sums_of_rows(labels_N, champion_N)
    expected = metrics.compute_metrics(sums) | metrics.bootstrap_intervals(
        sums, params.evaluate.bootstrap_rounds, metrics.BOOTSTRAP_SEED
    )
    assert decision.champion == {"version": load_bundle(older[0] / MODEL).version, **expected}
    assert decision.challenger == {
        "version": load_bundle(root / MODEL).version,
        **read_json(root / EVALUATION / "metrics.json")["test"],
    }
    bootstrap = PairedBootstrap()
    bootstrap.add(labels_N, champion_N, challenger_N)
    assert decision.difference == bootstrap.differences()
    assert decision.difference["auc"].value == pytest.approx(
        decision.challenger["auc"] - decision.champion["auc"], abs=1e-3
    )
    names = ["data", "skill", "calibration", "calibration error", "smoke test", "logloss", "auc"]
    assert [check.name for check in decision.checks] == names
    assert decision.promote == all(check.passed for check in decision.checks)
    assert decision.promote, decision.reasons
    logged = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("compare   passed")
    ]
    assert [line.split("passed  ")[1].partition(":")[0] for line in logged] == names
    written = read_json(root / DECISION)
    assert written["difference"]["auc"]["value"] == decision.difference["auc"].value
    assert written["checks"][0] == {
        "name": "data",
        "passed": True,
        "message": "no value is above its block_promotion threshold",
    }
    assert {
        "promote": True,
        "champion": decision.champion,
        "challenger": decision.challenger,
    }.items() <= written.items()


def test_without_a_champion_the_other_checks_decide(copied: Root) -> None:
    root, params = copied
    data = read_json(root / FEATURES / "data.json")
    write_json(
        root / FEATURES / "data.json",
        data | {"blocks_promotion": ["day_4.tsv: too few rows", "day_4.tsv: too many clicks"]},
    )
    write_manifest(root / FEATURES, {})
    decision = decide_promotion(params, root, None)
    assert (decision.promote, decision.champion, decision.difference) == (False, None, {})
    assert decision.reasons == ["data: day_4.tsv: too few rows", "data: day_4.tsv: too many clicks"]
    assert [check.name for check in decision.checks if check.passed] == [
        "skill",
        "calibration",
        "calibration error",
        "smoke test",
    ]


def test_a_champion_that_was_trained_on_test_rows_is_refused(older: Root, newer: Root) -> None:
    """In a backfill, the test rows may be in a day that the champion was trained on."""
    champion = load_bundle(newer[0] / MODEL)
    expected = f"model {champion.version} was trained on raw/day_3.tsv, which contains test rows"
    with pytest.raises(DataError, match=expected):
        check_comparable(champion, open_test_set(*older))
    check_comparable(champion, open_test_set(*newer))  # another model of the same log is comparable


def with_data(bundle: Bundle, change: Callable[[str, str], tuple[str, str]]) -> Bundle:
    data = dict(change(*item) for item in bundle.manifest.data.items())
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"data": data}))


def test_an_extra_file_does_not_hide_that_a_champion_was_trained_on_test_rows(
    older: Root, newer: Root
) -> None:
    """The champion's log has two versions of day_0, so day_3 is its fifth file."""
    bundle = load_bundle(newer[0] / MODEL)
    again = replace(
        bundle,
        manifest=bundle.manifest.model_copy(
            update={"data": bundle.manifest.data | {"raw/day_0b.tsv": "other"}}
        ),
    )
    with pytest.raises(DataError, match=r"was trained on raw/day_3\.tsv"):
        check_comparable(again, open_test_set(*older))
    check_comparable(again, open_test_set(*newer))  # the newest file is accepted


def test_files_are_compared_by_their_hashes(older: Root, newer: Root) -> None:
    renamed = with_data(
        load_bundle(newer[0] / MODEL),
        lambda name, sha256: (name.replace("raw/day_", "raw/log_"), sha256),
    )
    with pytest.raises(DataError, match=r"was trained on raw/log_3\.tsv"):
        check_comparable(renamed, open_test_set(*older))
    other = with_data(
        renamed, lambda name, sha256: (name, "other" if name.startswith("raw/") else sha256)
    )
    check_comparable(other, open_test_set(*older))


def test_a_log_of_one_file(newer: Root) -> None:
    """Two logs of one file are comparable, but not a file that the champion was trained on."""
    bundle, test_set = load_bundle(newer[0] / MODEL), open_test_set(*newer)
    for k, refused in ((1, True), (NUM_DAYS - 1, False)):
        all_rows_N = np.full(test_set.days[k].num_rows, TEST, np.uint8)
        alone = replace(
            test_set,
            shards=[test_set.shards[k]],
            days=[test_set.days[k]],
            split_of=lambda _, codes=all_rows_N: codes,
        )
        assert alone.files == alone.shards
        if refused:
            with pytest.raises(DataError, match=r"was trained on raw/day_1\.tsv"):
                check_comparable(bundle, alone)
        else:
            check_comparable(bundle, alone)
        only = replace(
            bundle,
            manifest=bundle.manifest.model_copy(
                update={
                    "data": {
                        name: sha256
                        for name, sha256 in bundle.manifest.data.items()
                        if not name.startswith("raw/") or f"day_{k}." in name
                    }
                }
            ),
        )
        check_comparable(only, alone)
    with pytest.raises(DataError, match=r"was trained on raw/day_4\.tsv"):
        check_comparable(only, test_set)


def test_a_champion_of_another_log_is_refused_with_the_missing_columns(
    newer: Root, tmp_path: Path
) -> None:
    log = write_log(tmp_path, load_schema("avazu"), 1000)
    other = make_params(
        data__source=str(log),
        data__schema="avazu",
        model=plain_model(embedding_dim=4, bottom_mlp=[4], top_mlp=[9]),
    )
    make_features(tmp_path, other)
    words = f"model {make_bundle(tmp_path, other)} reads columns that the log does not have, .*: click, hour, .*schema changed"
    with pytest.raises(DataError, match=words):
        check_comparable(load_bundle(tmp_path / MODEL), open_test_set(*newer))


def test_damaged_bundles(older: Root, copied: Root, tmp_path: Path) -> None:
    """A damaged champion stays in production; a damaged challenger is an error."""
    root, params = copied
    champion = Path(shutil.copytree(older[0] / MODEL, tmp_path / "champion"))
    (champion / WEIGHTS).write_bytes(b"")
    decision = decide_promotion(params, root, champion)
    assert (decision.promote, decision.champion, decision.difference) == (False, None, {})
    assert [reason.partition(": SHA-256")[0] for reason in decision.reasons] == [
        f"comparison: {champion / WEIGHTS}"
    ]
    (root / DECISION).unlink()
    (root / MODEL / WEIGHTS).write_bytes(b"")
    with pytest.raises(DataError, match="SHA-256"):
        decide_promotion(params, root, None)
    assert not (root / DECISION).exists()


def another_label(scores: pl.DataFrame) -> pl.DataFrame:
    return scores.with_columns(
        pl.when(pl.col("row") == DAY_ROWS // 2 - 1)
        .then(1 - pl.col("label"))
        .otherwise("label")
        .alias("label")
    )


@pytest.mark.parametrize(
    "other",
    [
        lambda scores: scores[:-1],
        another_label,
        lambda scores: scores.vstack(scores[-1:]),
        lambda scores: scores[1:],
    ],
)
def test_scores_of_other_rows_are_an_error(
    copied: Root, other: Callable[[pl.DataFrame], pl.DataFrame]
) -> None:
    root, params = copied
    path = root / EVALUATION / "scores.parquet"
    assert sum(rows.height for rows, _ in open_test_set(root, params).pieces()) == DAY_ROWS // 2
    other(pl.read_parquet(path)).write_parquet(path)
    write_manifest(root / EVALUATION, Artifact.open(root / EVALUATION).about)
    with pytest.raises(
        DataError,
        match="does not have the scores of the test rows in artifacts/parquet",
    ):
        list(open_test_set(root, params).pieces())


def test_rescored_raw_rows_have_the_scores_of_the_evaluation(copied: Root) -> None:
    root, params = copied
    bundle, path = load_bundle(root / MODEL), root / EVALUATION / "scores.parquet"
    assert rescoring_error(bundle, open_test_set(root, params)) is None
    scores = pl.read_parquet(path)
    nudged_N = scores["score"].to_numpy().copy()
    nudged_N[-3:] = np.nextafter(nudged_N[-3:], np.float32(1))
    scores.with_columns(score=nudged_N).write_parquet(path)
    write_manifest(root / EVALUATION, Artifact.open(root / EVALUATION).about)
    assert (
        rescoring_error(bundle, open_test_set(root, params))
        == f"3 of {DAY_ROWS // 2} test rows do not have the score that they were evaluated with"
    )


def test_folds_of_many_row_groups(
    logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test rows are in all days; each piece has the rows of a row group of the features."""
    monkeypatch.setattr("features.encode.days.ROW_GROUP_ROWS", 70)
    monkeypatch.setattr("features.dataset.writer.ROW_GROUP_ROWS", 70)
    params = params_of(logs, features__split={"by": "folds", "folds": 5, "seed": 2018})
    make_features(tmp_path, params)
    make_bundle(tmp_path, params)
    evaluate(params, tmp_path)
    bundle, test_set = load_bundle(tmp_path / MODEL), open_test_set(tmp_path, params)
    assert rescoring_error(bundle, test_set) is None
    encoded = [bundle.state.encode(rows) for rows, _ in test_set.pieces()]
    assert {frame.height for frame in encoded[:4]} == {70}
    paths = sorted((tmp_path / FEATURES / "test").glob("*.parquet"))
    assert pl.concat(encoded).equals(pl.concat([pl.read_parquet(path) for path in paths]))
    found = pl.concat([scores for _, scores in test_set.pieces()])
    assert found.equals(
        pl.read_parquet(tmp_path / EVALUATION / "scores.parquet").filter(pl.col("split") == "test")[
            "score"
        ]
    )
    with pytest.raises(DataError, match="which contains test rows"):
        check_comparable(bundle, test_set)


def test_the_smoke_test_loads_the_bundle_as_a_server_would(copied: Root) -> None:
    """The weights change on disk after this process has loaded them."""
    root, _ = copied
    bundle, path = load_bundle(root / MODEL), root / MODEL / WEIGHTS
    tensors = load_file(path)
    last = [name for name in tensors if name.endswith("bias")][-1]
    save_file(tensors | {last: tensors[last] + 1}, path)
    assert re.match(
        rf"a fresh process could not score day_4\.tsv: .*{WEIGHTS}: SHA-256 ",
        smoke_test(bundle, root / MODEL, root) or "",
    )
    manifest = read_json(root / MODEL / MANIFEST)
    manifest["files"][WEIGHTS] = sha256_file(path)
    write_checked_json(root / MODEL / MANIFEST, manifest)  # a consistent bundle of another model
    expected = (
        r"day_4\.tsv: 1,500 of 1,500 rows have another score in a fresh process; "
        r"row 0 has 0\.\d+ instead of 0\.\d+"
    )
    assert re.match(expected, smoke_test(bundle, root / MODEL, root) or "")
