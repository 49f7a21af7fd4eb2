"""Thousands of mutated lines cause no crash; each line becomes a valid row or a bad row."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from common.artifact import Artifact
from common.layout import PARQUET
from features.collect.stage import collect
from features.ingest.readers import blocks
from features.ingest.readers.read_log import read_log
from features.ingest.readers.row_validation import typed_columns
from features.ingest.stage import ingest
from features.schema.schema import Schema, load_schema
from tests.factories.raw_logs import CSV, JSON, csv_line, json_line
from tests.factories.support import CRITEO, line, make_params

AVAZU = load_schema("avazu")
HUGE = [b"9" * 30, b"-" + b"9" * 19, b"1e999", b"0" * 5000, b"ffffffffff"]
JUNK = [
    b"\0",
    b"\r",
    b"\r\r",
    b'"',
    b'""',
    b"\xff",
    b"\xc3",
    b"\xe2\x82",
    b"\xef\xbb\xbf",
    b"\t",
    b",",
    b"{",
    b"}",
    b"[",
    b"\\u",
    b"Inf",
    b"NaN",
]


def criteo_line(rng: random.Random) -> str:
    """Return a random Criteo line."""
    return line(
        str(rng.randrange(2)),
        str(rng.randrange(-2, 10**6)),
        f"{rng.randrange(2**32):08x}",
        I1="",
        C1="",
    )


def avazu_line(rng: random.Random) -> str:
    """Return a random Avazu line."""
    values = {"label": "01", "integer": "1005", "hex32": "0fea12b7"}
    kinds = {
        name: getattr(group, "parse", group.kind) for group in AVAZU.columns for name in group.names
    }
    time = {name: f"141021{rng.randrange(24):02d}" for name in AVAZU.time} | {
        AVAZU.label: str(rng.randrange(2))
    }
    return ",".join(
        time.get(name) or values.get(kinds[name], "1000009418151094273") for name in AVAZU.names
    )


def random_csv_line(rng: random.Random) -> str:
    """Return a random CSV line, with quotes."""
    return csv_line(
        stock=str(rng.randrange(10**9)),
        words=rng.choice(['"a,b"', "plain", '"x ""y"""', ""]),
        price=str(rng.random()),
    )


def random_json_line(rng: random.Random) -> str:
    """Return a random JSON line."""
    return json_line(
        stock=rng.randrange(10**9),
        words=rng.choice(["a", "é\n", None]),
        clicked=rng.choice([0, 1, True]),
    )


def mutated(text: bytes, rng: random.Random) -> bytes:
    """Change bytes or fields of a line one to four times."""
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(text) + 1)
        separator = b"\t" if b"\t" in text else b","
        fields = text.split(separator)
        match rng.randrange(8):
            case 0:
                text = text[:place] + bytes([rng.randrange(256)]) + text[place + 1 :]
            case 1:
                text = text[:place] + text[place + 1 :]
            case 2:
                text = text[:place] + rng.choice(JUNK) + text[place:]
            case 3:
                text = text[:place]
            case 4:
                text = separator.join(rng.sample(fields, len(fields)))
            case 5:
                text = separator.join(
                    fields[: rng.randrange(len(fields) + 1)] + fields[rng.randrange(len(fields)) :]
                )
            case 6:
                fields[rng.randrange(len(fields))] = rng.choice(HUGE)
                text = separator.join(fields)
            case 7:
                text = rng.randbytes(rng.randrange(60))
    return text.replace(b"\n", b" ")


def fuzzed(make_line: Callable[[random.Random], str], count: int, share: float) -> list[bytes]:
    """Return lines, a share of which is mutated.

    Mutated lines follow each other, so that some blocks have only valid lines.
    """
    rng = random.Random(7)
    return [
        mutated(make_line(rng).encode(), rng)
        if (number // 100) % 10 < share * 10
        else make_line(rng).encode()
        for number in range(count)
    ]


LOGS = {
    "criteo": (CRITEO, criteo_line, 6_000, 0.5),
    "avazu": (AVAZU, avazu_line, 5_000, 0.8),
    "csv": (CSV, random_csv_line, 5_000, 0.8),
    "json": (JSON, random_json_line, 5_000, 0.8),
}


def header(schema: Schema) -> list[bytes]:
    """Return a list with the header line of a log, or an empty list if it has no header."""
    return [",".join(schema.names).encode()] if getattr(schema.format, "header", False) else []


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("short_rows", ["fill", "quarantine"])
@pytest.mark.parametrize("times", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_no_crash_and_no_line_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, short_rows: str, times: int
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1 << 13)
    schema, make_line, count, share = LOGS[name]
    count *= times
    log = [*header(schema), make_line(random.Random(1)).encode(), *fuzzed(make_line, count, share)]
    (tmp_path / "log").write_bytes(b"\n".join(log))
    kept, bad = [], []
    for parsed in read_log(tmp_path / "log", schema, labelled=True, short_rows=short_rows):
        assert parsed.rows.schema == pl.Schema(typed_columns(schema))
        assert parsed.rows.height == len(parsed.line_numbers)
        check_values(parsed.rows, schema)
        kept += parsed.line_numbers.to_list()
        bad += parsed.bad_rows.rows()
    assert sorted([*kept, *(number for number, *_ in bad)]) == list(
        range(1 + len(header(schema)), len(log) + 1)
    )
    assert all(raw == log[number - 1].removesuffix(b"\r") and reason for number, reason, raw in bad)
    assert len(kept) > count * (1 - share)
    assert len(bad) > count * share / 4


def check_values(rows: pl.DataFrame, schema: Schema) -> None:
    """Check that labels are 0 or 1, numbers are finite, and strings are valid Unicode."""
    assert rows[schema.label].null_count() == 0
    assert rows[schema.label].is_in([0, 1]).all()
    for column in rows.iter_columns():
        if column.dtype == pl.Float64:
            assert column.drop_nulls().is_finite().all()
        elif column.dtype == pl.String:
            assert json.loads(json.dumps(column.to_list())) == column.to_list()


def test_the_ingest_stage_loses_no_line(tmp_path: Path) -> None:
    log = fuzzed(criteo_line, 10_000, 1.0)
    (tmp_path / "log.tsv").write_bytes(
        b"\n".join([criteo_line(random.Random(1)).encode(), *log, b""])
    )
    params = make_params(data__source="log.tsv", ingest__max_bad_fraction=1.0)
    collect(params, tmp_path)
    ingest(params, tmp_path)
    rows, bad = (
        pl.read_parquet(tmp_path / PARQUET / name)
        for name in ("log.tsv.parquet", "bad_rows.parquet")
    )
    manifest = Artifact.open(tmp_path / PARQUET).about
    assert (manifest["num_rows"], manifest["num_bad_rows"]) == (rows.height, bad.height)
    assert rows.height + bad.height == len(log) + 1
    assert bad["raw"].to_list() == [log[number - 2].removesuffix(b"\r") for number in bad["line"]]
    check_values(rows, CRITEO)
