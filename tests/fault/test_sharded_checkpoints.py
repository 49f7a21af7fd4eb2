"""Checkpoints of sharded tables: other numbers of ranks, kills during a write, damaged files."""

import os
import resource
import shutil
import signal
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from common.config.params import Params
from common.files import DataError
from common.full_disk import FullDiskError
from tests.factories.features import training_params, write_features
from tests.factories.killed_processes import die_at
from tests.factories.ranks import ends_of_ranks, on_ranks
from tests.factories.sharded_runs import choose_each_kind, fit_rank
from training import stage as train
from training.distributed.sharding.row_permutation import rows_at, shards_of
from training.distributed.sharding.table_checkpoint import parts_of
from training.loop.checkpoint import LAST, Checkpoints
from training.loop.lightning_module import TrainDLRM
from training.loop.schedule import Schedule
from training.loop.step_loss import loss_to_minimise
from training.loop.weight_averaging import EpochMean
from training.models import embedding_tables
from training.models.factory import build_model, groups_of

pytestmark = pytest.mark.slow

pytest.importorskip("torchrec", reason="TorchRec is not installed (make setup)")

DAYS = {"train": [200, 121], "valid": [101], "test": [50]}
# Some tables have fewer rows than there are ranks; most numbers of rows are not multiples of it.
CARDINALITIES = [3, 50, 7, 1, 21, 12]
OPTIMIZERS = ("sgd", "rowwise_adagrad")
Shards = dict[str, dict[int, np.ndarray]]  # part -> first row -> rows


def a_module(params: Params, kinds_from: int) -> TrainDLRM:
    """Return this rank's module. The kinds of placement are rotated by `kinds_from` tables."""
    strategy, make_tables = None, {}
    if params.train.devices > 1:
        from training.distributed.sharding import strategy as strategy_module

        strategy_module.choose_kinds = lambda groups, *_: [
            choose_each_kind(groups)[0][-kinds_from:] + choose_each_kind(groups)[0][:-kinds_from]
        ]
        strategy = strategy_module.HybridStrategy.for_model(
            groups_of(params.model, CARDINALITIES), params.train, "cpu", train.COLLECTIVE_TIMEOUT
        )
        make_tables = {"make_tables": strategy.make_tables}
    model = build_model(
        params.model, CARDINALITIES, 2, torch.Generator().manual_seed(1), **make_tables
    )
    module = TrainDLRM(model, loss_to_minimise(params), params.train, Schedule(9, 9, 9, 9))
    assert module.averaged_model is not None
    module.epoch_mean = EpochMean(module.averaged_model)
    return module


def shards(module: TrainDLRM) -> Shards:
    parts = parts_of(module.model, module.embedding_optimizers, module.epoch_mean)
    return {
        name: {start: rows.detach().numpy().copy() for start, rows in shards_of(part)}
        for name, part in parts.items()
    }


def values_of(name: str) -> torch.Tensor:
    """Return the values of a whole table, or of its optimizer's sums."""
    _, table, kind = name.split(".")
    num_rows = CARDINALITIES[int(table)]
    return torch.rand(
        (num_rows,) if kind == "sums" else (num_rows, 4),
        generator=torch.Generator().manual_seed(zlib.crc32(name.encode())),
    )


def make(optimizer: str, num_ranks: int) -> Params:
    return training_params(
        devices=num_ranks, weight_averaging=True, embedding_optimizer={"name": optimizer, "lr": 0.1}
    )


def write(num_ranks: int, directory: Path, kinds_from: int) -> None:
    """Write a checkpoint of random tables for each optimizer."""
    embedding_tables.BLOCK_BYTES = 200  # so that tables are loaded in several blocks
    for optimizer in OPTIMIZERS:
        module = a_module(make(optimizer, num_ranks), kinds_from)
        for name, part in parts_of(
            module.model, module.embedding_optimizers, module.epoch_mean
        ).items():
            module.model.embeddings.tables[0].load_rows(
                int(name.split(".")[1]), part, values_of(name)
            )
        _write(module, Checkpoints(directory / optimizer))


