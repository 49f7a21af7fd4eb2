"""The request log of a server: its rows, keys and scores, and faults that do not stop answers."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from common.config.loading import ConfigError
from features.schema.schema import Schema
from serving.log_keys import keys_of_lines
from serving.options import Canary, LogRequests, log_requests_of
from serving.served_model import load_model
from tests.factories.asgi import Client, client_of, serve_options
from tests.factories.raw_logs import CSV_WITH_HEADER, JSON
from tests.factories.served_traffic import read_request_log
from tests.factories.support import CRITEO
from tests.factories.tiny_serving_bundles import lines, records, write_serving_bundle

KEY = "impression"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving")
    for seed in (1, 2):
        write_serving_bundle(folder / f"{seed}.serving", seed)
    return folder


@contextmanager
def server(
    folder: Path, log: Path, fraction: float = 1.0, key: str | None = KEY, **changes: Any
) -> Iterator[Client]:
    """A server of model 1 that logs its requests."""
    options = serve_options({"production": folder / "1"}, **changes)
    options = options.model_copy(
        update={"log_requests": LogRequests(directory=log, fraction=fraction, key=key)}
    )
    with client_of(options) as client:
        yield client


def with_keys(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{**row, KEY: f"i{k}"} for k, row in enumerate(rows)]


def test_the_log_has_what_was_answered(folder: Path, tmp_path: Path) -> None:
    with server(folder, tmp_path) as client:
        bad = {**records(1)[0], CRITEO.dense[0]: "seven"}
        body = {"rows": with_keys([bad, *records(5)])}
        answer = client.post_json("/score", body, **{"x-request-id": "r1"})
    rows = read_request_log(tmp_path)
    answered = np.array(answer.json["scores"][1:], np.float32)
    assert answered.tolist() == rows["score"].to_list()
    assert answer.json["scores"][0] is None
    assert rows["row"].to_list() == [1, 2, 3, 4, 5]
    assert rows["key"].to_list() == ["i1", "i2", "i3", "i4", "i5"]
    assert set(rows.select("request_id", "model", "version", "role").rows()) == {
        ("r1", "production", "000000000001", "answer")
    }
    encoded = load_model(folder / "1.serving").encoder.encode_records(records(5))
    names = [f"feature.{name}" for name in (*CRITEO.dense_features, *CRITEO.categorical_features)]
    assert rows.columns[8:] == names
    num_dense = encoded.dense_GN.shape[1]
    np.testing.assert_array_equal(rows[names[:num_dense]].to_numpy(), encoded.dense_GN)
    np.testing.assert_array_equal(rows[names[num_dense:]].to_numpy(), encoded.ids_GF)


def test_the_answer_is_the_same_with_and_without_the_log(folder: Path, tmp_path: Path) -> None:
    with client_of(serve_options({"production": folder / "1"})) as client:
        before = client.post_json("/score", {"rows": with_keys(records(7))})
    with server(folder, tmp_path) as client:
        after = client.post_json("/score", {"rows": with_keys(records(7))})
    assert (after.status, after.body) == (before.status, before.body)


def test_a_request_that_is_refused_is_not_logged(folder: Path, tmp_path: Path) -> None:
    with server(folder, tmp_path) as client:
        assert client.post_json("/score", {"rows": [{KEY: "i1"}]}).status == 422
        assert client.post_json("/models/none/score", {"rows": with_keys(records(1))}).status == 404
    assert not [*tmp_path.iterdir()]


def test_tensors_have_keys_too(folder: Path, tmp_path: Path) -> None:
    rows = with_keys(records(3))
    tensors = [
        {"name": name, "shape": [3], "data": [row[name] for row in rows]}
        | {"datatype": "INT64" if name in CRITEO.dense else "BYTES"}
        for name in [*CRITEO.log_columns(labelled=False), KEY]
    ]
    with server(folder, tmp_path) as client:
        assert client.post_json("/v2/models/production/infer", {"inputs": tensors}).status == 200
        assert (
            client.post_json("/v2/models/production/infer", {"inputs": tensors[:-1]}).status == 200
        )
    assert read_request_log(tmp_path)["key"].to_list() == ["i0", "i1", "i2", None, None, None]


def test_lines_without_the_column_have_the_request_id(folder: Path, tmp_path: Path) -> None:
    """Criteo's lines have no place for an impression."""
    with server(folder, tmp_path) as client:
        client.post_lines("/score", lines(1), **{"x-request-id": "r1"})
        client.post_lines("/score", lines(2), **{"x-request-id": "r2"})
    assert read_request_log(tmp_path)["key"].to_list() == ["r1", None, None]


