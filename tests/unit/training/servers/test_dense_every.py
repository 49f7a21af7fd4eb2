"""Dense layers that workers exchange now and then."""

from pathlib import Path

from common.bundle_layout import HISTORY
from common.config.params import Params
from tests.factories.served_runs import (
    Fault,
    FaultyEngine,
    files_of,
    train_on_threads,
    with_servers,
    with_train,
)
from training.stage import train

Project = tuple[Path, Params]


def losses_of(history: bytes) -> list[float]:
    """Return the loss of each point of a training curve."""
    return [float(line.split(",")[2]) for line in history.decode().splitlines()[1:]]


def test_one_worker_learns_what_a_single_device_learns(project: Project) -> None:
    root, params = project
    params = with_train(params, weight_averaging=False, batch_size=64)
    train(params, root)
    expected = losses_of(files_of(root)[HISTORY])
    train_on_threads(with_servers(params, 2, 1, dense_every=4), root)
    found = losses_of(files_of(root)[HISTORY])
    # the progress is added to the server's weights, which rounds once more
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < 1e-4
    assert expected[-1] != expected[0]


def test_a_worker_without_a_step_in_a_segment_has_no_part_in_the_optimizer(
    project: Project,
) -> None:
    root, params = project
    params = with_train(params, weight_averaging=False)  # the first segment is one step
    train_on_threads(with_servers(params, 2, 2, dense_every=4, staleness=3), root)
    assert losses_of(files_of(root)[HISTORY])[-1] < 0.8


def test_two_workers_learn_and_a_lost_one_is_replaced(project: Project) -> None:
    root, params = project
    params = with_train(params, weight_averaging=False, batch_size=32)
    params = with_servers(params, 2, 2, dense_every=4, staleness=3)
    faults = [
        Fault("worker", "the dense server", "synchronise", 3, "caller", True),
        Fault("worker", "the dense server", "add_state", 2, "caller", False),
        Fault("worker", "the dense server", "synchronise", 9, "target", True),
    ]
    engine = FaultyEngine(faults)
    train_on_threads(params, root, engine)
    assert engine.met == len(faults)
    assert losses_of(files_of(root)[HISTORY])[-1] < 0.8
