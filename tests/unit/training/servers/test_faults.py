"""Actors that end during a training with parameter servers."""

import time
from pathlib import Path

import pytest

from common.bundle_layout import HISTORY, MODEL
from common.config.params import Params
from tests.factories.served_runs import (
    Fault,
    FaultyEngine,
    files_of,
    train_on_threads,
    with_servers,
    with_train,
)
from training.loop.checkpoint import checkpoints_of
from training.servers import module, session
from training.servers.session import MAX_LOST, ServersFailed
from training.servers.table_server import TableServer
from training.stage import train

Project = tuple[Path, Params]


def train_with(project: Project, *faults: Fault, staleness: int = 0) -> FaultyEngine:
    """Train on two servers with two workers, some of which end."""
    root, params = project
    engine = FaultyEngine(faults)
    train_on_threads(with_servers(params, 2, 2, staleness=staleness), root, engine)
    return engine


@pytest.fixture(scope="module")
def expected(project: Project) -> dict[str, bytes]:
    """The files of a single device."""
    root, params = project
    train(params, root)
    return files_of(root)


@pytest.mark.parametrize(
    ("target", "method", "after"),
    [
        ("table server", "pull", True),
        ("the dense server", "pull", False),
        ("the coordinator", "take_stretch", True),
        ("the coordinator", "begin_step", True),
        ("table server 0", "push", False),
    ],
)
def test_the_steps_of_a_lost_worker_are_done_by_another(
    project: Project, expected: dict[str, bytes], target: str, method: str, after: bool
) -> None:
    engine = train_with(project, Fault("worker", target, method, 3, "caller", after))
    assert engine.met == 1
    assert files_of(project[0]) == expected


def test_a_push_that_is_repeated_is_applied_once(
    project: Project, expected: dict[str, bytes]
) -> None:
    # Both servers have applied the step when the worker ends before it has heard of that.
    faults = [
        Fault("worker", "the dense server", "push", 4, "caller", True),
        Fault("worker", "the coordinator", "end_step", 9, "caller", False),
    ]
    engine = train_with(project, *faults)
    assert engine.met == 2
    assert files_of(project[0]) == expected


@pytest.mark.parametrize("target", ["table server 1", "the dense server"])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", [1, 9, 14])
def test_a_lost_server_is_replaced_and_the_run_goes_back(
    project: Project, expected: dict[str, bytes], target: str, after: bool, number: int
) -> None:
    engine = train_with(project, Fault("worker", target, "push", number, "target", after))
    assert engine.met == 1
    assert files_of(project[0]) == expected


def test_a_server_that_ends_at_a_barrier_is_replaced(
    project: Project, expected: dict[str, bytes]
) -> None:
    for method in ("barrier", "write", "average_epoch", "reset_rows"):
        engine = train_with(project, Fault("", "table server 0", method, 1, "target", True))
        assert engine.met == 1, method
        assert files_of(project[0]) == expected, method


def test_a_server_that_ends_before_the_training_is_replaced(
    project: Project, expected: dict[str, bytes]
) -> None:
    engine = train_with(project, Fault("", "table server 1", "num_bytes", 1, "target", False))
    assert engine.met == 1
    assert files_of(project[0]) == expected


def test_a_worker_that_ends_while_it_scores_is_replaced(
    project: Project, expected: dict[str, bytes]
) -> None:
    engine = train_with(project, Fault("", "worker", "score", 1, "target", True))
    assert engine.met == 1
    assert files_of(project[0]) == expected


@pytest.mark.parametrize("method", ["begin_step", "end_step", "take_stretch"])
def test_the_end_of_the_coordinator_ends_the_run_which_then_goes_on(
    project: Project, expected: dict[str, bytes], method: str
) -> None:
    with pytest.raises(ServersFailed, match=r"the coordinator was lost.*goes on from its last"):
        train_with(project, Fault("worker", "the coordinator", method, 12, "target", True))
    root, params = project
    assert not (root / MODEL).exists()
    assert checkpoints_of(params, "cpu", root).last()
    train_with(project)
    assert files_of(root) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lost", "target", "method"),
    [
        ("caller", "the coordinator", "end_step"),
        ("caller", "the coordinator", "take_stretch"),
        ("target", "table server 0", "push"),
        ("target", "the dense server", "pull"),
    ],
)
def test_an_actor_that_hangs_is_ended(
    project: Project,
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    lost: str,
    target: str,
    method: str,
) -> None:
    monkeypatch.setattr(session, "STALLED_S", 4.0)
    engine = train_with(project, Fault("worker", target, method, 9, lost, False, hangs=True))
    assert engine.met == 1
    assert files_of(project[0]) == expected


