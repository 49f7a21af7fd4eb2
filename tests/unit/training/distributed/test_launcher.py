"""What nodes tell each other, without nodes; two real ones are in tests/e2e/test_nodes.py."""

import os
import socket
from pathlib import Path

import pytest

from common.config.loading import ConfigError
from common.files import DataError
from flows.nightly.clone import CLONE
from tests.factories.features import make_params, write_features
from training.distributed.device import pick_accelerator
from training.distributed.failure_reports import Note, explain, leave_error, leave_note, read_notes
from training.distributed.launcher import (
    CALL,
    NIGHT,
    Call,
    answers,
    as_deployed,
    calls,
    check_alike,
    free_endpoint,
    read_call,
    where,
)
from training.loop.checkpoint import run_key


def call_of(root: Path, **changes: object) -> Call:
    params = make_params(devices=2, nodes=3)
    values = {
        "id": f"{run_key(params, 'cpu', root)}-0123abcd",
        "endpoint": "10.0.0.1:29400",
        "accelerator": "cpu",
    }
    return Call(**{**values, "params": params, **changes})  # type: ignore[arg-type]


def test_job_variables_go_before_params(monkeypatch: pytest.MonkeyPatch) -> None:
    params = make_params(devices=2)
    assert as_deployed(params) == params
    monkeypatch.setenv("PET_NNODES", "3")
    assert (
        as_deployed(params).train.nodes,
        as_deployed(params).train.devices,
        as_deployed(params).train.num_ranks,
    ) == (3, 2, 6)
    monkeypatch.setenv("PET_NPROC_PER_NODE", "8")
    assert as_deployed(params).train.num_ranks == 24
    for wrong in ("gpu", "0", "1:2", ""):
        monkeypatch.setenv("PET_NNODES", wrong)
        with pytest.raises(
            ConfigError,
            match=f"^PET_NNODES is '{wrong}' in the environment; a number expected, for train.nodes$",
        ):
            as_deployed(params)


def test_an_endpoint_is_given_or_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PET_RDZV_ENDPOINT", "node-0:1234")
    assert free_endpoint() == "node-0:1234"
    monkeypatch.setenv("PET_RDZV_ENDPOINT", "node-0")
    with pytest.raises(
        ConfigError, match="PET_RDZV_ENDPOINT is 'node-0' in the environment; HOST:PORT"
    ):
        free_endpoint()
    monkeypatch.delenv("PET_RDZV_ENDPOINT")
    connect = socket.socket.connect
    monkeypatch.setattr(
        socket.socket, "connect", lambda self, address: connect(self, ("127.0.0.1", address[1]))
    )  # the only network is this
    host, port = free_endpoint().split(":")
    assert host == "127.0.0.1"
    with socket.create_server((host, int(port))):
        pass


def test_a_machine_without_network_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", unreachable)
    with pytest.raises(
        ConnectionError,
        match=r"no network \(Network is unreachable\); set PET_RDZV_ENDPOINT=HOST:PORT",
    ):
        free_endpoint()


def test_the_first_node_comes_first(tmp_path: Path) -> None:
    """torchrun sorts the nodes by these names."""
    write_features(tmp_path, {"train": [60], "valid": [10], "test": [0]})
    call = call_of(tmp_path)
    names = [
        next(word for word in where(call, first=first) if word.startswith("--local-addr="))
        for first in (True, False)
    ]
    assert names == sorted(names)
    assert names[0] == "--local-addr=10.0.0.1"
    for host in ("zeta.example.org", "[fe80::1]"):
        first, other = (
            next(w for w in where(call_of(tmp_path, endpoint=f"{host}:1"), first=f) if "addr" in w)
            for f in (True, False)
        )
        assert first < other


