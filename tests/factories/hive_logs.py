"""Logs in folders named by day and hour, which are columns of their schema."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from common.config.params import Params
from features.schema.schema import Schema, check_schema
from tests.factories.support import make_params, plain_model

NUM_ROWS = 30
SCHEMA: dict[str, Any] = {
    "format": {"kind": "parquet", "null_tokens": [""]},
    "columns": [
        {"kind": "label", "names": ["click"]},
        {"kind": "time", "names": ["day"], "parse": "%Y-%m-%d"},
        {"kind": "dense", "names": ["price"], "parse": "float", "transform": "log1p"},
        {"kind": "categorical", "names": ["hour"], "parse": "integer", "policy": "vocabulary"},
        {"kind": "categorical", "names": ["site"], "parse": "string", "policy": "vocabulary"},
        {"kind": "ignored", "names": ["region"]},
    ],
}


def schema_of_folders(root: Path, monkeypatch: pytest.MonkeyPatch) -> Schema:
    """Let the stages find this schema under the name of Criteo's, and return it."""
    schema = check_schema(Schema.model_validate(SCHEMA), root / "schema.yaml")
    for stage in ("collect", "ingest", "dataset"):
        monkeypatch.setattr(f"features.{stage}.stage.load_schema", lambda name: schema)
    return schema


def write_part(root: Path, name: str, seed: int, num_rows: int = NUM_ROWS) -> None:
    """Write a Parquet file, without the columns of its folders, to root/logs/name."""
    path = root / "logs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = range(num_rows)
    pl.DataFrame(
        {
            "click": [(seed + k) % 3 == 0 for k in rows],
            "price": [float((seed * k) % 11) for k in rows],
            "site": [f"s{(seed * 7 + k) % 5}" for k in rows],
        }
    ).write_parquet(path)


def names_of_log() -> Iterator[str]:
    """Yield the names of the files of the log."""
    for day in ("2026-01-09", "2026-01-10", "2026-01-11"):
        for hour in ("07", "10"):
            yield f"day={day}/hour={hour}/part-0.parquet"
    yield "day=2026-01-11/hour=__HIVE_DEFAULT_PARTITION__/part-0.parquet"


def write_log(root: Path) -> Params:
    """Write the log to root/logs, and return parameters for it."""
    for seed, name in enumerate(names_of_log()):
        write_part(root, name, seed)
    return make_params(
        data__source="logs",
        features__min_count=1,
        features__fit_days=1,
        model=plain_model(embedding_dim=4, bottom_mlp=[4], top_mlp=[4]),
    )
