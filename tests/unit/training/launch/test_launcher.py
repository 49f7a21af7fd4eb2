"""The data that the nodes of a training exchange, tested in one process.

tests/e2e/test_nodes.py trains on two nodes.
"""

import errno
import os
import socket
from pathlib import Path

import pytest

from common.config.loading import ConfigError
from common.files import DataError
from common.layout import NIGHTLY_CLONE
from tests.factories.features import training_params, write_features
from training.distributed.device import pick_accelerator
from training.launch.failure_reports import (
    USER_ERRORS,
    FailureReport,
    explain,
    read_reports,
    report_error,
    write_report,
)
from training.launch.launcher import (
    RENDEZVOUS_FILE,
    Rendezvous,
    apply_environment,
    check_same_run,
    choose_endpoint,
    find_rendezvous,
    is_reachable,
    read_rendezvous,
    torchrun_arguments,
)
from training.loop.checkpoint import run_key


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with features."""
    write_features(tmp_path, {"train": [60], "valid": [10], "test": [0]})
    return tmp_path


def make_rendezvous(root: Path, **changes: object) -> Rendezvous:
    """Return a rendezvous of three nodes; `changes` replace its values."""
    params = training_params(devices=2, nodes=3)
    values = {
        "id": f"{run_key(params, 'cpu', root)}-0123abcd",
        "endpoint": "10.0.0.1:29400",
        "accelerator": "cpu",
    }
    return Rendezvous(**{**values, "params": params, **changes})  # type: ignore[arg-type]


def test_job_variables_replace_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    params = training_params(devices=2)
    assert apply_environment(params) == params
    monkeypatch.setenv("PET_NNODES", "3")
    train = apply_environment(params).train
    assert (train.nodes, train.devices, train.num_ranks) == (3, 2, 6)
    monkeypatch.setenv("PET_NPROC_PER_NODE", "8")
    assert apply_environment(params).train.num_ranks == 24


@pytest.mark.parametrize("value", ["gpu", "0", "1:2", ""])
def test_a_wrong_job_variable_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("PET_NNODES", value)
    message = f"^PET_NNODES is '{value}' in the environment; expected .*, for train.nodes$"
    with pytest.raises(ConfigError, match=message):
        apply_environment(training_params(devices=2))


def test_the_endpoint_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PET_RDZV_ENDPOINT", "node-0:1234")
    assert choose_endpoint() == "node-0:1234"
    monkeypatch.setenv("PET_RDZV_ENDPOINT", "node-0")
    message = "PET_RDZV_ENDPOINT is 'node-0' in the environment; expected HOST:PORT"
    with pytest.raises(ConfigError, match=message):
        choose_endpoint()


def test_without_the_variable_an_address_and_a_free_port_are_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PET_RDZV_ENDPOINT", raising=False)
    connect = socket.socket.connect
    monkeypatch.setattr(  # the loopback device is the only network
        socket.socket, "connect", lambda self, address: connect(self, ("127.0.0.1", address[1]))
    )
    host, port = choose_endpoint().split(":")
    assert host == "127.0.0.1"
    with socket.create_server((host, int(port))):
        pass


def test_without_network_the_error_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", unreachable)
    message = r"no network \(Network is unreachable\); set PET_RDZV_ENDPOINT=HOST:PORT"
    with pytest.raises(ConnectionError, match=message):
        choose_endpoint()


@pytest.mark.parametrize("host", ["10.0.0.1", "zeta.example.org", "[fe80::1]"])
def test_the_first_node_has_the_first_rank(root: Path, host: str) -> None:
    """Torchrun sorts the nodes by their --local-addr."""
    rendezvous = make_rendezvous(root, endpoint=f"{host}:1")
    first, other = (
        next(
            argument
            for argument in torchrun_arguments(rendezvous, is_first=is_first)
            if argument.startswith("--local-addr=")
        )
        for is_first in (True, False)
    )
    assert first == f"--local-addr={host}"
    assert first < other


def test_a_rendezvous_is_found_in_the_root_and_in_the_nightly_clone(root: Path) -> None:
    rendezvous = make_rendezvous(root)
    path = root / RENDEZVOUS_FILE
    assert read_rendezvous(path) is None
    path.parent.mkdir(parents=True)
    path.write_text(rendezvous.model_dump_json(by_alias=True))
    assert read_rendezvous(path) == rendezvous
    assert list(find_rendezvous(root)) == [(rendezvous, root)]
    clone = root / NIGHTLY_CLONE
    (clone / RENDEZVOUS_FILE).parent.mkdir(parents=True)
    path.rename(clone / RENDEZVOUS_FILE)
    assert list(find_rendezvous(root)) == [(rendezvous, clone)]


def test_a_broken_rendezvous_file_is_ignored(root: Path) -> None:
    rendezvous = make_rendezvous(root)
    text = rendezvous.model_dump_json(by_alias=True)
    path = root / RENDEZVOUS_FILE
    path.parent.mkdir(parents=True)
    for broken in (
        text[:-9],
        text.replace('"nodes"', '"knots"'),
        text.replace(rendezvous.id, "../../home"),
        text.replace(":29400", ""),
        "",
    ):
        path.write_text(broken)
        assert read_rendezvous(path) is None


def test_a_node_is_reachable_while_its_agent_listens(root: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"127.0.0.1:{server.getsockname()[1]}"
        rendezvous = make_rendezvous(root, endpoint=endpoint)
        assert is_reachable(rendezvous)
    assert not is_reachable(rendezvous)


def test_a_node_with_other_code_or_devices_refuses_to_join(root: Path) -> None:
    check_same_run(make_rendezvous(root), root)
    message = (
        r"has other code, features, .* \(run [0-9a-f]{16}, there 0{16}\);"
        " give all nodes one folder and one image"
    )
    with pytest.raises(ConfigError, match=message):
        check_same_run(make_rendezvous(root, id=f"{0:016}-0123abcd"), root)
    message = "would train on cpu, but the first node does on gpu; give all nodes the same"
    with pytest.raises(ConfigError, match=message):
        check_same_run(make_rendezvous(root, accelerator="gpu"), root)


def explain_reports(directory: Path) -> str:
    """Return the message of a failed run of three ranks."""
    return explain(read_reports(directory, of_other_nodes=False), 3)


def test_a_full_disk_of_a_rank_is_named_before_what_follows_from_it(tmp_path: Path) -> None:
    report_error(tmp_path, "rank 1", RuntimeError("Connection closed by peer"))
    failure = OSError(errno.ENOSPC, "No space left on device", "/data/last.pt")
    report_error(tmp_path, "rank 0", failure)
    first, second = read_reports(tmp_path, of_other_nodes=False)
    assert (first.kind, first.source, second.kind) == ("disk", "rank 0", "failed")
    error = USER_ERRORS[first.kind](first.text)
    assert str(error) == (
        "No space left on device: /data/last.pt; free space on that disk, then run the command again"
    )


def test_the_cause_is_named_before_its_consequences(tmp_path: Path) -> None:
    """Ranks that lose the connection to a failed rank fail too, and often report an error first."""
    try:
        raise RuntimeError("Connection closed by peer")
    except RuntimeError as error:
        report_error(tmp_path, "rank 0", error)
    host = socket.gethostname()
    message = explain_reports(tmp_path)
    assert message.startswith(f"training on 3 ranks failed: rank 0 on {host}:\n")
    assert 'raise RuntimeError("Connection closed by peer")' in message
    assert message.endswith(
        "RuntimeError: Connection closed by peer\n"
        "no report of rank 1, rank 2: hung, or gone with its node"
    )

    write_report(tmp_path, "failed", "rank 2", "written later")
    os.utime(tmp_path / "rank_2.json", ns=(0, 0))  # as if it were the first report
    assert explain_reports(tmp_path) == (
        f"training on 3 ranks failed: rank 2 on {host}: written later\n"
        "no report of rank 1: hung, or gone with its node"
    )

    write_report(tmp_path, "killed", "rank 1", "killed by SIGKILL")
    write_report(tmp_path, "failed", "rank 1", "a second report of a rank is ignored")
    assert explain_reports(tmp_path) == (
        f"training on 3 ranks failed: rank 1 on {host}: killed by SIGKILL"
    )

    report_error(tmp_path, "node other", DataError("file.parquet: gone"))
    first = read_reports(tmp_path, of_other_nodes=False)[0]
    assert first == FailureReport("data", "node other", host, "file.parquet: gone")
    report_error(tmp_path, "node another", ConfigError("params.yaml: no"))
    kinds = [report.kind for report in read_reports(tmp_path, of_other_nodes=False)]
    assert kinds == ["data", "set-up", "killed", "failed", "failed"]


@pytest.mark.parametrize(
    "damaged",
    ["", "null", "[]", "{}", '{"kind": [], "source": "rank 0", "host": "a", "text": "b"}', "\0"],
)
def test_a_damaged_report_is_left_out(tmp_path: Path, damaged: str) -> None:
    write_report(tmp_path, "killed", "rank 1", "SIGKILL")
    (tmp_path / "rank_0.json").write_text(damaged)
    assert [report.source for report in read_reports(tmp_path, of_other_nodes=False)] == ["rank 1"]


def test_a_run_without_reports_is_explained_too() -> None:
    assert explain([], 2) == "training on 2 ranks failed, and no rank reported why"


def test_more_ranks_than_the_cpus_can_run_are_refused() -> None:
    max_ranks = 4 * (os.cpu_count() or 1)
    assert pick_accelerator(training_params(devices=max_ranks).train) == "cpu"
    message = (
        rf"train\.devices is {max_ranks + 1}, but the CPUs of this machine can run"
        f" {max_ranks} ranks at most"
    )
    with pytest.raises(ConfigError, match=message):
        pick_accelerator(training_params(devices=max_ranks + 1).train)
