"""Dense layers that workers exchange now and then."""

from pathlib import Path

import numpy as np
import pytest

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
from training.loop.weight_averaging import ETA
from training.servers.dense_server import DenseServer, Floats
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


def test_weights_are_averaged_as_if_each_step_had_led_to_those_of_the_exchange(
    project: Project,
) -> None:
    root, params = project
    params = with_servers(with_train(params, weight_averaging=True), 1, 2, dense_every=3)
    server = DenseServer(params, root, steps_per_epoch=10, num_steps=20)
    weights = server.pull(None)
    server.load(weights, weights, [])
    server.begin_segment(10)  # the first step of the second epoch
    progress = np.random.default_rng(1).normal(size=weights.shape).astype(np.float32)
    averages, step = weights, 0
    for number, (worker, num_steps) in enumerate([(0, 3), (1, 3), (0, 2), (1, 0)]):
        weights = server.synchronise(worker, number, num_steps, progress)
        for _ in range(num_steps):
            averages = averages + (weights - averages) * np.float32((ETA + 1) / (step + ETA + 1))
            step += 1
    assert_close(server.averages(), averages)
    server.synchronise(0, 2, 2, progress)  # again: nothing is added
    assert_close(server.averages(), averages)
    server.begin_segment(18)
    weights = server.synchronise(0, 5, 1, progress)
    averages = averages + (weights - averages) * np.float32((ETA + 1) / (8 + ETA + 1))
    assert_close(server.averages(), averages)


def assert_close(found: Floats | None, expected: Floats) -> None:
    assert found is not None
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_averages_of_one_worker_learn_about_as_well_as_those_of_a_single_device(
    project: Project,
) -> None:
    root, params = project
    params = with_train(params, weight_averaging=True, batch_size=16, epochs=1)
    train(params, root)
    expected = losses_of(files_of(root)[HISTORY])
    train_on_threads(with_servers(params, 2, 1, dense_every=4), root)
    found = losses_of(files_of(root)[HISTORY])
    assert abs(found[-1] - expected[-1]) < 5e-3
    train_on_threads(
        with_servers(with_train(params, weight_averaging=False), 2, 1, dense_every=4), root
    )
    assert losses_of(files_of(root)[HISTORY])[-1] != found[-1]


@pytest.mark.parametrize("averages", [False, True])
def test_two_workers_learn_and_a_lost_one_is_replaced(project: Project, averages: bool) -> None:
    root, params = project
    params = with_train(params, weight_averaging=averages, batch_size=32)
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
