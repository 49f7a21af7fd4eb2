"""Worker processes: they answer, die and are replaced."""

import multiprocessing
import os
import signal
from pathlib import Path

import psutil
import pytest

from common.files import DataError
from tests.factories.studies import linked_study
from tests.factories.support import children_where
from training.tune.outcome import Outcome
from training.tune.pool import LocalPool, Worker
from training.tune.study import Study
from training.tune.trial import run_trial

pytestmark = pytest.mark.slow  # each worker imports torch, which takes seconds

VALUES = {"model.embedding_dim": 2, "model.top_mlp": [4], "train.dense_optimizer.lr": 0.01}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study with features."""
    return linked_study(tmp_path_factory.mktemp("root"))


def workers() -> list[psutil.Process]:
    """Return the worker processes of this one."""
    return children_where(lambda child: "spawn_main" in " ".join(child.cmdline()), psutil.Process())


def test_a_worker_gives_the_outcome_of_this_process_and_a_killed_one_is_replaced(
    study: Study,
) -> None:
    task = study.task("trial 0", VALUES)
    expected = run_trial(task)
    with LocalPool(1) as pool:
        assert pool.has_room()
        pool.submit(7, task)
        assert not pool.has_room()
        assert pool.next_finished() == (7, expected)
        (worker,) = workers()
        pool.submit(8, task)
        os.kill(worker.pid, signal.SIGKILL)
        assert pool.next_finished() == (8, expected), "the trial runs again in a new worker"
        (second,) = workers()
        assert second.pid != worker.pid
        pool.submit(9, task)
        second.kill()
        second.wait()
        third = None
        while third is None:  # the new worker starts when the pool notices the death
            pool._receive(next(iter(pool._workers)))
            third = next(iter(workers()), None)
        third.kill()
        key, outcome = pool.next_finished()
        assert key == 9
        assert outcome.error == "its worker died 2 times (signal 9)"
    assert workers() == []


def test_an_error_of_the_data_ends_the_study(study: Study, tmp_path: Path) -> None:
    task = linked_study(tmp_path).task("trial 0", VALUES)
    (task.root / "artifacts/features/manifest.json").write_text("{}")
    with LocalPool(1) as pool:
        pool.submit(0, task)
        with pytest.raises(DataError, match="damaged"):
            pool.next_finished()
    assert workers() == []


def test_a_death_does_not_count_for_the_next_task_of_the_same_key() -> None:
    """The confirmation gives the keys of the search, and its own, to other tasks again."""
    pool = LocalPool(1)
    ours, theirs = multiprocessing.Pipe()
    pool._workers[ours] = Worker(multiprocessing.current_process(), key=8)
    pool._num_deaths[8] = 1
    theirs.send(Outcome(result=None, error="Diverged"))
    finished = pool._receive(ours)
    assert finished is not None
    assert finished[0] == 8
    assert pool._num_deaths == {}
