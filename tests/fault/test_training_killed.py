"""Training that is killed and started again ends with the bytes of an undisturbed run."""

import functools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from common.config.params import Params
from common.logs import configure_logging
from tests.factories.features import training_params, write_features
from tests.factories.ranks import PROCESSES
from training.loop.checkpoint import Checkpoints
from training.loop.interrupt import report_on_interrupt
from training.loop.lightning_module import TrainDLRM
from training.stage import train

pytestmark = pytest.mark.slow

DAYS = {"train": [400, 300], "valid": [200], "test": [50]}
# 44 steps an epoch, pools of two row groups: nearly every moment is in the middle of an epoch and
# of a pool
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
    # validations after steps 15, 30 and 44 of an epoch: an interval that does not divide it
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
}

MOMENTS: dict[str, tuple[Any, str]] = {
    "step": (TrainDLRM, "training_step"),
    "validation": (TrainDLRM, "validation_step"),
    "half written": (torch, "save"),
    "fsync": (os, "fsync"),
    "rename": (Path, "replace"),
    "removal": (shutil, "rmtree"),
}


def run(params: Params, root: Path, moment: str, count: int) -> None:
    """Train in this process, which kills itself at the count-th time that the moment comes."""
    with (root / "output.txt").open("a") as output:
        os.dup2(output.fileno(), 1)
    configure_logging()
    die_at(moment, count)
    train(params, root)


def die_at(moment: str, count: int) -> None:
    """Have this process kill itself at the count-th time that the moment comes."""
    if moment != "never":
        owner, name = MOMENTS[moment]
        setattr(
            owner,
            name,
            dying(getattr(owner, name), count, half_written if moment == "half written" else None),
        )


def dying(function: Any, count: int, last_act: Any = None) -> Any:
    calls = 0

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            if last_act:
                last_act(function, *arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    return call


def half_written(save: Any, content: Any, path: Path) -> None:
    save(content, path)
    os.truncate(path, path.stat().st_size // 2)


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
    )  # that run is shorter
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
    assert steps == sorted(steps)
    assert len(set(steps)) >= 3
    assert not list((tmp_path / "runs/checkpoints").iterdir())


@pytest.mark.parametrize(("sig", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_by_hand(tmp_path: Path, sig: signal.Signals, exit_code: int) -> None:
    """The run reports where the next one resumes, and the next one does."""
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
            while (
                sum("validation at step" in line for line in said) < 2
            ):  # the first one's checkpoint is written after its line
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


def test_killed_at_random_moments(
    unbroken: tuple[Params, dict[str, bytes]], tmp_path: Path
) -> None:
    """The process is killed from outside, whatever it is doing."""
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
