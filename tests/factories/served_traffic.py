"""Served traffic for tests: rows of a small JSON log, their feature state, and a request log."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features.encode.feature_state import FeatureState
from features.ingest.readers import json_lines
from features.ingest.readers.blocks import block_of_text
from features.online.encoder import RequestEncoder
from features.schema.schema import Schema
from serving.request_log import ANSWER, LoggedModel, RequestLog, Role
from tests.factories.online import fit_state

# Two features have names that the request log has for columns of its own.
SCHEMA = Schema.model_validate(
    {
        "format": {"kind": "json_lines", "null_tokens": []},
        "columns": [
            {"kind": "label", "names": ["clicked"]},
            {"kind": "dense", "names": ["time"], "parse": "integer", "transform": "log1p"},
            {
                "kind": "categorical",
                "names": ["key", "site"],
                "parse": "string",
                "policy": "vocabulary",
            },
        ],
    }
)
KEY = "impression"
DAY_S = 86_400
NOON = 1_772_366_400.0  # 2026-03-01, 12:00 UTC, in seconds since 1970
VERSION = "a" * 12

Record = dict[str, Any]


def make_records(num_rows: int, seed: int = 0, first: int = 0) -> list[Record]:
    """Return random rows with labels; each has a key of its own."""
    rng = np.random.default_rng(seed)
    return [
        {
            "clicked": int(rng.random() < 0.3),
            "time": int(rng.integers(0, 1000)),
            "key": f"k{rng.integers(0, 8)}",
            "site": f"s{rng.integers(0, 5)}",
            KEY: f"i{first + k}",
        }
        for k in range(num_rows)
    ]


def state_for(records: Sequence[Record], min_count: int = 1) -> FeatureState:
    """Return the feature state that is fitted to rows."""
    block = block_of_text(as_lines(records))
    layout = json_lines.Layout.of_log(SCHEMA, block, labelled=True)
    return fit_state(SCHEMA, json_lines.parse_block(block, layout).rows, min_count=min_count)


def as_lines(records: Iterable[Record]) -> bytes:
    """Return rows as JSON lines."""
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def write_log(path: Path, records: Iterable[Record]) -> Path:
    """Write rows as a log with labels."""
    path.write_bytes(as_lines(records))
    return path


@dataclass(frozen=True)
class Server:
    """A request log as a server writes it.

    Attributes:
        directory: The folder of the log.
        state: The feature state of its model.
        version: The version of its model.
        role: Whether the client gets the scores.
        fraction: The sampling fraction.
    """

    directory: Path
    state: FeatureState
    version: str = VERSION
    role: Role = ANSWER
    fraction: float = 1.0

    def serve(
        self,
        records: Sequence[Record],
        scores: Sequence[float],
        at: float = NOON,
        *,
        per_request: int = 1,
        with_keys: bool = True,
    ) -> None:
        """Log rows as one process does, and end it."""
        model = LoggedModel.of("shop", self.version, self.state.schema)
        encoder = RequestEncoder(self.state, "quarantine")
        request_log = RequestLog(self.directory, self.fraction)
        for first in range(0, len(records), per_request):
            part = records[first : first + per_request]
            request_id = f"request {first}"
            if request_log.wants(request_id):
                request_log.add(
                    model,
                    request_id,
                    encoder.encode_records(part),
                    np.array(scores[first : first + per_request], np.float32),
                    keys=[record.get(KEY) for record in part] if with_keys else None,
                    role=self.role,
                    at=at + first,
                )
        request_log.close()
        assert not request_log.rows_lost


def read_request_log(directory: Path) -> pl.DataFrame:
    """Return all rows of a request log, in the order of its files."""
    paths = sorted(directory.glob("*/*.parquet"))
    return pl.concat([pl.read_parquet(path, glob=False) for path in paths])