def test_a_call_arrives_whole_or_not(tmp_path: Path) -> None:
    write_features(tmp_path, {"train": [60], "valid": [10], "test": [0]})
    call = call_of(tmp_path)
    path = tmp_path / CALL
    assert read_call(path) is None
    path.parent.mkdir(parents=True)
    text = call.model_dump_json(by_alias=True)
    path.write_text(text)
    assert read_call(path) == call
    assert list(calls(tmp_path)) == [(call, tmp_path)]
    (tmp_path / NIGHT / CALL).parent.mkdir(parents=True)
    path.rename(tmp_path / NIGHT / CALL)
    assert list(calls(tmp_path)) == [(call, tmp_path / NIGHT)]
    assert NIGHT == CLONE
    for broken in (
        text[:-9],
        text.replace('"nodes"', '"knots"'),
        text.replace(call.id, "../../home"),
        text.replace(":29400", ""),
        "",
    ):
        path.write_text(broken)
        assert read_call(path) is None


def test_a_call_that_nobody_answers_to_is_passed_over(tmp_path: Path) -> None:
    write_features(tmp_path, {"train": [60], "valid": [10], "test": [0]})
    with socket.create_server(("127.0.0.1", 0)) as server:
        call = call_of(tmp_path, endpoint=f"127.0.0.1:{server.getsockname()[1]}")
        assert answers(call)
    assert not answers(call)


def test_a_node_that_is_not_alike_refuses(tmp_path: Path) -> None:
    write_features(tmp_path, {"train": [60], "valid": [10], "test": [0]})
    check_alike(call_of(tmp_path), tmp_path)
    with pytest.raises(
        ConfigError,
        match=r"has other code, features, .* \(run [0-9a-f]{16}, there 0{16}\); give all nodes one folder",
    ):
        check_alike(call_of(tmp_path, id=f"{0:016}-0123abcd"), tmp_path)
    with pytest.raises(
        ConfigError,
        match="would train on cpu, but the first node does on gpu; give all nodes the same",
    ):
        check_alike(call_of(tmp_path, accelerator="gpu"), tmp_path)


def test_the_cause_goes_before_what_it_entails(tmp_path: Path) -> None:
    """Ranks that lost their peer fail, and often say so first."""
    try:
        raise RuntimeError("Connection closed by peer")
    except RuntimeError as error:
        leave_error(tmp_path, "rank 0", error)
    host = socket.gethostname()
    notes = read_notes(tmp_path, of_other_nodes=False)
    message = explain(notes, 3)
    assert message.startswith(f"training on 3 ranks failed: rank 0 on {host}:\n")
    assert (
        "RuntimeError: Connection closed by peer\nnothing was heard of rank 1, rank 2: hung, or gone with its node"
        in message
    )
    assert 'raise RuntimeError("Connection closed by peer")' in message  # its own last lines

    leave_note(tmp_path, "failed", "rank 2", "later")
    os.utime(tmp_path / "rank_2.json", ns=(0, 0))  # but it was the first
    assert explain(read_notes(tmp_path, of_other_nodes=False), 3) == (
        f"training on 3 ranks failed: rank 2 on {host}: later\nnothing was heard of rank 1: hung, or gone with its node"
    )

    leave_note(tmp_path, "killed", "rank 1", "killed by SIGKILL")
    leave_note(tmp_path, "failed", "rank 1", "a second word of it does not count")
    assert (
        explain(read_notes(tmp_path, of_other_nodes=False), 3)
        == f"training on 3 ranks failed: rank 1 on {host}: killed by SIGKILL"
    )

    leave_error(tmp_path, "node other", DataError("file.parquet: gone"))
    assert read_notes(tmp_path, of_other_nodes=False)[0] == Note(
        "data", "node other", host, "file.parquet: gone"
    )
    leave_error(tmp_path, "node another", ConfigError("params.yaml: no"))
    assert [note.kind for note in read_notes(tmp_path, of_other_nodes=False)] == [
        "data",
        "set-up",
        "killed",
        "failed",
        "failed",
    ]
    assert explain([], 2) == "training on 2 ranks failed, and none of them said why"


def test_no_more_ranks_than_a_machine_bears() -> None:
    most = 4 * (os.cpu_count() or 1)
    assert pick_accelerator(make_params(devices=most).train) == "cpu"
    with pytest.raises(
        ConfigError,
        match=rf"train\.devices is {most + 1}, but this machine's CPUs bear no more than {most} ranks",
    ):
        pick_accelerator(make_params(devices=most + 1).train)
