"""Every schema, preset and format goes through the whole pipeline, from a raw log to scores."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from common.bundle_layout import MODEL
from common.config.params import PRESETS, Params, read_preset
from common.files import read_json
from common.layout import EVALUATION
from features.schema.schema import SCHEMAS, Schema, load_schema
from tests.factories.generated_logs import write_log
from tests.factories.support import make_features, make_params, plain_model
from training.evaluation.stage import evaluate
from training.inference.predict import predict
from training.stage import train

NUM_ROWS = 2000
SMALL: dict[str, Any] = {
    "model": plain_model(embedding_dim=8, bottom_mlp=[32], top_mlp=[32]),
    "train__batch_size": 32,
    "train__validations": 4,
    "train__epochs": 3,
    "features__min_count": 2,
}


def run(root: Path, schema: Schema, params: Params) -> dict[str, Any]:
    """Run the whole pipeline and predict, and return the metrics of the test rows."""
    make_features(root, params)
    train(params, root)
    evaluate(params, root)
    output = root / "scores.parquet"
    predict(root / MODEL, Path(params.data.source), output)
    assert pl.read_parquet(output)["score"].is_between(0, 1).all()
    assert pl.read_parquet(output).height == NUM_ROWS
    # The test rows are the last rows of the log. evaluate and predict give them the same scores.
    evaluated = pl.read_parquet(root / EVALUATION / "scores.parquet").filter(
        pl.col("split") == "test"
    )
    if params.features.split.by == "days" and not params.features.split.test_first:
        assert evaluated["score"].equals(pl.read_parquet(output)["score"].tail(evaluated.height))
    metrics: dict[str, Any] = read_json(root / EVALUATION / "metrics.json")["test"]
    return metrics


@pytest.mark.parametrize("name", sorted(path.stem for path in SCHEMAS.glob("*.yaml")))
def test_every_schema(tmp_path: Path, name: str) -> None:
    schema = load_schema(name)
    log = write_log(tmp_path, schema, NUM_ROWS)
    assert (
        run(tmp_path, schema, make_params(data__source=str(log), data__schema=name, **SMALL))["auc"]
        > 0.6
    )


@pytest.mark.parametrize("name", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_every_preset(tmp_path: Path, name: str) -> None:
    schema = load_schema("criteo")
    log = write_log(tmp_path, schema, NUM_ROWS)
    params = make_params(
        data__source=str(log),
        **{key: value for key, value in SMALL.items() if "features" not in key},
        features=read_preset(name),
    )
    assert run(tmp_path, schema, params)["auc"] > 0.6


SHOP = """
format: {kind: FORMAT}
columns:
  - {kind: label, names: [bought]}
  - {kind: time, names: [seen_at], parse: unix}
  - {kind: dense, names: [price], parse: float, transform: {name: clip, low: 0, high: 100}}
  - {kind: dense, names: [visits], parse: integer, transform: log1p}
  - {kind: dense, names: [age], parse: integer, transform: {name: quantile, buckets: 8}, policy: vocabulary}
  - {kind: categorical, names: [shop], parse: string, policy: vocabulary}
  - {kind: categorical, names: [item], parse: integer, policy: {name: vocabulary_and_hash, buckets: 16}}
  - {kind: categorical, names: [user], parse: string, policy: {name: hash, buckets: 50}}
  - {kind: ignored, names: [comment]}
derived:
  - {name: hour, transform: hour, of: [seen_at], policy: vocabulary}
  - {name: weekday, transform: weekday, of: [seen_at], policy: vocabulary}
  - {name: shop_item, transform: cross, of: [shop, item], policy: {name: hash, buckets: 64}}
  - {name: item_count, transform: {name: count, min_count: 2}, of: [item]}
  - {name: price_bucket, transform: floor_ln2, of: [price], policy: vocabulary}
"""
FORMATS = {
    "text": '{kind: text, separator: ";", quote: \'"\', header: true, null_tokens: ["", "NA"]}',
    "json_lines": "{kind: json_lines, null_tokens: []}",
    "parquet": "{kind: parquet, null_tokens: []}",
    "orc": "{kind: orc, null_tokens: []}",
    "arrow": "{kind: arrow, null_tokens: []}",
}


@pytest.mark.slow
def test_every_format_and_transform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows in each format give the same metrics."""
    found = []
    for kind, declared in FORMATS.items():
        root = tmp_path / kind
        root.mkdir()
        (root / "shop.yaml").write_text(SHOP.replace("{kind: FORMAT}", declared))
        monkeypatch.setattr("features.schema.schema.SCHEMAS", root)
        monkeypatch.setattr("features.collect.stage.SCHEMAS", root)
        schema = load_schema("shop")
        log = write_log(root, schema, NUM_ROWS)
        found.append(
            run(root, schema, make_params(data__source=str(log), data__schema="shop", **SMALL))
        )
    assert found[0]["auc"] > 0.6
    assert found == [found[0]] * len(FORMATS)
