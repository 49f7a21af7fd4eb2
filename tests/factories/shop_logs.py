"""A generator of the logs of a shop, as a table, and the inference of their schemas."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features.infer.infer import Inferred, find_bad_rows, infer_schema
from features.infer.log_files import LogFile, find_log_files
from features.schema.schema import Schema, check_schema
from tests.factories.support import make_params

START = datetime(2026, 3, 1)


def shop_log(num_rows: int, num_days: float, seed: int = 0) -> pl.DataFrame:
    """Return the clicks of a shop, oldest first."""
    random = np.random.default_rng(seed)
    moments = [START + timedelta(days=num_days * i / num_rows) for i in range(num_rows)]
    shop = random.choice(["north", "south", "east", "west"], num_rows)
    price = random.lognormal(2, 1, num_rows).round(2)
    odds = np.where(shop == "north", 0.6, 0.15) + np.where(price > 8, 0.15, 0)
    return pl.DataFrame(
        {
            "event": [f"e{i:08d}" for i in range(num_rows)],
            "clicked": (random.random(num_rows) < odds).astype(int),
            "seen_at": moments,
            "price": [
                None if draw < 0.1 else one
                for one, draw in zip(price, random.random(num_rows), strict=True)
            ],
            "visits": random.poisson(3, num_rows),
            "shop": shop,
            "user_id": random.zipf(1.3, num_rows) % 300,
            "change": random.normal(0, 10, num_rows).round(1),
            "source": ["web"] * num_rows,
        }
    )


def files_at(path: Path) -> list[LogFile]:
    """Return the files of a log."""
    return find_log_files(make_params(data__source=str(path)).data, path.parent)


def infer(path: Path, label: str | None = None) -> tuple[Inferred, Schema]:
    """Infer and check the schema of a log; its first rows have no bad row."""
    files = files_at(path)
    inferred = infer_schema(files, label)
    schema = check_schema(Schema.model_validate(inferred.values), path)
    assert find_bad_rows(inferred.files, schema, "quarantine") == []
    return inferred, schema


def entry_of(inferred: Inferred, name: str) -> dict[str, Any]:
    """Return a column's entry, without its name."""
    (entry,) = (guess.entry for guess in inferred.guesses if guess.name == name)
    return {key: value for key, value in entry.items() if key != "names"}


def unsure_of(inferred: Inferred, name: str) -> str:
    """Return what is unsure about a column."""
    (guess,) = (guess for guess in inferred.guesses if guess.name == name)
    return guess.unsure or ""
