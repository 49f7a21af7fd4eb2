"""The request log: what its files contain, which requests are in it, and what a bad disk does."""

import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from features.online.encoded_rows import BadRow, EncodedRows
from serving import request_log
from serving.request_log import (
    FEATURE_PREFIX,
    FORMAT,
    FORMAT_KEY,
    FRACTION_KEY,
    LoggedModel,
    RequestLog,
    key_text,
)
from tests.factories.served_traffic import (
    DAY_S,
    NOON,
    SCHEMA,
    VERSION,
    Server,
    make_records,
    read_request_log,
    state_for,
)
from tests.factories.small_disk import small_disk

MODEL = LoggedModel.of("shop", VERSION, SCHEMA)


def rows_of(num_rows: int, bad_rows: int = 0) -> EncodedRows:
    """Return encoded rows whose values say which row they are of; bad rows come first."""
    numbers = np.arange(bad_rows, bad_rows + num_rows)
    return EncodedRows(
        numbers[:, None].astype(np.float32),
        np.stack([numbers, numbers + 100], axis=1).astype(np.int32),
        numbers.astype(np.int64),
        [BadRow(k, "bad") for k in range(bad_rows)],
        bad_rows + num_rows,
    )


def scores_of(num_rows: int) -> Any:
    return np.linspace(0.1, 0.2, num_rows, dtype=np.float32)


def test_a_file_has_each_row_as_the_model_took_it(tmp_path: Path) -> None:
    log = RequestLog(tmp_path, 1.0)
    log.add(MODEL, "r1", rows_of(2, bad_rows=1), scores_of(2), keys=["a", None, "b"], at=NOON)
    log.add(MODEL, "r2", rows_of(1), scores_of(1), role="shadow", at=NOON + DAY_S)
    log.close()
    assert (log.rows_written, log.rows_lost) == (3, 0)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["2026-03-01", "2026-03-02"]
    rows = read_request_log(tmp_path)
    at = datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert rows.to_dict(as_series=False) == {
        "time": [at, at, at.replace(day=2)],
        "request_id": ["r1", "r1", "r2"],
        "row": [1, 2, 0],
        "key": [None, "b", "r2"],
        "model": ["shop"] * 3,
        "version": [VERSION] * 3,
        "role": ["answer", "answer", "shadow"],
        "score": [*scores_of(2).tolist(), *scores_of(1).tolist()],
        "feature.time": [1.0, 2.0, 0.0],
        "feature.key": [1, 2, 0],
        "feature.site": [101, 102, 100],
    }
    assert dict(rows.schema) | {"row": pl.Int32(), "score": pl.Float32()} == dict(rows.schema)
    (path,) = (tmp_path / "2026-03-01").iterdir()
    metadata = pq.read_metadata(path).metadata
    assert (metadata[FORMAT_KEY.encode()], metadata[FRACTION_KEY.encode()]) == (
        FORMAT.encode(),
        b"1.0",
    )


def test_the_key_is_the_request_id_only_where_the_request_has_one_row(tmp_path: Path) -> None:
    log = RequestLog(tmp_path, 1.0)
    for name, rows in {"one": rows_of(1), "two": rows_of(2), "bad": rows_of(1, 1)}.items():
        log.add(MODEL, name, rows, scores_of(len(rows.row_numbers_G)))
    log.close()
    assert read_request_log(tmp_path)["key"].to_list() == ["one", None, None, None]


def test_processes_agree_about_the_requests_and_so_do_reruns(tmp_path: Path) -> None:
    ids = [f"request {k}" for k in range(4000)]
    one, other, more = (RequestLog(tmp_path, share) for share in (0.1, 0.1, 0.3))
    chosen = [one.wants(name) for name in ids]
    assert chosen == [other.wants(name) for name in ids]
    # Binomial: four standard deviations are 0.019 of 4,000 requests.
    assert abs(np.mean(chosen) - 0.1) < 0.02
    assert all(more.wants(name) for name, is_chosen in zip(ids, chosen, strict=True) if is_chosen)
    everything = RequestLog(tmp_path, 1.0)
    assert all(everything.wants(name) for name in [*ids, "", "\udcff"])
    for log in (one, other, more, everything):
        log.close()


