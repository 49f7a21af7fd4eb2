"""Logs in an S3-compatible store that checks credentials: folders, changes, broken connections."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import botocore.session
import pytest

from common.config.loading import ConfigError
from common.files import DataError
from common.layout import RAW
from features.collect import remote
from features.collect.manifest import RawManifest
from features.collect.stage import collect, find_source, source_changed
from tests.factories.support import ROOT, line, make_params

pytestmark = pytest.mark.services
BUCKET = "logs"
LARGE = (line() + "\n").encode() * 100_000
TEXT = f"{line()}\n".encode()


@pytest.fixture
def bucket(store: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> object:
    """A client of the store, with an empty bucket. The environment has the credentials."""
    for name, value in store.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "RETRY_DELAY_S", 0.01)
    environment = os.environ | store
    command = [sys.executable, str(ROOT / "docker" / "make_bucket.py"), BUCKET]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    client = botocore.session.get_session().create_client("s3")
    for one in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=one["Key"])
    return client


def put(client: object, name: str, body: bytes = TEXT) -> None:
    client.put_object(Bucket=BUCKET, Key=name, Body=body)  # type: ignore[attr-defined]


def fetched(capsys: pytest.CaptureFixture[str]) -> int:
    return capsys.readouterr().out.count(" bytes")


def test_folders_named_by_day_and_only_what_is_new_is_fetched(
    tmp_path: Path, bucket: object, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (
        "day=2026-01-10/part-0.tsv",
        "day=2026-01-09/part-0.tsv",
        "day=2026-01-09/part-1.tsv",
    ):
        put(bucket, f"lake/{name}", TEXT + name.encode())
    for name in ("_SUCCESS", "day=2026-01-09/.part-0.tsv.crc", "notes.md", "day=2026-01-09/"):
        put(bucket, f"lake/{name}", b"")
    put(bucket, "lakeside/day=1/part-0.tsv")  # begins with the same letters
    params = make_params(data__source=f"s3://{BUCKET}/lake/")
    collect(params, tmp_path)
    manifest = RawManifest.read(tmp_path / RAW)
    assert [(file.day, file.name) for file in manifest.files] == [
        ("2026-01-09", "day=2026-01-09/part-0.tsv"),
        ("2026-01-09", "day=2026-01-09/part-1.tsv"),
        ("2026-01-10", "day=2026-01-10/part-0.tsv"),
    ]
    for file in manifest.files:
        assert (tmp_path / RAW / file.name).read_bytes() == TEXT + file.name.encode()
    assert "ending is not that of a log: 1 (notes.md)" in capsys.readouterr().out
    assert not source_changed(params, tmp_path)
    collect(params, tmp_path)
    assert fetched(capsys) == 0
    put(bucket, "lake/day=2026-01-09/part-1.tsv", TEXT + b"day=2026-01-09/part-2.tsv")
    put(bucket, "lake/day=2026-01-11/part-0.tsv")
    assert source_changed(params, tmp_path)
    collect(params, tmp_path)
    assert fetched(capsys) == 2
    matched = find_source(
        make_params(data__source=f"s3://{BUCKET}/lake/day=*-1[01]/*.tsv").data, tmp_path
    )
    assert matched.discovery.days == ["2026-01-10", "2026-01-11"]
    alone = make_params(data__source=f"s3://{BUCKET}/lake/day=2026-01-11/part-0.tsv")
    assert find_source(alone.data, tmp_path).discovery.days == ["part-0.tsv"]


def test_a_table_of_delta_is_refused(tmp_path: Path, bucket: object) -> None:
    put(bucket, "table/_delta_log/0.json")
    put(bucket, "table/day=1/part-0.tsv")
    for source in ("table", "table/day=1", "table/*/*.tsv"):
        with pytest.raises(DataError, match="belongs to a table of Delta"):
            collect(make_params(data__source=f"s3://{BUCKET}/{source}"), tmp_path)


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_wrong_credentials_are_one_line(
    tmp_path: Path, bucket: object, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    put(bucket, "day_0.tsv")
    monkeypatch.setenv(name, "guessed")
    for source in (f"s3://{BUCKET}", f"s3://{BUCKET}/day_0.tsv", f"s3://{BUCKET}/day_*.tsv"):
        with pytest.raises(
            ConfigError, match=r"access to s3://logs.* is refused .*AWS_ACC"
        ) as caught:
            collect(make_params(data__source=source), tmp_path)
        assert "\n" not in str(caught.value)


def test_nothing_there(tmp_path: Path, bucket: object) -> None:
    with pytest.raises(DataError, match=r"data\.source: no(thing| log) found at"):
        collect(make_params(data__source=f"s3://{BUCKET}/nowhere"), tmp_path)
    with pytest.raises(DataError, match="nothing found at s3://no-such-bucket"):
        collect(make_params(data__source="s3://no-such-bucket/logs"), tmp_path)


def test_a_connection_that_breaks_in_the_middle_is_resumed(
    tmp_path: Path, bucket: object, store: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(bucket, "day_0.tsv", LARGE)
    monkeypatch.setattr(remote, "BLOCK_BYTES", 1 << 20)
    port = int(store["AWS_ENDPOINT_URL"].rpartition(":")[2])
    with breaking_proxy(port, after_bytes=3_500_000) as (proxy, sent):
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy}")
        collect(make_params(data__source=f"s3://{BUCKET}/day_0.tsv"), tmp_path)
    assert (tmp_path / RAW / "day_0.tsv").read_bytes() == LARGE
    assert len(sent) > len(LARGE) // 3_500_000  # it broke
    assert sum(sent) < 1.5 * len(LARGE)  # and what had arrived was not sent again


@contextmanager
def breaking_proxy(port: int, after_bytes: int) -> Iterator[tuple[int, list[int]]]:
    """Forward connections to a port of this machine, and break each after some bytes of answers.

    Yields:
        The port of the proxy, and the number of bytes that each connection has sent.
    """
    sent: list[int] = []

    def forward(client: socket.socket) -> None:
        number = len(sent)
        sent.append(0)
        with client, socket.create_connection(("127.0.0.1", port)) as server:

            def upstream() -> None:
                with suppress(OSError):
                    while data := client.recv(1 << 16):
                        server.sendall(data)

            threading.Thread(target=upstream, daemon=True).start()
            with suppress(OSError):
                while sent[number] < after_bytes and (data := server.recv(1 << 14)):
                    client.sendall(data)
                    sent[number] += len(data)
            for one in (client, server):
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(
                        target=forward, args=[listener.accept()[0]], daemon=True
                    ).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1], sent
        finally:
            listener.shutdown(socket.SHUT_RDWR)
