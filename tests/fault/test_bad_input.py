"""Bad logs give a clear error and no partial files; bad rows are written to bad_rows.parquet."""

import gzip
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from common.artifact import Artifact
from common.config.params import Params
from common.files import DataError, read_json
from common.layout import EVALUATION, FEATURES, PARQUET
from features.collect.stage import collect
from features.ingest.readers.row_validation import MAX_RAW_BYTES
from features.ingest.stage import SHARDS_DIR, ingest
from tests.factories.models import log_lines, make_bundle
from tests.factories.support import ROOT, line, make_features, make_params, real_log
from training.evaluation.stage import evaluate

GOOD = [line(str(row % 2), str(row), f"{row % 5:08x}") for row in range(400)]


def source(tmp_path: Path, data: bytes, **changes: Any) -> Params:
    """Write log.tsv, and return parameters with data.source log.tsv."""
    (tmp_path / "log.tsv").write_bytes(data)
    return make_params(data__source="log.tsv", **changes)


def joined(lines: Iterable[str | bytes], end: bytes = b"\n") -> bytes:
    """Join lines, and put `end` after each of them."""
    return b"".join((text if isinstance(text, bytes) else text.encode()) + end for text in lines)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (joined(text.partition("\t")[2] for text in GOOD), "line 1: 39 columns, 40 expected"),
        (joined(text.replace("\t", ",") for text in GOOD), "line 1: 1 columns, 40 expected"),
        (joined(GOOD).decode().encode("utf-16"), "is UTF-16"),
        (gzip.compress(joined(GOOD), mtime=0)[:-20], "broken gzip"),
        (joined(GOOD[:380] + ["rubbish"] * 20), r"20 of 400 rows are malformed \(5.00%"),
        (joined(GOOD[:3]), "the valid split has no rows"),
    ],
    ids=["unlabelled", "commas", "utf-16", "truncated gzip", "too many bad rows", "three rows"],
)
def test_a_refused_log_leaves_no_partial_files(tmp_path: Path, data: bytes, message: str) -> None:
    params = source(tmp_path, data)
    with pytest.raises(DataError, match=message):
        make_features(tmp_path, params)
    artifacts = {path.name for path in (tmp_path / "artifacts").iterdir()}
    # With too many bad rows, SHARDS_DIR keeps the finished shard for a run with a higher limit.
    assert artifacts - {SHARDS_DIR.name} in ({"raw"}, {"raw", "parquet"})
    assert not list((tmp_path / "artifacts").rglob("*.tmp"))


def test_a_failed_run_keeps_the_earlier_outputs(tmp_path: Path) -> None:
    make_features(tmp_path, source(tmp_path, joined(GOOD)))
    before = (tmp_path / PARQUET / "log.tsv.parquet").read_bytes()
    params = source(tmp_path, joined(GOOD[:380] + ["rubbish"] * 20))
    collect(params, tmp_path)
    with pytest.raises(DataError):
        ingest(params, tmp_path)
    assert (tmp_path / PARQUET / "log.tsv.parquet").read_bytes() == before
    assert pl.read_parquet(tmp_path / "runs" / "bad_rows.parquet").height == 20


@pytest.mark.parametrize(
    "data",
    [
        joined(GOOD, b"\r\n"),
        b"\xef\xbb\xbf" + joined(GOOD),
        gzip.compress(joined(GOOD), mtime=0),
        joined(GOOD)[:-1],
    ],
)
def test_dialects_give_the_same_rows(tmp_path: Path, data: bytes) -> None:
    make_features(tmp_path, source(tmp_path, data))
    (tmp_path / "plain").mkdir()
    make_features(tmp_path / "plain", source(tmp_path / "plain", joined(GOOD)))
    read, expected = (
        pl.read_parquet(root / PARQUET / "log.tsv.parquet")
        for root in (tmp_path, tmp_path / "plain")
    )
    assert read.equals(expected)


@pytest.mark.parametrize("is_zipped", [False, True])
def test_too_many_bad_rows_end_the_reading_early(tmp_path: Path, is_zipped: bool) -> None:
    """The limit cannot be met however many good rows the rest of the file could contain."""
    data = joined(GOOD) + b"\n" * 4_000_000 + b"\xff" * 1000
    params = source(tmp_path, gzip.compress(data, 1, mtime=0) if is_zipped else data)
    collect(params, tmp_path)
    with pytest.raises(
        DataError, match="rest is not read; the first: line 401: 1 columns"
    ) as found:
        ingest(params, tmp_path)
    saved = tmp_path / "runs" / "bad_rows.parquet"
    assert str(saved) in str(found.value)
    bad = pl.read_parquet(saved)
    assert bad.row(0) == ("log.tsv", 401, "1 columns, 40 expected", b"")
    assert 10_000 < bad.height < 1_000_000
    assert not (tmp_path / PARQUET).exists()
    assert not (tmp_path / SHARDS_DIR).exists()


