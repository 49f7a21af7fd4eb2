"""Logs at a URL: a real HTTP server on loopback that breaks connections, and what is refused."""

import hashlib
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from common.config.loading import ConfigError
from common.files import DataError
from common.layout import RAW
from features.collect import remote
from features.collect.manifest import RawManifest
from features.collect.stage import collect, source_changed
from tests.factories.support import make_params, serving

BLOCK = 1 << 16


class Store:
    """The state of the server: its file, its faults, and the requests that it got.

    Attributes:
        content: The file.
        has_ranges: Whether it answers range requests.
        has_etag: Whether it says the version.
        cut_after: The connection breaks after this number of bytes of an answer, that many times.
        num_cuts: The number of times left.
        login: The header that it demands.
        ranges: The ranges that were asked for; None for the whole file.
    """

    def __init__(self) -> None:
        self.content = bytes(range(256)) * (5 * BLOCK // 256) + b"end"
        self.has_ranges = self.has_etag = True
        self.cut_after, self.num_cuts = BLOCK // 2, 0
        self.login: str | None = None
        self.ranges: list[str | None] = []


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Store, str]]:
    one = Store()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(is_head=True)

        def do_GET(self) -> None:
            one.ranges.append(self.headers["Range"])
            self.answer(is_head=False)

        def answer(self, *, is_head: bool) -> None:
            if one.login and self.headers["Authorization"] != one.login:
                self.send_response(401)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if not self.path.endswith("day_0.tsv"):
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            first, last = 0, len(one.content) - 1
            if found := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or ""):
                first, last = int(found[1]), min(int(found[2]), last)
            is_part = one.has_ranges and found is not None
            body = one.content[first : last + 1] if is_part else one.content
            self.send_response(206 if is_part else 200)
            self.send_header("Content-Length", str(len(body)))
            if is_part:
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(one.content)}")
            if one.has_etag:
                self.send_header("ETag", hashlib.md5(one.content).hexdigest())
            self.end_headers()
            if is_head:
                return
            if (one.num_cuts and first >= 2 * BLOCK) or (one.num_cuts and not is_part):
                one.num_cuts -= 1
                self.wfile.write(body[: one.cut_after])
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()
                return
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing."""

    monkeypatch.setattr(remote, "BLOCK_BYTES", BLOCK)
    monkeypatch.setattr(remote, "RETRY_DELAY_S", 0.01)
    with serving(Handler) as port:
        yield one, f"http://127.0.0.1:{port}/logs/day_0.tsv"


def files(root: Path) -> list[str]:
    return [file.name for file in RawManifest.read(root / RAW).files]


def test_a_file_is_fetched_once_and_again_when_it_changes(
    tmp_path: Path, store: tuple[Store, str]
) -> None:
    server, url = store
    params = make_params(data__source=url)
    assert source_changed(params, tmp_path)
    collect(params, tmp_path)
    assert (tmp_path / RAW / "day_0.tsv").read_bytes() == server.content
    assert files(tmp_path) == ["day_0.tsv"]
    server.ranges.clear()
    assert not source_changed(params, tmp_path)
    collect(params, tmp_path)
    assert server.ranges == []
    server.content = server.content[::-1]  # of the same size
    assert source_changed(params, tmp_path)
    collect(params, tmp_path)
    assert (tmp_path / RAW / "day_0.tsv").read_bytes() == server.content
    assert not (tmp_path / remote.PARTS).exists()
    assert "127.0.0.1" not in (tmp_path / RAW / "manifest.json").read_text()


def test_a_broken_connection_is_resumed_where_it_broke(
    tmp_path: Path, store: tuple[Store, str], capsys: pytest.CaptureFixture[str]
) -> None:
    server, url = store
    server.num_cuts = 3
    collect(make_params(data__source=url), tmp_path)
    assert (tmp_path / RAW / "day_0.tsv").read_bytes() == server.content
    starts = [int(str(one).removeprefix("bytes=").split("-")[0]) for one in server.ranges]
    assert starts == [0, BLOCK, *[2 * BLOCK] * 4, 3 * BLOCK, 4 * BLOCK, 5 * BLOCK]
    assert capsys.readouterr().out.count(f"connection lost after {2 * BLOCK:,} bytes") == 3


def test_a_store_that_stays_away_is_one_line_and_the_next_run_goes_on(
    tmp_path: Path, store: tuple[Store, str]
) -> None:
    server, url = store
    params = make_params(data__source=url)
    collect(params, tmp_path)
    before = (tmp_path / RAW / "day_0.tsv").read_bytes()
    server.content = server.content[::-1]
    server.num_cuts = 100
    with pytest.raises(
        ConnectionError, match=r"data\.source: http://.* cannot be read .*run again"
    ):
        collect(params, tmp_path)
    assert (tmp_path / RAW / "day_0.tsv").read_bytes() == before
    assert files(tmp_path) == ["day_0.tsv"]  # what was collected is still whole
    server.num_cuts = 0
    server.ranges.clear()
    collect(params, tmp_path)
    assert server.ranges[0] == f"bytes={2 * BLOCK}-{3 * BLOCK - 1}"
    assert (tmp_path / RAW / "day_0.tsv").read_bytes() == server.content


def test_a_server_without_ranges_sends_the_file_again(
    tmp_path: Path, store: tuple[Store, str]
) -> None:
    server, url = store
    server.has_ranges = False
    server.num_cuts = 2
    collect(make_params(data__source=url), tmp_path)
    assert (tmp_path / RAW / "day_0.tsv").read_bytes() == server.content


def test_a_file_without_a_version_is_fetched_each_time(
    tmp_path: Path, store: tuple[Store, str]
) -> None:
    server, url = store
    server.has_etag = False
    params = make_params(data__source=url)
    collect(params, tmp_path)
    assert source_changed(params, tmp_path)
    server.content = server.content[::-1]
    collect(params, tmp_path)
    assert (tmp_path / RAW / "day_0.tsv").read_bytes() == server.content


def test_a_login_comes_from_the_environment(
    tmp_path: Path, store: tuple[Store, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, url = store
    server.login = "Basic dXNlcjpzZWNyZXQ="
    params = make_params(data__source=url)
    with pytest.raises(ConfigError, match=r"access to http://.* is refused .*NETRC"):
        collect(params, tmp_path)
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    collect(params, tmp_path)
    assert files(tmp_path) == ["day_0.tsv"]


def test_nothing_at_the_url(tmp_path: Path, store: tuple[Store, str]) -> None:
    _, url = store
    with pytest.raises(
        DataError, match=r"data\.source: nothing found at http://.*/day_1\.tsv; corr"
    ):
        collect(make_params(data__source=url.replace("day_0", "day_1")), tmp_path)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://key:hidden@bucket/logs", "a URL with an @ or a secret in it"),
        ("https://host/day_0.tsv?token=hidden", "a URL with an @ or a secret in it"),
        ("ftp://host/day_0.tsv", "ftp:// is not known; give a path, or s3://"),
        ("gs://bucket/logs", r"gs:// needs a package \(.*\): pip install 'clickmill\[gs\]'"),
    ],
)
def test_urls_that_are_refused(tmp_path: Path, url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        collect(make_params(data__source=url), tmp_path)
    assert "hidden" not in str(caught.value)


def test_a_port_without_a_server_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "RETRY_DELAY_S", 0.01)
    with pytest.raises(
        ConnectionError, match=r"http://127\.0\.0\.1:9/x\.tsv cannot be read"
    ) as caught:
        collect(make_params(data__source="http://127.0.0.1:9/x.tsv"), tmp_path)
    assert "\n" not in str(caught.value)


def test_the_fingerprint_depends_on_place_size_and_version() -> None:
    def fingerprint(path: str, **info: Any) -> str | None:
        return remote.Object.of("s3", path, info).fingerprint

    all_of_them = {
        fingerprint("a", size=1, ETag="x"),
        fingerprint("b", size=1, ETag="x"),
        fingerprint("a", size=2, ETag="x"),
        fingerprint("a", size=1, ETag="y"),
        fingerprint("a", size=1, mtime=5),
    }
    assert len(all_of_them) == 5
    assert fingerprint("a", size=1, ETag="x", mtime=5) == fingerprint(
        "a", size=1, ETag="x", mtime=6
    )
    assert fingerprint("a", size=1) is None
