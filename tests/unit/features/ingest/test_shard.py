"""One log file to one shard: what a worker refuses, two attempts at one file, the object store."""

from dataclasses import replace
from pathlib import Path

import pytest

from common.artifact import ListedFile
from common.config.loading import ConfigError
from features.ingest.object_store import ObjectStore
from features.ingest.shard import (
    RECORD_FILE,
    Job,
    find_shard,
    ingest_file,
    new_shard_dir,
    recipe_hash,
)
from tests.factories.support import CRITEO, line


@pytest.fixture
def job(tmp_path: Path) -> Job:
    log = tmp_path / "day_0.tsv"
    log.write_text(f"{line()}\n" * 10 + "rubbish\n")
    return Job(
        log.name,
        log,
        ListedFile.of(log),
        CRITEO,
        "fill",
        recipe_hash(CRITEO, "fill"),
        tmp_path / "parts",
    )


def ignore_progress(num_rows: int, num_bytes: int) -> None:
    """Receive the progress and do nothing with it."""


def test_a_worker_with_other_code_is_refused(job: Job) -> None:
    with pytest.raises(ConfigError, match=r"runs another clickmill, polars or pyarrow"):
        ingest_file(replace(job, recipe_hash="older"), ignore_progress)
    assert not job.shards_dir.exists()


def test_progress_reports_every_line_and_every_byte(job: Job) -> None:
    seen: list[tuple[int, int]] = []
    ingest_file(job, lambda *step: seen.append(step))
    assert [sum(numbers) for numbers in zip(*seen, strict=True)] == [11, job.num_bytes]


def test_of_two_attempts_the_first_to_finish_is_kept(job: Job) -> None:
    """A worker that was taken for dead finishes after all."""
    with new_shard_dir(job) as late:
        shard = ingest_file(job, ignore_progress)
        before = (job.shard_dir / RECORD_FILE).stat().st_ino
        (late / RECORD_FILE).write_text("late")
    assert find_shard(job) == shard
    assert (job.shard_dir / RECORD_FILE).stat().st_ino == before
    assert [path.name for path in job.shards_dir.iterdir()] == [job.key]


def test_a_shard_goes_through_the_store_and_alone_stays_there(
    job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ObjectStore((tmp_path / "store").as_uri())
    for _ in range(2):  # the second time it is in the store
        store.upload_log(job)
    assert capsys.readouterr().out.count("day_0.tsv") == 1
    there = replace(
        job, source=tmp_path / "elsewhere" / "day_0.tsv", shards_dir=tmp_path / "elsewhere"
    )  # as a worker sees it
    assert store.find_shard(job) is None
    shard = store.ingest_log(there, ignore_progress, tmp_path)
    assert store.find_shard(job) == shard
    assert (shard.num_rows, shard.num_bad_rows) == (10, 1)
    store.download_shard(job, shard)
    assert find_shard(job) == shard
    left = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert left == [tmp_path / f"store/shards/{shard.parquet_sha256}.parquet"]


def test_a_damaged_record_in_the_store_is_none(job: Job, tmp_path: Path) -> None:
    """The log is then read again, and the new record takes its place."""
    store = ObjectStore((tmp_path / "store").as_uri())
    store.upload_log(job)
    there = replace(job, shards_dir=tmp_path / "elsewhere")
    shard = store.ingest_log(there, ignore_progress, tmp_path)
    record = tmp_path / "store" / job.key / RECORD_FILE
    whole = record.read_bytes()
    flipped = [
        whole[:k] + bytes([whole[k] ^ 1 << k % 8]) + whole[k + 1 :] for k in range(len(whole))
    ]
    odd = [b"", b"null", b"[]", b"{}", b'{"shard": 1}', b"[" * 100_000, b"\xff"]
    for damaged in (*flipped, whole[:-1], whole + b" ", *odd):
        record.write_bytes(damaged)
        assert store.find_shard(job) is None
    store.upload_log(job)
    assert store.ingest_log(there, ignore_progress, tmp_path) == shard
    assert store.find_shard(job) == shard
    store.download_shard(job, shard)
    assert find_shard(job) == shard


def test_a_shard_that_was_removed_from_the_store_is_none(job: Job, tmp_path: Path) -> None:
    store = ObjectStore((tmp_path / "store").as_uri())
    store.upload_log(job)
    shard = store.ingest_log(replace(job, shards_dir=tmp_path / "1"), ignore_progress, tmp_path)
    assert store.find_shard(job) == shard
    (tmp_path / f"store/shards/{shard.parquet_sha256}.parquet").unlink()
    assert store.find_shard(job) is None


def test_a_password_in_the_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match="each machine's environment") as error:
        ObjectStore("s3://key:secret@bucket/prefix")
    assert "secret" not in str(error.value)