def test_the_limit_may_still_be_met_by_the_rest_of_the_log(tmp_path: Path) -> None:
    data = joined(GOOD[:1]) + b"\n" * 70_000 + joined([line()] * 280_000)
    params = source(tmp_path, data, ingest__max_bad_fraction=0.2)
    collect(params, tmp_path)
    ingest(params, tmp_path)
    assert Artifact.open(tmp_path / PARQUET).about["num_bad_rows"] == 70_000


# Contents of a file that could fill the memory. Each is a pattern that is repeated.
MEMORY_HOGS = {
    "newlines": b"\n",
    "one character": b"a\n",
    "separators": b"\t" * 39 + b"\n",
    "one endless line": b"x",
    "NULs": b"\0\n",
    "quotes": b'"\n',
    "long lines": b"x" * (1 << 20) + b"\n",
    "many fields": b"\t" * (1 << 20) + b"\n",
}
READ_IN_CHILD = """
import resource, sys
from pathlib import Path
from common.files import DataError
from features.ingest.readers.read_log import read_log
from features.schema.schema import load_schema
num_bad = 0
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    for piece in read_log(Path(sys.argv[1]), load_schema("criteo"), labelled=True, short_rows="fill"):
        num_bad += piece.bad_rows.height
        if num_bad > 200_000:
            break
except DataError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.mark.parametrize("name", MEMORY_HOGS)
def test_memory_is_bounded_whatever_the_bytes_are(tmp_path: Path, name: str) -> None:
    pattern = MEMORY_HOGS[name]
    repeated = pattern * max(1, (1 << 20) // len(pattern))
    with gzip.open(tmp_path / "log", "wb", 1) as file:
        file.write(joined(GOOD))
        for _ in range(24):
            file.write(repeated)
    command = [sys.executable, "-c", READ_IN_CHILD, str(tmp_path / "log")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(run.stdout.splitlines()[-1]) < 400, run.stdout  # 24 MiB of newlines took 4 GiB


INGEST_IN_CHILD = """
import resource, sys
from pathlib import Path
from common.artifact import ListedFile
from features.ingest.shard import Job, ingest_file, recipe_hash
from tests.factories.list_logs import schema_of
log = Path(sys.argv[1])
schema = schema_of("json_lines")
recipe = recipe_hash(schema, "fill")
job = Job(log.name, log, ListedFile.of(log), schema, "fill", recipe, log.with_name("parts"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
shard = ingest_file(job, lambda *counts: None)
print(shard.num_rows, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


def test_rows_of_long_texts_do_not_pile_up(tmp_path: Path) -> None:
    """The rows of a shard are written in groups, which waited for many rows whatever their size."""
    row: dict[str, Any] = {name: [] for name in ("viewed", "viewed_weights", "codes")}
    row |= {"clicked": 1, "price": 2.5, "item": 5, "tags": ["x" * 100_000], "weight": 1}
    num_rows, line = 9_000, json.dumps(row).encode() + b"\n"
    with gzip.open(tmp_path / "log.gz", "wb", 1) as file:
        for _ in range(num_rows):
            file.write(line)
    command = [sys.executable, "-c", INGEST_IN_CHILD, str(tmp_path / "log.gz")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rows_read, mib = map(int, run.stdout.split())
    assert rows_read == num_rows
    assert mib < 1400  # 0.9 GB of text took 2 GiB


def test_bad_rows_are_quarantined(tmp_path: Path) -> None:
    bad = [b"\xff" + GOOD[0].encode(), line(I1="x" * 10_000_000), "", line(label="7")]
    make_features(
        tmp_path,
        source(tmp_path, joined([*GOOD[:200], *bad, *GOOD[200:]]), ingest__max_bad_fraction=0.02),
    )
    quarantined = pl.read_parquet(tmp_path / PARQUET / "bad_rows.parquet")
    assert quarantined["file"].to_list() == ["log.tsv"] * 4
    assert quarantined["line"].to_list() == [201, 202, 203, 204]
    assert quarantined["raw"].to_list() == [
        (text if isinstance(text, bytes) else text.encode())[:MAX_RAW_BYTES] for text in bad
    ]
    manifest = Artifact.open(tmp_path / PARQUET).about
    assert (manifest["num_rows"], manifest["num_bad_rows"]) == (400, 4)


def test_stripped_trailing_fields_of_real_rows(tmp_path: Path) -> None:
    log = real_log("criteo/kaggle_malformed_1k.tsv")
    lines = log.read_text().splitlines()
    short = [number for number, text in enumerate(lines, 1) if text.count("\t") < 39]
    assert len(short) == 498
    make_features(tmp_path, make_params(data__source=str(log), ingest__max_bad_fraction=0.5))
    assert pl.read_parquet(tmp_path / PARQUET / "bad_rows.parquet")["line"].to_list() == short
    make_features(tmp_path, make_params(data__source=str(log), ingest__short_rows="fill"))
    rows = pl.read_parquet(tmp_path / PARQUET / f"{log.name}.parquet")
    assert rows.height == 1000
    for number in short:
        fields = lines[number - 1].split("\t")
        assert rows.row(number - 1)[len(fields) :] == (None,) * (rows.width - len(fields))


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from tests.factories.support import make_params
from features.collect.stage import collect
from features.ingest.stage import ingest
root, limit = Path(sys.argv[1]), int(sys.argv[2])
params = make_params(data__source="log.tsv")
collect(params, root)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    ingest(params, root)
except OSError as error:
    sys.exit(f"refused: {error}")
"""


PEAK_MEMORY = """
import resource, sys
from pathlib import Path
from features.ingest.readers import blocks
from tests.factories.support import make_features, make_params
blocks.BLOCK_BYTES = 1 << 20
make_features(Path(sys.argv[1]), make_params(data__source="log.tsv"))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
"""


def test_full_disk(tmp_path: Path) -> None:
    """A limit on the size of files has the effect of a full disk: the write raises an OSError."""
    source(tmp_path, joined(GOOD))
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path), "2000"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert re.search(r"refused: File too large: /.*; raise the limit of file sizes", run.stderr)
    assert {path.name for path in (tmp_path / "artifacts").iterdir()} == {"raw"}


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """With four times as many blocks, ingest and features take at most 60 MiB more memory."""
    peaks_mib = []
    for copies in (50, 200):
        source(tmp_path, joined(GOOD) * copies)
        run = subprocess.run(
            [sys.executable, "-c", PEAK_MEMORY, str(tmp_path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        peaks_mib.append(int(run.stdout.splitlines()[-1]))
    assert peaks_mib[1] < peaks_mib[0] + 60


def test_data_json_has_the_counts_of_rows_and_values(tmp_path: Path) -> None:
    make_features(tmp_path, source(tmp_path, joined(GOOD)))
    data = read_json(tmp_path / FEATURES / "data.json")
    assert [data["splits"][split]["num_rows"] for split in ("train", "valid", "test")] == [
        343,
        29,
        28,
    ]
    assert sum(day["num_rows"] for day in data["days"]) == data["num_rows"] == 400
    assert data["columns"][0] == {
        "name": "I1",
        "kind": "dense",
        "missing": 0.0,
        "distinct": None,
    } | dict.fromkeys(["cardinality", "unseen_train", "unseen_valid", "unseen_test"])
    first = next(column for column in data["columns"] if column["kind"] == "categorical")
    assert (first["distinct"], first["cardinality"], first["unseen_test"]) == (5, 7, 0.0)


def test_a_log_file_without_rows_is_a_day_without_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither an empty file nor a second one ends the run, and both are named."""
    (tmp_path / "logs").mkdir()
    lines = log_lines(1200, seed=1)
    for k in range(3):
        text = "\n".join(lines[k * 400 : (k + 1) * 400]) + "\n"
        (tmp_path / "logs" / f"day_{2 * k}.tsv").write_text(text)
    (tmp_path / "logs" / "day_1.tsv").touch()
    (tmp_path / "logs" / "day_3.tsv.gz").write_bytes(gzip.compress(b""))
    params = make_params(data__source="logs", features__min_count=2, features__fit_days=1)
    make_features(tmp_path, params)
    out = capsys.readouterr().out
    for name in ("day_1.tsv", "day_3.tsv.gz"):
        assert f"ingest    warning: {name} has no rows: it is a day without rows" in out
    assert "features  warning: day_1.tsv: 0 rows, 400 in the median" in out
    days = Artifact.open(tmp_path / FEATURES).read_json("data.json")["days"]
    assert [day["num_rows"] for day in days] == [400, 0, 400, 0, 400]
    make_bundle(tmp_path, params)
    evaluate(params, tmp_path)
    assert "day_1.tsv" in (tmp_path / EVALUATION / "report.html").read_text()


def test_a_log_without_any_row_is_refused(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    for k in range(3):
        (tmp_path / "logs" / f"day_{k}.tsv").touch()
    params = make_params(data__source="logs")
    collect(params, tmp_path)
    with pytest.raises(DataError, match=r"day_0\.tsv has no rows; give a log with rows"):
        ingest(params, tmp_path)
    assert not (tmp_path / PARQUET).exists()