def test_a_server_that_does_not_answer_the_driver_is_replaced(
    project: Project, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "POLL_S", 0.1)
    monkeypatch.setattr(session, "STALLED_S", 3.0)
    monkeypatch.setattr(module, "SEGMENT_S", 0.0)  # so a segment ends at each point of the curve
    calls = [
        ("table server 1", "num_bytes", 1),
        ("table server 0", "barrier", 1),  # when the run goes back
        ("the dense server", "pull", 1),
        ("table server 0", "write", 1),
        ("table server 0", "barrier", 9),  # at the end of a segment
        ("table server 1", "read", 1),
    ]
    faults = [Fault("", *call, "target", False, hangs=True) for call in calls]
    root, params = project
    engine = train_with((root, with_train(params, checkpoint_minutes=1e-6)), *faults)
    assert engine.met == len(faults)
    assert files_of(project[0]) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "method"),
    [
        ("the dense server", "load"),
        ("the dense server", "barrier"),
        ("the dense server", "averages"),
        ("the dense server", "optimizer_state"),
        ("table server 0", "average_epoch"),
        ("table server 0", "reset_rows"),
        ("table server 1", "reset_optimizer"),
        ("table server 1", "load_rows"),
    ],
)
def test_each_call_of_a_server_by_the_driver_ends(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    target: str,
    method: str,
) -> None:
    root, params = project
    monkeypatch.setattr(session, "POLL_S", 0.1)
    monkeypatch.setattr(session, "STALLED_S", 3.0)
    train(params, root)
    (root / MODEL).rename(tmp_path / "before")
    params = with_train(params, warm_start_from=str(tmp_path / "before"))
    train(params, root)
    of_one_device = files_of(root)
    engine = train_with((root, params), Fault("", target, method, 1, "target", False, hangs=True))
    assert engine.met == 1
    assert files_of(root) == of_one_device


def test_a_coordinator_that_does_not_answer_the_driver_ends_the_run(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "STALLED_S", 2.0)
    fault = Fault("", "the coordinator", "begin_segment", 2, "target", False, hangs=True)
    with pytest.raises(ServersFailed, match="the coordinator was lost: it did not answer for 2 s"):
        train_with(project, fault)
    checkpoints_of(project[1], "cpu", project[0]).remove()


def test_a_server_with_more_rows_has_more_time_to_answer(
    project: Project, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It cannot answer while it writes, which is no reason to end it."""
    root, params = project
    monkeypatch.setattr(session, "POLL_S", 0.1)
    monkeypatch.setattr(session, "STALLED_S", 3.0)
    monkeypatch.setattr(session, "SLOWEST_BYTES_PER_S", 1e3)
    write = TableServer.write

    def slow_write(server: TableServer, directory: Path) -> dict[str, int]:
        time.sleep(4.0)
        return write(server, directory)

    monkeypatch.setattr(TableServer, "write", slow_write)
    train_with((root, with_train(params, epochs=1, validations=1, weight_averaging=False)))
    files_of(root)
    assert "is replaced" not in caplog.text


def test_too_many_lost_workers_end_the_run(project: Project) -> None:
    faults = [
        Fault("worker", "table server", "pull", number, "caller", True)
        for number in range(1, MAX_LOST + 2)
    ]
    with pytest.raises(ServersFailed, match=rf"more than {MAX_LOST} actors .*worker: 21"):
        train_with(project, *faults)
    checkpoints_of(project[1], "cpu", project[0]).remove()


def test_with_staleness_lost_workers_and_servers_end_with_a_model(project: Project) -> None:
    faults = [
        Fault("worker", "table server 0", "push", 5, "caller", True),
        Fault("worker", "table server 1", "push", 11, "target", True),
        Fault("worker", "the coordinator", "try_begin_step", 8, "caller", True),
    ]
    root, params = project
    engine = train_with((root, with_train(params, batch_size=32)), *faults, staleness=3)
    assert engine.met == len(faults)
    history = files_of(root)[HISTORY].decode().splitlines()
    assert history[-1].startswith("114,valid,0.")