@pytest.mark.parametrize("fraction", [0, -0.1, 1.1, float("nan")])
def test_a_fraction_is_a_share(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(ValueError, match="a fraction above 0 and up to 1 expected"):
        RequestLog(tmp_path, fraction)


def test_processes_write_files_of_their_own_and_none_is_half_done(tmp_path: Path) -> None:
    records = make_records(60)
    servers = [Server(tmp_path, state_for(records)) for _ in range(3)]
    threads = [
        threading.Thread(target=server.serve, args=(records, [0.5] * len(records)))
        for server in servers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = read_request_log(tmp_path)
    assert len([*tmp_path.glob("*/*")]) == len([*tmp_path.glob("*/*.parquet")]) == 3
    assert rows["key"].value_counts()["count"].to_list() == [3] * 60


def test_a_file_is_written_when_it_is_full_or_after_its_time(tmp_path: Path) -> None:
    full = RequestLog(tmp_path / "full", 1.0, file_rows=3)
    timed = RequestLog(tmp_path / "timed", 1.0, file_seconds=0.01)
    full.add(MODEL, "r", rows_of(3), scores_of(3))
    timed.add(MODEL, "r", rows_of(3), scores_of(3))
    deadline = threading.Event()
    for _ in range(500):
        if full.rows_written == timed.rows_written == 3:
            break
        deadline.wait(0.02)
    assert full.rows_written == timed.rows_written == 3
    full.close()
    timed.close()


def test_memory_is_bounded_where_the_disk_is_too_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a file is being written, at most the rows of two files wait."""
    is_writing, may_write = threading.Event(), threading.Event()
    write = pq.write_table

    def slowly(*args: Any, **options: Any) -> None:
        is_writing.set()
        assert may_write.wait(30)
        write(*args, **options)

    monkeypatch.setattr(request_log.pq, "write_table", slowly)
    log = RequestLog(tmp_path, 1.0, file_rows=4)
    log.add(MODEL, "r", rows_of(4), scores_of(4))
    assert is_writing.wait(30)
    for _ in range(5):
        log.add(MODEL, "r", rows_of(3), scores_of(3))
    assert log.rows_lost == 9  # of 15, of which 6 wait
    may_write.set()
    log.close()
    assert log.rows_written == 4 + 6
    log.add(MODEL, "r", rows_of(2), scores_of(2))  # after the end, which is no error either
    assert log.rows_lost == 9 + 2


def test_a_folder_that_cannot_be_written_costs_rows_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log").write_text("a file where the folder should be")
    log = RequestLog(tmp_path / "log", 1.0, file_rows=2)
    for k in range(3):
        log.add(MODEL, "r", rows_of(2), scores_of(2), at=NOON + k * DAY_S)
    log.close()
    assert (log.rows_written, log.rows_lost) == (0, 6)
    output = capsys.readouterr().out
    assert output.count("the request log cannot be written") == 1
    assert "the request log lacks 6 rows that could not be written" in output


@pytest.mark.slow  # as root only: it mounts a file system
def test_a_full_disk_leaves_no_half_file_and_the_log_goes_on_when_it_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "disk", 1 << 22) as leave:
        (tmp_path / "disk/other").write_bytes(bytes(1 << 16))
        leave(0)
        log = RequestLog(tmp_path / "disk/log", 1.0, file_rows=10)
        log.add(MODEL, "r", rows_of(10), scores_of(10))
        deadline = threading.Event()
        for _ in range(500):
            if log.rows_lost:
                break
            deadline.wait(0.02)
        assert log.rows_lost == 10
        leave(1 << 20)
        log.add(MODEL, "r", rows_of(10), scores_of(10))
        log.close()
        assert (log.rows_written, log.rows_lost) == (10, 10)
        assert len(read_request_log(tmp_path / "disk/log")) == 10
        names = [path.name for path in (tmp_path / "disk/log").glob("*/.*")]
        assert not names
    assert "No space left on device" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a7", "a7"),
        (17, "17"),
        (2**70, str(2**70)),
        (1.5, "1.5"),
        (True, "true"),
        ("", None),
        (None, None),
        ([1], None),
        ("x" * 201, None),
    ],
)
def test_the_text_of_a_key(value: object, text: str | None) -> None:
    assert key_text(value) == text


def test_long_request_ids_are_cut(tmp_path: Path) -> None:
    log = RequestLog(tmp_path, 1.0)
    log.add(MODEL, "x" * 10_000, rows_of(1), scores_of(1))
    log.close()
    assert read_request_log(tmp_path)["request_id"].str.len_chars().to_list() == [200]


def test_no_value_of_a_row_is_in_the_files(tmp_path: Path) -> None:
    records = make_records(20)
    Server(tmp_path, state_for(records)).serve(records, [0.5] * 20)
    rows = read_request_log(tmp_path)
    texts = [name for name, dtype in rows.schema.items() if dtype == pl.String]
    assert texts == ["request_id", "key", "model", "version", "role"]
    assert rows.columns[8:] == [FEATURE_PREFIX + name for name in ("time", "key", "site")]
    assert rows["feature.key"].dtype == rows["feature.site"].dtype == pl.Int32