def _write(module: TrainDLRM, checkpoints: Checkpoints) -> None:
    tables = {"tables": checkpoints.write_tables(module.write_tables)} if module.sharded else {}
    if os.environ.get("RANK", "0") == "0":
        content = {"state_dict": module.state_dict(), "best_step": None}
        checkpoints.write(LAST, content | tables)
        checkpoints.sweep()


def load(module: TrainDLRM, content: dict[str, Any]) -> None:
    """Load a checkpoint as Lightning does."""
    module.on_load_checkpoint(content)
    module.load_state_dict(content["state_dict"])


def read_and_write_again(num_ranks: int, directory: Path, kinds_from: int) -> dict[str, Shards]:
    """Read the checkpoints, write them again, and return the rows that this rank read."""
    found = {}
    for optimizer in OPTIMIZERS:
        module, checkpoints = (
            a_module(make(optimizer, num_ranks), kinds_from),
            Checkpoints(directory / optimizer),
        )
        saved = checkpoints.read(LAST)
        assert saved is not None
        load(module, saved)
        found[optimizer] = shards(module)
        torch.distributed.barrier()
        _write(module, checkpoints)
    return found


def test_checkpoints_can_be_read_by_any_number_of_ranks(tmp_path: Path) -> None:
    """Runs of 4, 3, 2, 1 and 4 ranks each read the same bits that the run before them wrote."""
    on_ranks(4, write, 4, tmp_path, 0, ranks_per_node=2)
    for kinds_from, num_ranks in enumerate((3, 2, 1, 4), start=1):
        found = on_ranks(num_ranks, read_and_write_again, num_ranks, tmp_path, kinds_from)
        for optimizer, kept in (
            ("sgd", ["weight", "mean"]),
            ("rowwise_adagrad", ["weight", "mean", "sums"]),
        ):
            of_ranks = [of_rank[optimizer] for of_rank in found]
            names = {name for of_rank in of_ranks for name in of_rank}
            assert names == {f"0.{k}.{kind}" for k in range(len(CARDINALITIES)) for kind in kept}
            for name in names:
                expected = values_of(name)
                if num_ranks > 1:
                    expected = expected[
                        rows_at(torch.arange(len(expected)), int(name.split(".")[1]), len(expected))
                    ]
                seen = np.zeros(len(expected), bool)
                for start, rows in (
                    part for of_rank in of_ranks for part in of_rank.get(name, {}).items()
                ):
                    np.testing.assert_array_equal(
                        rows,
                        expected[start : start + len(rows)].numpy(),
                        err_msg=f"{name} on {num_ranks} ranks",
                    )
                    seen[start : start + len(rows)] = True
                assert seen.all(), f"{name} on {num_ranks} ranks"
            assert len(list((tmp_path / optimizer).iterdir())) == (
                1 if num_ranks == 1 else 2
            )  # last.pt, and the folder of its tables


def write_on_a_full_disk(directory: Path) -> str:
    """Write a checkpoint where the disk of the second rank is full; return the error."""
    module = a_module(make("sgd", 2), 0)
    if os.environ["RANK"] == "1":
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    with pytest.raises(FullDiskError) as error:
        _write(module, Checkpoints(directory))
    return str(error.value)


def test_a_disk_that_is_full_on_one_rank_ends_all_of_them(tmp_path: Path) -> None:
    errors = on_ranks(2, write_on_a_full_disk, tmp_path / "run")
    for error in errors:
        assert error.startswith(f"File too large: {tmp_path / 'run/tables_1'}; raise the limit")
    assert list((tmp_path / "run").iterdir()) == []


RUN: dict[str, Any] = {
    "batch_size": 40,
    "validations": 3,
    "checkpoint_minutes": 1e-9,
    "logger": "none",
    "weight_averaging": True,
}


def stopped(params: Params, root: Path, moment: str, rank: int, count: int) -> None:
    """Train on this rank; one rank kills itself when a moment comes for the count-th time."""
    if os.environ["RANK"] == str(rank):
        die_at(moment, count)
    fit_rank(params, root)


