"""The answers of the server, by status code and path, without sockets."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving import app as app_module
from serving.served_model import load_model
from tests.factories.asgi import Client, Reply, client_of, serve_options
from tests.factories.support import CRITEO
from tests.factories.tiny_serving_bundles import lines, records, write_serving_bundle

DENSE = CRITEO.dense[0]
BAD_LINE = lines(1)[0].replace(lines(1)[0].split("\t")[0], "seven", 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving")
    for seed in (1, 2):
        write_serving_bundle(folder / f"{seed}.serving", seed)
    return folder


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Client]:
    models = {"production": folder / "1", "other": folder / "2", "missing": folder / "3"}
    with client_of(serve_options(models)) as client:
        yield client


def expected_scores(folder: Path, seed: int, rows: list[str]) -> list[float]:
    model = load_model(folder / f"{seed}.serving")
    encoded = model.encoder.encode_lines("\n".join(rows).encode())
    return [float(score) for score in model.runtime.scores(encoded.dense_GN, encoded.ids_GF)]


def as_float32(scores: list[float]) -> list[float]:
    return [float(np.float32(score)) for score in scores]


def error_of(reply: Reply, status: int) -> str:
    """Check that an answer is an error, and return its message."""
    assert reply.status == status, reply.body
    assert reply.headers["content-type"] == "application/json"
    message = reply.json["error"]
    assert message
    assert "\n" not in message
    return str(message)


def test_lines_and_records_have_the_scores_of_the_runtime(client: Client, folder: Path) -> None:
    expected = expected_scores(folder, 1, lines(20))
    answer = client.post_lines("/score", lines(20))
    assert answer.status == 200
    assert answer.json["model"] == "production"
    assert answer.json["version"] == "000000000001"
    assert answer.json["errors"] == []
    assert as_float32(answer.json["scores"]) == expected
    by_name = client.post_json("/models/production/score", {"rows": records(20)})
    assert by_name.body == answer.body


def test_each_model_answers_by_its_name(client: Client, folder: Path) -> None:
    answer = client.post_lines("/models/other/score", lines(5)).json
    assert (answer["model"], answer["version"]) == ("other", "000000000002")
    assert as_float32(answer["scores"]) == expected_scores(folder, 2, lines(5))
    assert as_float32(answer["scores"]) != expected_scores(folder, 1, lines(5))


def test_requests_of_one_turn_are_one_batch_and_each_has_its_own_scores(
    client: Client, folder: Path
) -> None:
    batches: list[int] = []
    client.app._batcher._on_batch = batches.append

    async def all_together() -> list[Reply]:
        requests = []
        for seed in range(2, 8):
            body = "\n".join(lines(seed, seed)).encode()
            headers = {"content-type": "text/plain"}
            requests.append(client.send("POST", "/score", [body], headers))
        return list(await asyncio.gather(*requests))

    replies = client.run(all_together())
    assert batches == [sum(range(2, 8))]
    for seed, reply in zip(range(2, 8), replies, strict=True):
        assert as_float32(reply.json["scores"]) == expected_scores(folder, 1, lines(seed, seed))


def test_a_malformed_row_has_its_reason_and_its_neighbours_their_scores(
    client: Client, folder: Path
) -> None:
    answer = client.post_lines("/score", [lines(3)[0], BAD_LINE, lines(3)[2]])
    assert answer.status == 200
    scores, errors = answer.json["scores"], answer.json["errors"]
    whole = expected_scores(folder, 1, lines(3))
    assert scores[1] is None
    assert as_float32([scores[0], scores[2]]) == [whole[0], whole[2]]
    assert [error["row"] for error in errors] == [1]
    assert "seven" in errors[0]["reason"]
    alone = client.post_lines("/score", [BAD_LINE])
    assert (alone.status, alone.json["scores"]) == (200, [None])


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/score", "POST"),
        ("PUT", "/models/production/score", "POST"),
        ("GET", "/v2/models/production/infer", "POST"),
        ("POST", "/health", "GET, HEAD"),
        ("POST", "/metrics", "GET, HEAD"),
        ("DELETE", "/v2/models/production", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_405(client: Client, method: str, path: str, allowed: str) -> None:
    reply = client.request(method, path)
    error_of(reply, 405)
    assert reply.headers["allow"] == allowed


@pytest.mark.parametrize(
    "path",
    ["/", "/scores", "/score/", "/models", "/models/production", "/v2/models", "/v2/models//infer"],
)
def test_an_unknown_path_is_404(client: Client, path: str) -> None:
    error_of(client.request("POST", path), 404)


def test_an_unknown_model_is_404_and_the_known_ones_are_named(client: Client) -> None:
    assert "other" in error_of(client.post_lines("/models/nobody/score", lines(1)), 404)


def test_a_model_that_is_not_loaded_is_503(client: Client) -> None:
    reply = client.post_lines("/models/missing/score", lines(1))
    assert "not loaded" in error_of(reply, 503)
    assert reply.headers["retry-after"] == "1"
    error_of(client.post_json("/v2/models/missing/infer", {"inputs": []}), 503)
    assert client.get("/v2/models/missing/ready").status == 503
    assert client.get("/v2/models/production/ready").status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/octet-stream"},
        {"content-type": "text/plain", "content-encoding": "gzip"},
        {"content-type": "application/json", "inference-header-content-length": "10"},
    ],
)
def test_another_content_type_is_415(client: Client, headers: dict[str, str]) -> None:
    error_of(client.request("POST", "/score", b"x", headers), 415)


def test_parameters_and_case_of_a_content_type_do_not_matter(client: Client) -> None:
    headers = {"content-type": "Text/Plain; charset=utf-8"}
    assert client.request("POST", "/score", lines(1)[0].encode(), headers).status == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"rows": [}',
        b'{"rows": [{"a": NaN}]}',
        b'{"rows": [{"a": Infinity}]}',
        b'{"rows": [{"a": 1e999}]}',
        b'{"rows": "\xff"}',
        b'{"rows": "\\ud800"}',
        b'{"rows": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"rows": ' + b"[" * 1000 + b"1" * 30 + b"]" * 1000 + b"}",
        b'{"rows": [' + b"9" * 5000 + b"]}",
        b"\xef\xbb\xbf{}",
    ],
)
def test_what_is_not_json_is_400(client: Client, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    for path in ("/score", "/v2/models/production/infer"):
        error_of(client.request("POST", path, body, headers), 400)


@pytest.mark.parametrize(
    "value",
    [
        [],
        None,
        1,
        "rows",
        {},
        {"rows": None},
        {"rows": {}},
        {"rows": []},
        {"instances": [{}]},
        {"rows": [{}]},
        {"rows": records(1), "more": 1},
    ],
)
def test_json_without_rows_is_422(client: Client, value: object) -> None:
    error_of(client.post_json("/score", value), 422)


def test_a_key_beside_rows_is_422_and_named(client: Client) -> None:
    value = {"rows": records(1), "row_ids": [1]}
    assert "'row_ids'" in error_of(client.post_json("/score", value), 422)


def test_a_missing_or_misspelled_key_is_422_and_named(client: Client) -> None:
    record = records(1)[0]
    del record[DENSE]
    assert DENSE in error_of(client.post_json("/score", {"rows": [record]}), 422)
    record[DENSE.lower()] = 1
    assert DENSE in error_of(client.post_json("/score", {"rows": [record]}), 422)


@pytest.mark.parametrize(
    "value", [10**30, -(10**30), 2**63, -(2**63) - 1, 1e300, "x" * 10_000, [1], {"a": 1}, True]
)
def test_an_odd_value_is_a_malformed_row_or_a_score(
    client: Client, value: object, folder: Path
) -> None:
    odd = records(3)
    odd[1][DENSE] = value
    answer = client.post_json("/score", {"rows": odd})
    assert answer.status == 200
    scores = answer.json["scores"]
    whole = expected_scores(folder, 1, lines(3))
    assert as_float32([scores[0], scores[2]]) == [whole[0], whole[2]]
    assert (scores[1] is None) == bool(answer.json["errors"])


def test_of_equal_keys_the_last_one_counts(client: Client) -> None:
    record = json.dumps(records(1)[0])
    body = f'{{"rows": [{{"{DENSE}": 400, {record[1:]}]}}'.encode()
    headers = {"content-type": "application/json"}
    twice = client.request("POST", "/score", body, headers)
    assert twice.body == client.post_json("/score", {"rows": records(1)}).body


def test_too_many_bytes_are_413(client: Client) -> None:
    headers = {"content-type": "text/plain"}
    announced = client.request("POST", "/score", b"x", {**headers, "content-length": "2000000"})
    error_of(announced, 413)
    pieces = [b"x" * 600_000, b"x" * 600_000]
    error_of(client.run(client.send("POST", "/score", pieces, headers)), 413)
    assert client.app._bytes_at_work == 0


def test_too_many_rows_are_413(client: Client) -> None:
    assert client.post_lines("/score", lines(100)).status == 200
    error_of(client.post_lines("/score", lines(101)), 413)
    assert client.post_json("/score", {"rows": records(100)}).status == 200
    error_of(client.post_json("/score", {"rows": records(101)}), 413)
    error_of(client.post_json("/v2/models/production/infer", tensors(101)), 413)


def test_too_many_requests_are_429_and_the_others_are_answered(client: Client) -> None:
    body = lines(1)[0].encode()

    async def at_once() -> list[Reply]:
        headers = {"content-type": "text/plain"}
        requests = [client.send("POST", "/score", [body], headers) for _ in range(30)]
        return list(await asyncio.gather(*requests))

    replies = client.run(at_once())
    assert [reply.status for reply in replies] == [200] * 20 + [429] * 10
    assert replies[-1].headers["retry-after"] == "1"
    assert client.post_lines("/score", lines(1)).status == 200
    assert client.metric("clickmill_requests_at_work") == 0


def test_too_many_bytes_at_work_are_429(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "MAX_BYTES_AT_WORK", 1000)
    error_of(client.post_lines("/score", lines(50)), 429)
    assert client.app._bytes_at_work == 0


def test_a_client_that_goes_away_gets_no_answer_and_is_counted(client: Client) -> None:
    headers = {"content-type": "text/plain"}
    assert client.run(client.send("POST", "/score", [], headers)).status == 0
    assert client.metric("clickmill_requests_total", model="production", code="499") == 1
    assert client.app._requests_at_work == 0


def test_a_fault_of_the_server_is_500_without_the_values(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> Any:
        raise ValueError("secret value")

    monkeypatch.setattr("serving.batching.score_rows", fail)
    reply = client.post_lines("/score", lines(1))
    assert "secret" not in error_of(reply, 500)


@pytest.mark.parametrize("score", [np.nan, -0.1, 1.5, np.inf])
def test_a_score_that_is_no_probability_is_500(
    client: Client, monkeypatch: pytest.MonkeyPatch, score: float
) -> None:
    model = client.app.services["production"].champion.model
    assert model
    monkeypatch.setattr(
        type(model.runtime), "scores", lambda *_: np.full(1, score, dtype=np.float32)
    )
    error_of(client.post_lines("/score", lines(1)), 500)


@pytest.mark.parametrize("request_id", ["a-1", "x" * 128])
def test_the_id_of_a_request_comes_back(client: Client, request_id: str) -> None:
    reply = client.post_lines("/score", lines(1), **{"x-request-id": request_id})
    assert reply.headers["x-request-id"] == request_id


@pytest.mark.parametrize("request_id", ["", "x" * 129, "a\x00b", "ä"])
def test_an_odd_id_of_a_request_is_left_out(client: Client, request_id: str) -> None:
    reply = client.post_lines("/score", lines(1), **{"x-request-id": request_id})
    assert reply.status == 200
    assert "x-request-id" not in reply.headers


def tensors(num_rows: int, seed: int = 2) -> dict[str, Any]:
    """Return the rows of `records` as an inference request."""
    rows = records(num_rows, seed)
    return {
        "id": "7",
        "inputs": [
            {
                "name": name,
                "shape": [num_rows],
                "datatype": "INT64" if name in CRITEO.dense else "BYTES",
                "data": [row[name] for row in rows],
            }
            for name in rows[0]
        ],
    }


def test_the_open_inference_protocol_gives_the_same_scores(client: Client, folder: Path) -> None:
    answer = client.post_json("/v2/models/production/infer", tensors(6))
    assert answer.status == 200
    (output,) = answer.json["outputs"]
    assert (answer.json["model_name"], answer.json["model_version"]) == (
        "production",
        "000000000001",
    )
    assert answer.json["id"] == "7"
    assert (output["name"], output["shape"], output["datatype"]) == ("score", [6], "FP32")
    assert as_float32(output["data"]) == expected_scores(folder, 1, lines(6))


def test_tensors_may_have_a_second_dimension_of_one(client: Client) -> None:
    flat = client.post_json("/v2/models/production/infer", tensors(3))
    request = tensors(3)
    for place, tensor in enumerate(request["inputs"]):
        tensor["shape"] = [3, 1]
        if place % 2:
            tensor["data"] = [[value] for value in tensor["data"]]
    assert client.post_json("/v2/models/production/infer", request).body == flat.body


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"name": None}, "name"),
        ({"name": "x"}, DENSE),
        ({"shape": [2]}, "shape"),
        ({"shape": [3, 2]}, "shape"),
        ({"shape": None}, "shape"),
        ({"datatype": "FP16"}, "datatype"),
        ({"datatype": None}, "datatype"),
        ({"datatype": "INT32", "data": [1, 2**31, 3]}, "row 1"),
        ({"data": [1, 2**63, 3]}, "row 1"),
        ({"data": [1, 2.5, 3]}, "row 1"),
        ({"data": [1, True, 3]}, "row 1"),
        ({"data": [1, "2", 3]}, "row 1"),
        ({"datatype": "BYTES", "data": ["1", 2, "3"]}, "row 1"),
        ({"datatype": "FP32", "data": ["1", 2, "3"]}, "row 0"),
        ({"datatype": "BOOL"}, "row"),
        ({"data": "abc"}, "data"),
        ({"shape": [2], "data": [1, 2]}, "values"),
        ({"name": CRITEO.dense[1]}, "two tensors"),
    ],
)
def test_a_wrong_tensor_is_422_and_named(client: Client, change: dict[str, Any], word: str) -> None:
    request = tensors(3)
    request["inputs"][0] |= {"data": [1, 2, 3], **change}
    assert word in error_of(client.post_json("/v2/models/production/infer", request), 422)


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        {"inputs": {}},
        {"inputs": []},
        {"inputs": [1]},
        {**tensors(1), "outputs": [{}]},
        {**tensors(1), "outputs": 1},
        {**tensors(1), "outputs": {"name": "score"}},
    ],
)
def test_a_wrong_inference_request_is_422(client: Client, value: object) -> None:
    error_of(client.post_json("/v2/models/production/infer", value), 422)


def test_a_malformed_row_of_tensors_is_422_and_named(client: Client) -> None:
    request = tensors(3)
    request["inputs"][0] |= {"datatype": "BYTES", "data": ["1", "seven", "3"]}
    reply = client.post_json("/v2/models/production/infer", request)
    error_of(reply, 422)
    (error,) = reply.json["errors"]
    assert error["row"] == 1
    assert "seven" in error["reason"]


def test_the_protocol_describes_server_and_models(client: Client) -> None:
    assert client.get("/v2").json["name"] == "clickmill"
    described = client.get("/v2/models/production").json
    assert described["versions"] == ["000000000001"]
    names = [tensor["name"] for tensor in described["inputs"]]
    assert names == CRITEO.log_columns(labelled=False)
    assert {tensor["datatype"] for tensor in described["inputs"]} == {"INT64", "BYTES"}


def test_health_and_readiness(client: Client, folder: Path) -> None:
    for path in ("/health", "/v2/health/live"):
        assert client.get(path).status == 200
    for path in ("/ready", "/v2/health/ready"):
        reply = client.get(path)
        assert reply.status == 503
        models = reply.json["models"]
        assert models["production"]["champion"] == {"version": "000000000001", "fault": None}
        assert "3" in models["missing"]["champion"]["fault"]
    with client_of(serve_options({"production": folder / "1.serving"})) as ready:
        assert ready.get("/ready").status == 200


def test_the_metrics_count_requests_rows_and_scores(folder: Path) -> None:
    with client_of(serve_options({"production": folder / "1"})) as client:
        client.post_lines("/score", [*lines(9), BAD_LINE])
        client.post_lines("/score", lines(1))
        client.post_json("/score", {})
        client.get("/nothing")
        for name, labels, value in [
            ("clickmill_requests_total", {"model": "production", "code": "200"}, 2),
            ("clickmill_requests_total", {"model": "production", "code": "422"}, 1),
            ("clickmill_requests_total", {"model": "-", "code": "404"}, 1),
            ("clickmill_rows_total", {"model": "production", "outcome": "scored"}, 10),
            ("clickmill_rows_total", {"model": "production", "outcome": "malformed"}, 1),
            ("clickmill_request_seconds_count", {"model": "production"}, 2),
            ("clickmill_batch_rows_sum", {}, 10),
            ("clickmill_score_count", {"model": "production", "role": "champion"}, 10),
            ("clickmill_model_info", {"version": "000000000001"}, 1),
            ("clickmill_model_loads_total", {"outcome": "loaded"}, 1),
        ]:
            assert client.metric(name, **labels) == value, name
        scores = expected_scores(folder, 1, lines(9)) + expected_scores(folder, 1, lines(1))
        assert client.metric("clickmill_score_sum", role="champion") == pytest.approx(sum(scores))


def test_a_token_is_asked_for_except_by_probes(folder: Path) -> None:
    token = "t" * 32
    options = serve_options({"production": folder / "1"}, token=token)
    with client_of(options) as client:
        wrong_ones = ("", "Bearer no", token, f"Basic {token}", f"Bearer {token} no")
        for wrong in ({}, *({"authorization": one} for one in wrong_ones)):
            reply = client.post_lines("/score", lines(1), **wrong)
            error_of(reply, 401)
            assert reply.headers["www-authenticate"] == "Bearer"
            assert client.get("/metrics", **wrong).status == 401
            assert client.get("/nothing", **wrong).status == 401
            assert client.get("/health", **wrong).status == 200
            assert client.get("/ready", **wrong).json == {"ready": True}
        for scheme in ("Bearer", "bearer"):  # HTTP says that its case does not matter
            right = {"authorization": f"{scheme} {token}"}
            assert client.post_lines("/score", lines(1), **right).status == 200
            assert "models" in client.get("/ready", **right).json
