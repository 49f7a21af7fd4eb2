"""The request log: sampled rows as Parquet files, complete or absent, in bounded memory."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from common.parquet import read_parquet
from serving import request_log
from serving.options import Canary
from serving.served_model import load_model
from tests.factories.asgi import client_of, serve_options
from tests.factories.support import CRITEO
from tests.factories.tiny_serving_bundles import lines, write_serving_bundle

ROWS = [lines(3)[0], lines(3)[1].replace("\t", "\tx", 1), lines(3)[2]]  # the second is malformed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logged")
    for seed in (1, 2):
        write_serving_bundle(folder / f"{seed}.serving", seed)
    return folder


def files_of(directory: Path) -> list[str]:
    return sorted(
        path.relative_to(directory).parent.as_posix() for path in directory.rglob("*.parquet")
    )


def test_the_log_has_ids_dense_inputs_scores_and_who_gave_them(
    folder: Path, tmp_path: Path
) -> None:
    begin = datetime.now(UTC)
    models = {"production": folder / "1"}
    with client_of(serve_options(models, log_requests=tmp_path)) as client:
        answer = client.post_lines("/score", ROWS, **{"x-request-id": "seven"}).json
        client.post_lines("/score", lines(2))
    assert answer["scores"][1] is None
    (path,) = tmp_path.rglob("*.parquet")
    assert path.parent == tmp_path / "production" / f"{1:012x}"
    rows = read_parquet(path)
    assert rows["request_id"].to_list() == ["seven", "seven", None, None]
    assert rows["row"].to_list() == [0, 2, 0, 1]
    assert rows["role"].unique().to_list() == ["champion"]
    assert rows["time"].dtype == pl.Datetime("us", "UTC")
    assert begin <= rows["time"].min() <= datetime.now(UTC)  # type: ignore[operator]
    expected = [answer["scores"][0], answer["scores"][2]]
    assert rows["score"].to_list()[:2] == [float(np.float32(score)) for score in expected]
    encoder = load_model(folder / "1.serving").encoder
    encoded = encoder.encode_lines("\n".join([ROWS[0], ROWS[2], *lines(2)]).encode())
    dense = rows.select(f"dense.{name}" for name in CRITEO.dense).to_numpy()
    ids = rows.select(f"id.{name}" for name in CRITEO.categorical).to_numpy()
    assert (dense == encoded.dense_GN).all()
    assert (ids == encoded.ids_GF).all()
    assert (dense.dtype, ids.dtype) == (np.float32, np.int32)
    assert len(rows.columns) == 5 + len(CRITEO.dense) + len(CRITEO.categorical)


def test_each_model_and_version_has_files_of_its_own(folder: Path, tmp_path: Path) -> None:
    models = {"a": folder / "1", "b": folder / "1"}
    canaries = {"a": Canary(path=folder / "2", fraction=0.5)}
    with client_of(serve_options(models, canaries=canaries, log_requests=tmp_path)) as client:
        for seed in range(2, 22):
            client.post_lines("/models/a/score", lines(1, seed))
        client.post_lines("/models/b/score", lines(1))
    assert files_of(tmp_path) == [f"a/{1:012x}", f"a/{2:012x}", f"b/{1:012x}"]
    (path,) = (tmp_path / "a" / f"{2:012x}").iterdir()
    assert read_parquet(path)["role"].unique().to_list() == ["canary"]


def test_a_fraction_of_the_requests_is_logged(folder: Path, tmp_path: Path) -> None:
    options = serve_options({"a": folder / "1"}, log_requests=tmp_path, log_fraction=0.3)
    with client_of(options) as client:
        for _ in range(300):
            client.post_lines("/score", lines(1))
    (path,) = tmp_path.rglob("*.parquet")
    assert 50 < read_parquet(path).height < 140  # more than five standard deviations


def test_memory_is_bounded_and_what_is_dropped_is_counted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_log, "MAX_ROWS", 10)
    with client_of(serve_options({"a": folder / "1"}, log_requests=tmp_path)) as client:
        for _ in range(3):
            client.post_lines("/score", lines(5))
        assert client.metric("clickmill_logged_rows_total", outcome="dropped") == 5
    (path,) = tmp_path.rglob("*.parquet")
    assert read_parquet(path).height == 10


def test_a_folder_that_cannot_be_written_changes_no_answer(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(request_log, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(request_log, "WRITE_EVERY_S", 0.0)
    options = serve_options({"a": folder / "1"}, log_requests=tmp_path / "file")
    with client_of(options) as client:
        for _ in range(3):
            assert client.post_lines("/score", lines(5)).status == 200
        client.run(asyncio.sleep(0.3))
        assert client.metric("clickmill_logged_rows_total", outcome="failed") == 15
        assert client.post_lines("/score", lines(5)).status == 200
