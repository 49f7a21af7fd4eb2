"""A log with columns of all types and odd names gives the same model inputs in all formats.

What `clickmill predict` scores is what the features stage has made for training.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from common.artifact import Artifact
from common.bundle_layout import MODEL
from common.layout import FEATURES, PARQUET
from common.parquet import read_parquet
from features.encode.feature_state import FeatureState
from features.ingest.stage import used_shards
from tests.factories.models import make_bundle, small_params
from tests.factories.support import make_features, make_params, plain_model
from tests.factories.typed_columns import BAD, CASES, FORMATS, NULL_TOKENS
from training.inference import score as score_module
from training.inference.predict import predict
from training.inference.score import score

NUM_ROWS = 210  # one of ten has a bad value
LABEL = "Clicked?"
# Two names that are the same for a file system that does not tell capital letters, and more.
FIRST_NAMES = ["Price in €/kg", "price in €/kg", "a.b", "a", "../x", "x" * 300]
ENDINGS = {"text": "csv", "json_lines": "jsonl", "parquet": "parquet"}
GOOD_CASES = [case for case in CASES if not case.is_label and BAD not in case.expected]


@dataclass(frozen=True)
class Log:
    """A log with the column of each good case, a label and an index without a name."""

    columns: list[dict[str, Any]]
    values: dict[str, Any]


def log_of(log_format: str) -> Log:
    """Return the log in a format."""
    count = range(NUM_ROWS)
    names = FIRST_NAMES + [f"column {k}: é" for k in range(len(GOOD_CASES))]
    columns: list[dict[str, Any]] = [
        {"kind": "ignored", "names": [""]},
        {"kind": "label", "names": [LABEL], "positive": ["yes"], "negative": ["no"]},
        {"kind": "dense", "names": ["amount"], "parse": "integer", "transform": "log1p"},
    ]
    values: dict[str, Any] = {
        "": [*count],
        LABEL: ["yes" if k % 3 else "no" for k in count],
        "amount": [k if k % 10 else 0.5 for k in count],
    }
    for name, case in zip(names, GOOD_CASES, strict=False):
        # The times have nothing to do with the order of the rows.
        no_order = {"row_time": False} if case.column["kind"] == "time" else {}
        columns.append(case.column | {"names": [name]} | no_order)
        variants = case.variants(log_format)
        some = variants[len(case.name) % len(variants)]
        if log_format == "parquet":
            values[name] = pa.chunked_array([some] * NUM_ROWS)[:NUM_ROWS]
        else:
            values[name] = [some[k % len(some)] for k in count]
    return Log(columns, values)


def write(log: Log, log_format: str, path: Path, *, labelled: bool) -> Path:
    """Write a log."""
    values = {name: column for name, column in log.values.items() if labelled or name != LABEL}
    if log_format == "parquet":
        pq.write_table(pa.table(values), path)
        return path
    rows = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    if log_format == "json_lines":
        lines = [json.dumps(row, default=str) for row in rows]
    else:
        lines = [";".join(values), *(";".join(map(str, row.values())) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A project with a bundle for the log in each format."""
    roots = {}
    for log_format, options in FORMATS.items():
        root = roots[log_format] = tmp_path_factory.mktemp(log_format)
        log = log_of(log_format)
        path = write(log, log_format, root / f"log.{ENDINGS[log_format]}", labelled=True)
        schema = {"format": options | {"null_tokens": NULL_TOKENS}, "columns": log.columns}
        times = [name for one in log.columns if one["kind"] == "time" for name in one["names"]]
        schema["derived"] = [
            {"name": f"hour of {name}", "transform": "hour", "of": [name], "policy": "vocabulary"}
            for name in times
        ]
        YAML(typ="safe").dump(schema, root / "typed.yaml")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("features.schema.schema.SCHEMAS", root)
            patch.setattr("features.collect.stage.SCHEMAS", root)
            model = small_params(path).model_dump(by_alias=True)["model"]
            params = make_params(
                data__source=str(path),
                data__schema="typed",
                ingest__max_bad_fraction=0.2,
                features__min_count=1,
                model=plain_model(**model),
            )
            make_features(root, params)
            make_bundle(root, params)
    return roots


def encoded_rows(root: Path) -> pl.DataFrame:
    """Return the rows of all splits, in the order of the log."""
    features = Artifact.open(root / FEATURES)
    files = [name for split in ("train", "valid", "test") for name in features.names(split)]
    return pl.concat([read_parquet(features.path(name)) for name in files])


def test_all_formats_give_the_same_rows_and_features(projects: dict[str, Path]) -> None:
    typed, encoded = [], []
    for root in projects.values():
        parquet = Artifact.open(root / PARQUET)
        (shard,) = used_shards(parquet)
        bad_rows = read_parquet(parquet.path("bad_rows.parquet"))
        assert shard.num_rows + bad_rows.height == NUM_ROWS
        assert bad_rows["reason"].unique().to_list() == [
            "amount: '0.5' is not an integer of 64 bits"
        ]
        typed.append(read_parquet(parquet.path(shard.parquet)))
        encoded.append(encoded_rows(root))
    text_typed, text_encoded = typed[0], encoded[0]
    assert text_typed.height == text_encoded.height == NUM_ROWS * 9 // 10
    assert text_encoded[LABEL].mean() == pytest.approx(2 / 3, abs=0.05)
    for other in typed[1:]:
        assert other.equals(text_typed)
    for other in encoded[1:]:
        assert other.equals(text_encoded)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("log_format", FORMATS)
def test_predict_scores_the_inputs_of_the_training(
    projects: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    log_format: str,
    labelled: bool,
) -> None:
    scored = []

    def recorded(bundle: Any, rows: pl.DataFrame, *args: Any) -> Any:
        scored.append(rows)
        return score(bundle, rows, *args)

    monkeypatch.setattr(score_module, "score", recorded)
    root = projects[log_format]
    path = tmp_path / f"log.{ENDINGS[log_format]}"
    write(log_of(log_format), log_format, path, labelled=labelled)
    names = ["a.b", "Price in €/kg", "amount"]
    predict(root / MODEL, path, tmp_path / "scores.parquet", ids=names)
    expected = encoded_rows(root)
    if not labelled:
        expected = expected.drop(LABEL)
    assert pl.concat(scored).equals(expected)
    scores = read_parquet(tmp_path / "scores.parquet")
    assert scores.columns == ["line", *names, "score"]
    bad_rows = read_parquet(tmp_path / "scores.bad_rows.parquet")
    assert scores.height + bad_rows.height == NUM_ROWS
    assert scores.height == expected.height


def test_files_of_features_have_safe_names(projects: dict[str, Path]) -> None:
    root = projects["text"]
    schema = FeatureState.load(root / FEATURES / "state").schema
    names = {path.stem for path in (root / FEATURES / "state" / "vocabulary").iterdir()}
    assert names == {schema.file_names[name] for name in schema.categorical_features}
    assert all(name.isascii() and "/" not in name for name in names)
    assert len({name.lower() for name in names}) == len(names)