def bundle(root: Path) -> dict[str, bytes]:
    return {
        name: (root / "artifacts/model" / name).read_bytes()
        for name in ("weights.safetensors", "history.csv")
    }


def test_ranks_killed_during_a_write_resume_bit_for_bit(tmp_path: Path) -> None:
    params = training_params(devices=2, **RUN)
    for name in ("unbroken", "killed"):
        write_features(tmp_path / name, DAYS)
    on_ranks(2, fit_rank, params, tmp_path / "unbroken")
    root = tmp_path / "killed"
    for moment, rank, count in (("fsync", 1, 3), ("fsync", 0, 7), ("rename", 0, 4)):
        ends = ends_of_ranks(2, stopped, params, root, moment, rank, count)
        assert ends[rank] == ("ended", -signal.SIGKILL), (moment, ends)
        assert ends[1 - rank][0] == "error"
    on_ranks(2, fit_rank, params, root)
    assert bundle(root) == bundle(tmp_path / "unbroken")
    steps = [
        int(line.split(" of ")[0].split()[-1])
        for line in (root / "output.txt").read_text().splitlines()
        if "resumes at" in line
    ]
    assert steps == sorted(steps)
    assert steps[-1] > 0


def test_a_run_resumes_on_another_number_of_ranks(tmp_path: Path) -> None:
    """After kills on 4 ranks and on one device, 3 ranks end with the result of one device."""
    for name in ("alone", "moved"):
        write_features(tmp_path / name, DAYS)
    on_ranks(1, fit_rank, training_params(devices=1, **RUN), tmp_path / "alone")
    root = tmp_path / "moved"
    ends_of_ranks(4, stopped, training_params(devices=4, **RUN), root, "step", 2, 4)
    ends_of_ranks(1, stopped, training_params(devices=1, **RUN), root, "step", 0, 4)
    on_ranks(3, fit_rank, training_params(devices=3, **RUN), root)
    assert [
        line.split(",")[0]
        for line in (root / "output.txt").read_text().splitlines()
        if "resumes" in line
    ] == [
        "train     resumes at step 3 of 9",
        "train     resumes at step 6 of 9",
    ]
    expected, found = (
        load_file(path / "artifacts/model/weights.safetensors")
        for path in (tmp_path / "alone", root)
    )
    for weight, values in expected.items():
        np.testing.assert_allclose(found[weight], values, rtol=1e-5, atol=1e-5, err_msg=weight)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def link(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def test_damaged_shards_are_refused_by_name(tmp_path: Path) -> None:
    on_ranks(2, write, 2, tmp_path / "whole", 0)
    names = sorted(path.name for path in (tmp_path / "whole/sgd/tables_1").iterdir())
    assert len(names) >= 2
    for damage in (
        Path.unlink,
        lambda path: os.truncate(path, path.stat().st_size - 3),
        flip_a_bit,
        link,
        pipe,
    ):
        for name in names:
            shutil.rmtree(tmp_path / "damaged", ignore_errors=True)
            shutil.copytree(tmp_path / "whole", tmp_path / "damaged")
            checkpoints = Checkpoints(tmp_path / "damaged/sgd")
            damage(checkpoints.directory / "tables_1" / name)
            saved = checkpoints.read(LAST)
            assert saved is not None
            with pytest.raises(
                DataError,
                match=rf"damaged/sgd/tables_1: not whole \(.*{name}.*\); remove .*sgd to train",
            ):
                load(a_module(make("sgd", 1), 0), saved)
            checkpoints.remove_if_damaged()
            assert not checkpoints.directory.exists()
    checkpoints = Checkpoints(tmp_path / "whole/sgd")
    checkpoints.remove_if_damaged()
    assert checkpoints.read(LAST) is not None
    link(checkpoints.directory / "tables_1")
    checkpoints.remove_if_damaged()
    assert not checkpoints.directory.exists()