def test_a_column_of_the_lines_can_be_the_key(folder: Path, tmp_path: Path) -> None:
    name = CRITEO.categorical[0]
    with server(folder, tmp_path, key=name) as client:
        client.post_lines("/score", lines(4))
    place = CRITEO.log_columns(labelled=False).index(name)
    texts = [line.split("\t")[place] or None for line in lines(4)]
    assert read_request_log(tmp_path)["key"].to_list() == texts


@pytest.mark.parametrize(
    ("schema", "body", "keys"),
    [
        (JSON, b'{"a": 1, "k": "x"}\n{"k": 2}\n{}\n', ["x", "2", None]),
        (JSON, b'{"a": 1}\nno JSON\n', None),
        (CSV_WITH_HEADER, b'age,k\n3,"a,b"\n4\n5,"c\n', ["a,b", None, None]),
        (CSV_WITH_HEADER, b"age\n3\n", None),
        (CRITEO, b"1\t2\n", None),
        (JSON, b"", None),
    ],
)
def test_the_keys_of_lines(schema: Schema, body: bytes, keys: list[str | None] | None) -> None:
    assert keys_of_lines(body, schema, "k") == keys


def test_a_request_without_an_id_gets_one(folder: Path, tmp_path: Path) -> None:
    with server(folder, tmp_path, key=None) as client:
        for _ in range(2):
            client.post_json("/score", {"rows": records(1)})
    rows = read_request_log(tmp_path)
    assert rows["request_id"].n_unique() == 2
    assert rows["key"].to_list() == rows["request_id"].to_list()


def test_a_fraction_of_the_requests_is_logged_whole(folder: Path, tmp_path: Path) -> None:
    with server(folder, tmp_path, fraction=0.3) as client:
        for k in range(200):
            client.post_json("/score", {"rows": records(2)}, **{"x-request-id": f"r{k}"})
        written = read_rows_after(client, tmp_path)
    counts = written["request_id"].value_counts()["count"]
    assert set(counts) == {2}
    assert 35 < len(counts) < 90  # binomial: four standard deviations


def read_rows_after(client: Client, log: Path) -> pl.DataFrame:
    """Close the log of a server, and read it."""
    assert client.app._sampler
    client.app._sampler.close()
    return read_request_log(log)


def test_a_shadow_and_a_canary_are_logged_as_what_they_are(folder: Path, tmp_path: Path) -> None:
    changes = {
        "shadows": {"production": folder / "2"},
        "canaries": {"production": Canary(path=folder / "2", fraction=0.5)},
    }
    with server(folder, tmp_path, **changes) as client:
        for k in range(40):
            body = {"rows": [{**records(1)[0], KEY: f"i{k}"}]}
            answer = client.post_json("/score", body, **{"x-request-id": f"r{k}"})
            assert answer.status == 200
        client.app._shadows._thread.shutdown()
        rows = read_rows_after(client, tmp_path)
    by_role = dict(rows.group_by("role").agg(pl.len()).iter_rows())
    assert by_role == {"answer": 40, "shadow": 40}
    answers = rows.filter(pl.col("role") == "answer")
    assert set(answers["version"]) == {"000000000001", "000000000002"}
    shadows = rows.filter(pl.col("role") == "shadow")
    assert set(shadows["version"]) == {"000000000002"}
    assert shadows["key"].to_list() == [f"i{k}" for k in range(40)]


def test_a_folder_that_cannot_be_written_breaks_no_answer(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    with server(folder, tmp_path / "log") as client:
        for k in range(3):
            body = {"rows": with_keys(records(2))}
            assert client.post_json("/score", body, **{"x-request-id": f"r{k}"}).status == 200
        assert client.app._sampler
        client.app._sampler.close()
        lost = client.metric("clickmill_logged_rows_total", outcome="lost")
    assert lost == 6


def test_options_of_the_log() -> None:
    assert log_requests_of(None, 0.1, None) is None
    assert log_requests_of(Path("log"), 0.1, "k") == LogRequests(
        directory=Path("log"), fraction=0.1, key="k"
    )
    with pytest.raises(ConfigError, match=r"name the folder too \(--log-requests DIR\)"):
        log_requests_of(None, 0.1, "k")
    for fraction in (0, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="a share above 0 and up to 1 expected"):
            log_requests_of(Path("log"), fraction, None)


def test_the_options_reach_a_worker_as_json() -> None:
    options = serve_options({"production": Path("a")}).model_copy(
        update={"log_requests": LogRequests(directory=Path("log"), fraction=0.5, key=KEY)}
    )
    text = options.model_dump_json()
    assert type(options).model_validate_json(text) == options
    assert json.loads(text)["log_requests"]["directory"] == "log"
