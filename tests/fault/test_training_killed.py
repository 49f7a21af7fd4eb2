"""Training that is killed and started again gives the bytes of an undisturbed run."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from common.config.params import Params
from common.logs import configure_logging
from tests.factories.features import training_params, write_features
from tests.factories.killed_processes import die_at
from tests.factories.ranks import PROCESSES
from training.loop.checkpoint import LAST, Checkpoints
from training.loop.interrupt import report_on_interrupt
from training.stage import train

pytestmark = pytest.mark.slow

DAYS = {"train": [400, 300], "valid": [200], "test": [50]}
# An epoch has 44 steps and a pool has two row groups, so nearly every kill is within an epoch and
# within a pool.
RUN: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 16,
    "shuffle_rows": 100,
    "validations": 12,
    "checkpoint_minutes": 1e-9,
    "logger": "none",
}
NUM_STEPS = 3 * 44
RUNS: dict[str, dict[str, Any]] = {
    # Validations come after steps 15, 30 and 44 of an epoch: 44 is not a multiple of the interval.
    "adam": {"weight_averaging": True, "reset_embeddings_each_epoch": True, "validations": 9},
    "adagrad": {
        "dense_optimizer": {"name": "adagrad", "lr": 0.05},
        "warmup_steps": 20,
        "decay_steps": 60,
        "weight_averaging": True,
    },
    "sgd": {
        "dense_optimizer": {"name": "sgd", "lr": 0.1},
        "embedding_optimizer": {"name": "sgd", "lr": 0.1},
        "max_grad_norm": 0.2,
    },
    "accumulate_grad_batches": {
        "accumulate_grad_batches": 3,
        "batch_size": 7,
        "early_stopping_patience": 3,
    },
    "ensemble": {"ensemble_size": 2, "validations": 5},
}


def run(params: Params, root: Path, moment: str, count: int) -> None:
    """Train in this process, which kills itself when a moment comes for the count-th time."""
    with (root / "output.txt").open("a") as output:
        os.dup2(output.fileno(), 1)
    configure_logging()
    die_at(moment, count)
    train(params, root)


def start(params: Params, root: Path, moment: str = "never", count: int = 0) -> Any:
    process = PROCESSES.Process(target=run, args=(params, root, moment, count))
    process.start()
    return process


def code(process: Any) -> int:
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return int(process.exitcode)


def bundle(root: Path) -> dict[str, bytes]:
    top = root / "artifacts/model"
    return {
        path.relative_to(top).as_posix(): path.read_bytes()
        for path in top.rglob("*")
        if path.is_file()
    }


def resumed_at(root: Path) -> list[int]:
    return [
        int(step)
        for step in re.findall(r"resumes at step (\d+) of", (root / "output.txt").read_text())
    ]


@pytest.fixture(scope="module", params=RUNS)
def unbroken(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Params, dict[str, bytes]]:
    root = tmp_path_factory.mktemp("unbroken")
    write_features(root, DAYS)
    params = training_params(**RUN | RUNS[request.param])
    assert code(start(params, root)) == 0
    assert not list((root / "runs/checkpoints").iterdir())
    return params, bundle(root)


def test_killed_at_chosen_moments(
    unbroken: tuple[Params, dict[str, bytes]], tmp_path: Path
) -> None:
    params, expected = unbroken
    write_features(tmp_path, DAYS)
    steps = (
        [] if params.train.accumulate_grad_batches > 1 else [("step", 30), ("step", 40)]
    )  # a run that accumulates batches has fewer steps
    moments = [
        *steps,
        ("step", 3),
        ("validation", 2),
        ("half written", 1),
        ("fsync", 4),
        ("rename", 3),
        ("removal", 1),
    ]
    for moment, count in moments:
        assert code(start(params, tmp_path, moment, count)) == -signal.SIGKILL, (moment, count)
    assert code(start(params, tmp_path)) == 0
    assert bundle(tmp_path) == expected
    steps = resumed_at(tmp_path)
    if params.train.ensemble_size == 1:  # the second member begins at the first step again
        assert steps == sorted(steps)
    assert len(set(steps)) >= 3
    assert not list((tmp_path / "runs/checkpoints").iterdir())


@pytest.mark.parametrize(("sig", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_a_signal_stopped_can_be_resumed(
    tmp_path: Path, sig: signal.Signals, exit_code: int
) -> None:
    """The run reports the checkpoint from which the next run resumes, and the next run does so."""
    write_features(tmp_path, DAYS)
    params = training_params(**RUN | {"epochs": 1000})
    (tmp_path / "params.yaml").write_text(params.model_dump_json(by_alias=True))  # JSON is YAML
    for nth in range(2):
        command = [str(Path(sys.executable).with_name("clickmill")), "train"]
        with subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as child:
            assert child.stdout
            said = []
            # The checkpoint of a validation is written after its line is logged.
            while sum("validation at step" in line for line in said) < 2:
                said.append(next(child.stdout))
            child.send_signal(sig)
            said += child.stdout
        assert child.returncode == exit_code
        assert re.fullmatch(
            r"train     stopped; the next run resumes from the checkpoint of \d+ s ago, \S+/last.pt\n",
            said[-1],
        )
        assert any("resumes at step" in line for line in said) == (nth == 1)
    assert not (tmp_path / "artifacts/model").exists()


def test_stopped_before_the_first_checkpoint(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit), report_on_interrupt(Checkpoints(tmp_path / "none")):
        sys.exit(143)
    assert (
        capfd.readouterr().out
        == "train     stopped; there is no checkpoint yet, so the next run starts from scratch\n"
    )


def test_stopped_after_the_clock_was_set_back(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / LAST
    path.touch()
    os.utime(path, (time.time() + 3600,) * 2)
    with pytest.raises(SystemExit), report_on_interrupt(Checkpoints(tmp_path)):
        sys.exit(143)
    assert (
        capfd.readouterr().out
        == f"train     stopped; the next run resumes from the checkpoint, {path}\n"
    )


def test_killed_at_random_moments(
    unbroken: tuple[Params, dict[str, bytes]], tmp_path: Path
) -> None:
    """Another process kills the run after a random time."""
    params, expected = unbroken
    write_features(tmp_path, DAYS)
    moments = random.Random(1)
    for _ in range(6):
        process = start(params, tmp_path)
        process.join(moments.uniform(0.1, 1))
        process.kill()
        code(process)
    assert code(start(params, tmp_path)) == 0
    assert bundle(tmp_path) == expected
