"""The simulated schedule of parameter servers, and the real training that follows it."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.parameter_servers.learning import Learning, make_model
from benchmarks.parameter_servers.schedule import Costs, SameRows, Setting, Simulation
from benchmarks.parameter_servers.schedule import Step as SimulatedStep
from common.artifact import Artifact
from common.config.params import Params
from common.layout import FEATURES
from features.encode.feature_state import FeatureState
from tests.factories.features import training_params, write_features
from training.bench.step import Step
from training.loop.batches import Batches, Rows
from training.loop.losses import logloss
from training.models.dlrm import DLRM

FREE = Costs(
    bandwidth=1e30, latency_s=0, call_s=0, byte_s=0, read_row_s=0, update_row_s=0, update_dense_s=0
)
BUSY = Costs(
    bandwidth=1e6,
    latency_s=1e-3,
    call_s=1e-3,
    byte_s=1e-7,
    read_row_s=1e-6,
    update_row_s=1e-6,
    update_dense_s=1e-3,
)
NUM_STEPS = 60


class Recorded(SameRows):
    """Records what happens, in order."""

    def __init__(self, num_servers: int) -> None:
        super().__init__([100] * num_servers)
        self.events: list[tuple[str, int]] = []

    def rows(self, ticket: int) -> list[int]:
        self.events.append(("begin", ticket))
        return [100] * len(self.rows_of_servers)

    def read(self, ticket: int, server: int) -> None:
        self.events.append(("read", ticket))

    def update(self, ticket: int, server: int) -> None:
        self.events.append(("update", ticket))

    def update_dense(self, ticket: int) -> None:
        self.events.append(("update", ticket))


def setting_of(
    num_workers: int,
    num_servers: int,
    staleness: int | None,
    dense_every: int = 1,
    costs: Costs = BUSY,
    slow: float = 1,
) -> Setting:
    """Return a setting in which worker 0 is `slow` times as slow as the others."""
    jitter = np.random.default_rng(num_workers).lognormal(sigma=0.5, size=NUM_STEPS)
    return Setting(
        num_workers,
        num_servers,
        staleness,
        dense_every,
        row_floats=4,
        dense_bytes=1000,
        costs=costs,
        compute_s=lambda worker, ticket: float(jitter[ticket]) * (1 if worker else slow),
    )


@pytest.mark.parametrize("dense_every", [1, 3])
@pytest.mark.parametrize("staleness", [0, 1, 3, 7])
@pytest.mark.parametrize(("num_workers", "num_servers"), [(1, 2), (3, 1), (4, 3)])
def test_a_step_begins_only_when_the_steps_before_its_bound_are_applied(
    num_workers: int, num_servers: int, staleness: int, dense_every: int
) -> None:
    work = Recorded(num_servers)
    setting = setting_of(num_workers, num_servers, staleness, dense_every, slow=5)
    steps = Simulation(setting, work).run(NUM_STEPS)
    assert [event for event in work.events if event[0] == "begin"] == [
        ("begin", ticket) for ticket in range(NUM_STEPS)
    ]
    updates_left = dict.fromkeys(range(NUM_STEPS), num_servers + (dense_every == 1))
    largest = 0
    for what, ticket in work.events:
        if what == "update":
            updates_left[ticket] -= 1
        else:
            assert not any(updates_left[before] for before in range(ticket - staleness))
            largest = max(largest, sum(updates_left[before] > 0 for before in range(ticket)))
    assert not any(updates_left.values())
    # The bound is also reached. Each worker has at most one step that it computes and one that it
    # pushes, besides the one that it pulls ahead.
    assert largest == min(staleness, 2 * num_workers)
    assert sorted(step.ticket for step in steps) == list(range(NUM_STEPS))


def test_staleness_0_runs_one_step_after_the_other() -> None:
    work = Recorded(2)
    steps = Simulation(setting_of(3, 2, staleness=0), work).run(NUM_STEPS)
    tickets = [ticket for _, ticket in work.events]
    assert tickets == sorted(tickets)
    assert [step.ticket for step in steps] == list(range(NUM_STEPS))
    assert all(later.begun_s >= earlier.applied_s for earlier, later in pairwise(steps))
    assert not any(step.applied_between for step in steps)


@pytest.mark.parametrize(
    ("staleness", "seconds", "of_slow_worker"), [(0, 12, 3), (1, 9, 3), (5, 6, 2), (None, 6, 2)]
)
def test_times_of_a_schedule_that_is_counted_by_hand(
    staleness: int | None, seconds: float, of_slow_worker: int
) -> None:
    """Six steps of two workers that need 3 s and 1 s; everything else takes no time.

    0: one step after the other, in turns: 3 x 3 + 3 x 1. 1: the next step may begin only when that
    of the slow worker has been applied, so each pair of steps takes 3 s. 5 or no bound: the slow
    worker does one step, and one that it has pulled ahead, while the other one does four.
    """
    setting = setting_of(2, 1, staleness, costs=FREE)._replace(
        compute_s=lambda worker, _: 1.0 if worker else 3.0
    )
    steps = Simulation(setting, SameRows([1])).run(6)
    assert max(step.applied_s for step in steps) == pytest.approx(seconds)
    assert Counter(step.worker for step in steps)[0] == of_slow_worker


def test_messages_wait_for_the_port_and_the_cpu_of_the_server() -> None:
    """Worker 0 is beside the server; the message of worker 1 uses the ports."""
    costs = Costs(
        bandwidth=100,
        latency_s=1,
        call_s=2,
        byte_s=0.1,
        read_row_s=3,
        update_row_s=4,
        update_dense_s=0,
    )
    setting = setting_of(1, 2, 0, dense_every=2, costs=costs)._replace(
        row_floats=4, compute_s=lambda *_: 100.0
    )
    (step,) = Simulation(setting, SameRows([0, 10])).run(1)
    # 40 bytes of ids and 160 of rows are pulled, 200 are pushed, all through the ports
    pull_s = (1 + 40 / 100) + (2 + 200 * 0.1 + 10 * 3) + (1 + 160 / 100)
    compute_s = 100 + 2 * 2 + 400 * 0.1
    push_s = (1 + 200 / 100) + (2 + 200 * 0.1 + 10 * 4) + 1
    assert step.applied_s - step.begun_s == pytest.approx(1 + pull_s + compute_s + push_s + 1)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("features")
    write_features(root, {"train": [900, 620], "valid": [101], "test": [50]})
    return root


PARAMS = training_params(
    {"embedding_dim": 16, "standardise": True},
    embedding_optimizer={"name": "rowwise_adagrad", "lr": 0.05},
    dense_optimizer={"name": "adam", "lr": 0.003},
)


def batches_and_model(root: Path, params: Params = PARAMS) -> tuple[list[Rows], DLRM]:
    """Return the batches of an epoch, the last of which is smaller, and the untrained model."""
    state = FeatureState.load(root / FEATURES / "state")
    files = Artifact.open(root / FEATURES).paths_in("train")
    batches = Batches(files, state.schema, batch_size=64, shuffle_rows=1000, seed=1)
    rows = [batch.rows for batch in batches.steps(0, batches.steps_per_epoch)]
    return rows, make_model(params, state, batches.some_dense())


def trained(root: Path, setting: Setting) -> tuple[DLRM, list[SimulatedStep]]:
    """Train by a schedule; return the model and the steps."""
    batches, model = batches_and_model(root)
    work = Learning(
        PARAMS, model, batches, setting.num_workers, setting.num_servers, setting.dense_every
    )
    steps = Simulation(setting, work).run(len(batches))
    work.finish()
    return model, steps


@pytest.mark.parametrize(("num_workers", "num_servers"), [(1, 1), (3, 2)])
def test_staleness_0_gives_the_weights_of_the_plain_loop_bit_for_bit(
    features: Path, num_workers: int, num_servers: int
) -> None:
    model, _ = trained(features, setting_of(num_workers, num_servers, staleness=0))
    batches, plain = batches_and_model(features)
    step = Step(plain, logloss, PARAMS.train)
    for batch in batches:
        step(batch)
    for name, weight in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name


def test_a_stale_step_computes_with_the_weights_that_it_pulled(features: Path) -> None:
    """Two workers begin together, so both gradients are those of the first weights."""
    sgd = {"name": "sgd", "lr": 0.1}
    params = training_params({"embedding_dim": 16}, embedding_optimizer=sgd, dense_optimizer=sgd)
    batches, model = batches_and_model(features, params)
    first = {name: weight.clone() for name, weight in model.state_dict().items()}
    work = Learning(params, model, batches, num_workers=2, num_servers=2, dense_every=1)
    steps = Simulation(setting_of(2, 2, staleness=1, costs=FREE), work).run(2)
    assert [step.applied_between for step in steps] == [0, 1]
    work.finish()
    expected = dict(first)
    for batch in batches[:2]:
        _, alone = batches_and_model(features, params)
        Step(alone, logloss, params.train)(batch)
        for name, weight in alone.state_dict().items():
            expected[name] = expected[name] + weight - first[name]
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-6)
    moved = (model.embeddings.tables[0].weight - first["embeddings.tables.0.weight"]).abs().max()
    assert moved > 1e-4


def test_an_exchange_moves_the_centre_by_a_share_of_the_progress(features: Path) -> None:
    batches, model = batches_and_model(features)
    work = Learning(PARAMS, model, batches, num_workers=4, num_servers=1, dense_every=2)
    before = [weight.detach().clone() for weight in work.centre]
    with torch.no_grad():
        for weight in work.replicas[1].weights:
            weight += 2
    for worker in (1, 1, 0):  # the second time there is no progress; the other worker has none
        work.exchange(worker)
    for weight, replica, other, old in zip(
        work.centre, work.replicas[1].weights, work.replicas[0].weights, before, strict=True
    ):
        torch.testing.assert_close(weight.detach(), old + 0.5)
        assert torch.equal(replica, weight)
        assert torch.equal(other, weight)


@pytest.mark.parametrize("dense_every", [1, 4])
def test_stale_steps_learn_something_else_and_still_learn(features: Path, dense_every: int) -> None:
    exact, _ = trained(features, setting_of(1, 1, staleness=0))
    model, steps = trained(features, setting_of(3, 2, staleness=5, dense_every=dense_every))
    assert max(step.applied_between for step in steps) > 2
    batches, untrained = batches_and_model(features)
    losses = []
    for one in (untrained, exact, model):
        with torch.no_grad():
            losses.append(float(logloss(one(batches[0].dense, batches[0].ids), batches[0].labels)))
    assert losses[2] < 0.95 * losses[0]
    assert losses[2] != losses[1]
