"""`clickmill serve` as an operator runs it: swaps and kills under load, faults, stops."""

import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from serving.batching import score_rows
from serving.options import COPY_PREFIX, MAX_CONNECTIONS
from serving.served_model import load_model
from serving.serving_bundle import find_serving_bundle
from serving.worker import FILES_OF_MODELS
from tests.factories.models import log_lines
from tests.factories.running_server import LINES, Load, RunningServer, running_server
from tests.factories.serving_bundles import copy_of, served_project
from tests.factories.support import CRITEO, ROOT, still_running, wait_for
from tests.factories.tiny_serving_bundles import (
    lines,
    record_of,
    records,
    write_serving_bundle,
)
from training.inference.predict import predict

pytestmark = pytest.mark.slow

VERSIONS = {f"{seed:012x}": seed for seed in (1, 2)}
NUM_BODIES = 20
JSON = {"content-type": "application/json"}
MALFORMED: list[tuple[bytes, dict[str, str]]] = [
    (b"{", JSON),
    (b'{"rows": [{"a": NaN}]}', JSON),
    (b"[" * 100_000, JSON),
    (json.dumps({"rows": [{**records(1)[0], "I1": 10**40}]}).encode(), JSON),
    (json.dumps({"rows": [{}]}).encode(), JSON),
    (b"\xff\x00\n", LINES),
    (b"x" * (9 << 20), LINES),
    (b"x\n" * 5000, LINES),
    (b"x", {"content-type": "image/png"}),
]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Two bundles with their serving bundles, a damaged third one, and the link production."""
    for seed in (1, 2, 3):
        (tmp_path / f"{seed}").mkdir()
        write_serving_bundle(tmp_path / f"{seed}.serving", seed)
    (tmp_path / "3.serving" / "model.onnx").write_bytes(b"damaged")
    point(tmp_path, 1)
    return tmp_path


def point(models: Path, seed: int) -> None:
    new = models / "new"
    new.symlink_to(f"{seed}")
    new.replace(models / "production")


def bodies() -> list[tuple[bytes, dict[str, str]]]:
    """Return requests of 1, 2, ... rows, as lines and as JSON."""
    made = []
    for number in range(NUM_BODIES):
        if number % 2:
            body = json.dumps({"rows": records(1 + number, number + 2)}).encode()
            made.append((body, JSON))
        else:
            made.append(("\n".join(lines(1 + number, number + 2)).encode(), LINES))
    return made


def right_scores(models: Path) -> dict[tuple[str, int], list[float]]:
    """Return the scores of each of `bodies` by each version, as the runtime computes them."""
    right = {}
    for version, seed in VERSIONS.items():
        model = load_model(models / f"{seed}.serving")
        for number in range(NUM_BODIES):
            body = "\n".join(lines(1 + number, number + 2)).encode()
            scores = score_rows(model, [model.encoder.encode_lines(body)])
            right[version, number] = [float(score) for score in scores]
    return right


def matches(right: dict[tuple[str, int], list[float]], number: int, answer: Any) -> bool:
    scores = [float(np.float32(score)) for score in answer["scores"]]
    return answer["errors"] == [] and scores == right[answer["version"], number]


def serve_models(models: Path) -> list[str]:
    return ["--model", f"production={models / 'production'}"]


def champion_of(server: RunningServer) -> Any:
    """Return the version that a worker serves, and the fault of the one that it could not load."""
    return server.request("GET", "/ready")[1]["models"]["production"]["champion"]


def num_answers(server: RunningServer) -> float:
    """Return how many requests with scores all workers together have counted."""
    total = 'clickmill_requests_total{code="200",model="production"}'
    lines = server.request("GET", "/metrics")[1].splitlines()
    (line,) = [line for line in lines if line.startswith(total)]
    return float(line.split()[-1])


def test_promotions_and_rollbacks_under_load_lose_no_request(models: Path) -> None:
    right = right_scores(models)
    with running_server(models, *serve_models(models), "--workers", "2") as server:
        with Load(server, bodies(), lambda n, s, a: s == 200 and matches(right, n, a)) as load:
            for seed in (2, 1, 3, 2, 1, 2):
                time.sleep(1.5)
                point(models, seed)
            time.sleep(2)
        assert load.wrong == []
        assert set(load.outcomes) == {"200"}
        assert min(load.versions[version] for version in VERSIONS) > 20
        champion = {"version": f"{2:012x}", "fault": None}
        wait_for(lambda: champion_of(server) == champion, 10)
        # A worker counts a request after it has sent the answer.
        wait_for(lambda: num_answers(server) == load.outcomes["200"], 10)
        assert server.stop() == 0


def test_kills_faults_and_malformed_requests_give_no_wrong_answer(models: Path) -> None:
    right = right_scores(models)
    requests = bodies() + MALFORMED

    def is_right(number: int, status: int, answer: Any) -> bool:
        if number < NUM_BODIES:
            return status == 503 or (status == 200 and matches(right, number, answer))
        if status == 200:
            return answer["scores"] == [None] and len(answer["errors"]) == 1
        return (400 <= status < 500 or status == 503) and bool(answer["error"])

    with running_server(models, *serve_models(models), "--workers", "2") as server:
        with Load(server, requests, is_right) as load:
            for seed in (2, 3, 1, 2, 3, 1):
                time.sleep(1)
                point(models, seed)
                victim = server.workers()[seed % 2]
                victim.kill()
                wait_for(lambda: len(server.workers()) == 2, 30)
                time.sleep(1)
        assert load.wrong == []
        assert load.outcomes["200"] > 20
        for status in ("400", "413", "415", "422"):
            assert load.outcomes[status] > 5
        wait_for(server.is_ready, 30)
        assert sum("exited with -9" in line["message"] for line in messages(server)) == 6
        assert server.stop() == 0


def messages(server: RunningServer) -> list[dict[str, Any]]:
    return [line for line in server.log if "message" in line]


def test_scores_over_http_are_those_of_the_runtime_in_any_grouping(models: Path) -> None:
    model = load_model(models / "1.serving")
    rows = lines(300)
    whole = score_rows(model, [model.encoder.encode_lines("\n".join(rows).encode())])
    expected = [float(score) for score in whole]
    with running_server(models, *serve_models(models)) as server:
        for size in (1, 3, 17, 300):
            got: list[float] = []
            for begin in range(0, len(rows), size):
                scores = server.score(rows[begin : begin + size])["scores"]
                got += [float(np.float32(score)) for score in scores]
            assert got == expected


def test_a_stop_under_load_answers_what_it_accepted(models: Path) -> None:
    right = right_scores(models)
    with running_server(models, *serve_models(models), "--workers", "2") as server:
        with Load(server, bodies(), lambda n, s, a: s == 200 and matches(right, n, a)) as load:
            time.sleep(2)
            begin_s = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - begin_s < 10
            time.sleep(0.3)
        assert load.wrong == []
        # The kernel resets a connection that no worker has accepted before the socket was closed.
        assert not [each for each in load.outcomes if each.startswith("broken")]
        assert set(load.outcomes) >= {"200"}
        assert load.outcomes["200"] > 20
    assert list((models / "tmp").iterdir()) == []


def test_the_access_log_has_each_request_and_no_values(models: Path) -> None:
    with running_server(models, *serve_models(models)) as server:
        line = lines(1)[0]
        body = f"{line}\n".encode()
        server.request("POST", "/score", body, {**LINES, "x-request-id": "abc"})
        server.request("POST", "/score", b"{", JSON)
        assert server.stop() == 0
        served = [line for line in server.log if line.get("path") == "/score"]
        assert [each["status"] for each in served] == [200, 400]
        assert served[0]["request_id"] == "abc"
        assert (served[0]["rows"], served[0]["version"]) == (1, f"{1:012x}")
        values = [value for value in line.split("\t") if len(value) == 8]
        assert values
        assert not any(value in server.output.read_text() for value in values)


def test_no_worker_survives_a_server_that_is_killed(models: Path) -> None:
    with running_server(models, *serve_models(models), "--workers", "2") as server:
        workers = server.workers()
        assert len(workers) == 2
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        assert still_running(workers, 5) == []


def test_a_worker_that_is_killed_leaves_no_copy_of_a_model(models: Path) -> None:
    with running_server(models, *serve_models(models)) as server:
        (worker,) = server.workers()
        copy = models / "tmp" / f"{COPY_PREFIX}{worker.pid}-abc"  # as if it were loading a model
        copy.mkdir()
        worker.kill()
        wait_for(lambda: not copy.exists(), 30)


def test_a_server_starts_before_its_first_model(models: Path) -> None:
    (models / "production").unlink()
    with running_server(models, *serve_models(models), ready=False) as server:
        wait_for(lambda: answers(server), 60)
        assert server.request("GET", "/ready")[0] == 503
        assert server.request("POST", "/score", b"x", LINES)[0] == 503
        point(models, 2)
        wait_for(server.is_ready, 10)
        assert server.score(lines(1))["version"] == f"{2:012x}"


def answers(server: RunningServer) -> bool:
    try:
        return server.request("GET", "/health")[0] == 200
    except OSError:
        return False


def test_ten_thousand_connections_take_bounded_memory(models: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < MAX_CONNECTIONS + 1000:
        pytest.skip(f"this machine allows {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    clients = []
    try:
        with running_server(models, *serve_models(models)) as server:
            (worker,) = server.workers()
            before = worker.memory_info().rss
            for _ in range(MAX_CONNECTIONS):
                client = socket.create_connection(("127.0.0.1", server.port), timeout=30)
                client.sendall(b"POST /score HTTP/1.1\r\nhost: x\r\ncontent-type: text/plain\r\n")
                clients.append(client)
            grown = worker.memory_info().rss - before
            assert grown < 400 << 20
            del clients[:100]
            wait_for(lambda: answers(server), 10)
            assert server.score(lines(1))["version"] == f"{1:012x}"
    finally:
        for client in clients:
            client.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_swap_succeeds_while_clients_hold_all_connections(models: Path) -> None:
    with running_server(models, *serve_models(models), files=400) as server:
        clients = []
        for _ in range(400 - FILES_OF_MODELS + 20):
            client = socket.create_connection(("127.0.0.1", server.port), timeout=30)
            clients.append(client)
        assert b"503" in clients[-1].recv(100)
        point(models, 2)
        wait_for(lambda: f"{2:012x} is loaded" in server.output.read_text(), 20)
        for client in clients:
            client.close()
        wait_for(lambda: answers(server), 10)
        assert server.score(lines(1))["version"] == f"{2:012x}"


def test_the_command_imports_no_torch_prefect_or_dvc(tmp_path: Path) -> None:
    """It must also start in an image without them: importing them fails here."""
    blocked = tmp_path / "blocked"
    for name in ("torch", "prefect", "dvc", "pytorch_lightning", "onnx", "fastapi", "starlette"):
        (blocked / name).mkdir(parents=True)
        (blocked / name / "__init__.py").write_text(f"raise ImportError('{name} is blocked')")
    write_serving_bundle(tmp_path / "1.serving", 1)
    path = os.pathsep.join([str(blocked), str(ROOT)])
    code = "from flows.cli.main import app; app()"
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-c", code, "serve", "--model", "m=1", "--port", str(port)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    server = RunningServer(process, port, tmp_path)  # type: ignore[arg-type]
    try:
        wait_for(lambda: server.is_ready() or process.poll() is not None, 60)
        assert process.poll() is None
        assert server.score(lines(1))["model"] == "m"
    finally:
        process.kill()
        process.wait()


def test_a_bundle_may_be_copied_over_the_one_that_is_served(models: Path) -> None:
    """`cp` writes into the files in their place, so they are half old and half new for a while."""
    right = right_scores(models)
    (models / "production").unlink()
    shutil.copytree(models / "1.serving", models / "production.serving")
    (models / "production").mkdir()
    with running_server(models, *serve_models(models)) as server:
        with Load(server, bodies(), lambda n, s, a: s == 200 and matches(right, n, a)) as load:
            for seed in (2, 1, 2):
                time.sleep(1.5)
                for file in sorted((models / f"{seed}.serving").rglob("*")):
                    if file.is_file():
                        name = file.relative_to(models / f"{seed}.serving")
                        shutil.copyfile(file, models / "production.serving" / name)
                        time.sleep(0.03)
            time.sleep(2.5)
        assert load.wrong == []
        assert set(load.outcomes) == {"200"}
        assert set(load.versions) == set(VERSIONS)


def test_memory_does_not_grow_with_swaps(models: Path) -> None:
    with running_server(models, *serve_models(models)) as server:
        (worker,) = server.workers()
        sizes = []
        for seed in (2, 1, 2, 1, 2, 1):
            point(models, seed)
            wait_for(lambda seed=seed: server.score(lines(1))["version"] == f"{seed:012x}", 10)
            sizes.append(worker.memory_info().rss)
        assert sizes[-1] - sizes[1] < 30 << 20


def test_the_examples_of_the_guide(models: Path) -> None:
    guide = (ROOT / "docs" / "guides" / "serving.md").read_text()
    commands = [
        line.removeprefix("$ ")
        for block in re.findall(r"<!-- tested -->\n+```console\n(.*?)```", guide, re.DOTALL)
        for line in block.splitlines()
        if line.startswith("$ ")
    ]
    assert len(commands) == 4
    rows = records(2)
    (models / "rows.tsv").write_text("\n".join(lines(2)) + "\n")
    (models / "rows.json").write_text(json.dumps({"rows": rows}))
    tensors = [
        {
            "name": name,
            "shape": [2],
            "datatype": "INT64" if name in CRITEO.dense else "BYTES",
            "data": [row[name] for row in rows],
        }
        for name in rows[0]
    ]
    (models / "tensors.json").write_text(json.dumps({"inputs": tensors}))
    with running_server(models, *serve_models(models)) as server:
        scores = server.score(lines(2))["scores"]
        for command in commands:
            answer = subprocess.run(
                command.replace(":8000", f":{server.port}").replace(
                    "curl ", "curl --silent --show-error --noproxy '*' "
                ),
                shell=True,
                cwd=models,
                capture_output=True,
                text=True,
            )
            assert answer.returncode == 0, f"{command}: {answer.stderr}"
            got = json.loads(answer.stdout)
            if "outputs" in got and "data" in got["outputs"][0]:
                assert got["outputs"][0]["data"] == scores
            elif "scores" in got:
                assert got["scores"] == scores


def test_an_exported_model_has_the_scores_of_predict(tmp_path: Path) -> None:
    """Lines and JSON, over HTTP, in any grouping: the bits of the runtime, and predict to 1e-6."""
    project = copy_of(served_project(), tmp_path / "project")
    production = project.root / "artifacts" / "production"
    shutil.copytree(project.model, project.root / "models" / "1")
    shutil.copytree(project.serving, project.root / "models" / "1.serving")
    production.symlink_to("../models/1")
    rows = [row.split("\t", 1)[1] for row in log_lines(120, 5)]
    (tmp_path / "new.tsv").write_text("\n".join(rows) + "\n")
    predict(project.model, [tmp_path / "new.tsv"], tmp_path / "scores.parquet")
    predicted = pl.read_parquet(tmp_path / "scores.parquet")["score"].to_numpy()
    model = load_model(find_serving_bundle(production))
    whole = score_rows(model, [model.encoder.encode_lines("\n".join(rows).encode())])
    with running_server(project.root) as server:
        for size in (1, 7, 120):
            of_lines, of_json = [], []
            for begin in range(0, len(rows), size):
                part = rows[begin : begin + size]
                of_lines += server.score(part)["scores"]
                body = json.dumps({"rows": [record_of(row) for row in part]}).encode()
                status, answer = server.request("POST", "/score", body, JSON)
                assert status == 200
                of_json += answer["scores"]
            assert of_json == of_lines
            assert (np.float32(of_lines) == whole).all()
            assert np.abs(np.float32(of_lines) - predicted).max() <= 1e-6
        assert server.score(rows[:1])["version"] == model.version
