"""Checkpoints, from which an interrupted run resumes: runs/checkpoints/KEY/last.pt and best.pt.

last.pt is a checkpoint of Lightning's (weights, optimizers, callbacks, progress of the loops);
best.pt has the weights of the lowest validation loss. best.pt may be ahead of last.pt: the steps
after last.pt are trained again, with the same result.

Where tables are sharded, each rank writes its rows to a directory beside the files, tables_N, and a
file that is written afterwards names it. So whatever a file names is complete; a directory that no
file names is removed. Any number of ranks resumes from what any other number has written.

KEY is a hash of all that decides the result of a run: its parameters, the features, the code. So no
run resumes from the weights of a run with other parameters. The members of an ensemble have folders
of their own in it, member_1, member_2, ... A file is an archive of torch.save with
tensors and plain values; it is read with weights_only=True. After the archive comes the CRC-32 of
its bytes, and a file that names a directory has the CRC-32 of each file in it. They are checked
before a run resumes; a run whose checkpoints are damaged says so and trains from the start.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import CheckpointIO
from torch import Tensor

from common.artifact import Artifact
from common.bundle_layout import manifest_in
from common.code_hash import code_hashes
from common.config.params import Params
from common.files import DataError, crc32_file, other_kind, remove, replaced, sha256_file
from common.layout import FEATURES
from common.logs import get_logger
from common.printable import first_line
from training.distributed.collectives import broadcast_value
from training.distributed.sharding.table_checkpoint import (
    find_fault,
    is_of_tables,
    read_tables,
    saved_tables,
)
from training.inference.bundle import DECIDING, Weights
from training.kernels.compiler import kernels_name
from training.loop.lightning_module import TrainDLRM
from training.models.dlrm import DLRM
from training.tensor_files import Rows

log = get_logger("train")

CHECKPOINTS = Path("runs/checkpoints")
LAST, BEST, TABLES = "last.pt", "best.pt", "tables_"
FORMAT = "clickmill checkpoint 3"
CHECKSUM_BYTES = 4  # after the archive
# These decide only how sums are rounded, and with staleness the order of updates.
ROUNDING = {"threads", "devices", "nodes", "parallel", "servers"}
VALIDATION_SHARE = 0.02
PACKAGES = ("torch", "pytorch-lightning", "numpy", "pyarrow")


class CheckpointError(DataError):
    """A checkpoint is damaged, or is not one of this run.

    Attributes:
        fault: The message without the remedy.
    """

    def __init__(self, fault: str, directory: Path) -> None:
        super().__init__(f"{fault}; remove {directory} to train from the start")
        self.fault = fault


class Checkpoints(CheckpointIO):
    """The checkpoint files of one run, and how Lightning writes and reads them.

    All ranks read them; the first rank writes.

    Args:
        run_directory: The path of runs/checkpoints/KEY.
        member: The number, from 0, of the member of an ensemble that is trained; None if the run
            trains one model only.

    Attributes:
        directory: The folder of the files.
        key: What a file records about the run that it belongs to.
        trained: The folder with what is kept of a member that has been trained.
    """

    def __init__(self, run_directory: Path, member: int | None = None) -> None:
        self.run_directory, self.member = run_directory, member
        self.directory = run_directory
        if member is not None:
            self.directory = run_directory / f"member_{member + 1}"
        self.key = self.directory.relative_to(run_directory.parent).as_posix()
        self.trained = self.directory / "trained"

    def of_member(self, member: int) -> "Checkpoints":
        """Return the checkpoints of a member of the ensemble that the run trains, from 0."""
        return Checkpoints(self.run_directory, member)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; the file is on the disk before it gets its name.

        Args:
            checkpoint: Plain values and tensors, which are not copied.
            path: The path of the file.
            storage_options: Not used.
        """
        with replaced(Path(path)) as scratch:
            torch.save({**checkpoint, "format": FORMAT, "key": self.key}, scratch)
            append_checksum(scratch)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; nothing in the file is executed.

        Args:
            path: The path of the file.
            map_location: Not used; the tensors are mapped from the file into main memory.
            weights_only: Not used; it is always True.

        Returns:
            What was saved. The directory of its sharded tables, if it names one, is an absolute
            path.

        Raises:
            FileNotFoundError: There is none.
            CheckpointError: The file is damaged, or not a checkpoint of this run.
        """
        path = Path(path)
        if kind := other_kind(path):
            raise self._refused(path, f"{kind}, not a file")
        try:
            if not has_right_checksum(path):
                raise self._refused(path, "not a whole checkpoint (its checksum is wrong)")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except CheckpointError:
            raise
        except Exception as error:  # what torch raises has no common type
            reason = first_line(error)
            if type(error).__name__ == "UnpicklingError":
                # torch's own message explains how to open the file nevertheless
                reason = "it has more in it than tensors and plain values"
            raise self._refused(path, f"not a whole checkpoint ({reason})") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise self._refused(path, f"not a checkpoint of this clickmill ({FORMAT!r} expected)")
        if content.get("key") != self.key:
            raise self._refused(path, f"the checkpoint of another run, {content.get('key')}")
        if tables := content.get("tables"):
            tables["directory"] = str(path.absolute().parent / tables["directory"])
        return content

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint file."""
        remove(Path(path))

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Write the file `name` of the run's directory."""
        self.save_checkpoint(content, self.directory / name)

    def read(self, name: str) -> dict[str, Any] | None:
        """Read the file `name` of the run's directory; None if there is none."""
        try:
            return self.load_checkpoint(self.directory / name)
        except FileNotFoundError:
            return None

    def last(self) -> Path | None:
        """Return the checkpoint that the run resumes from, if there is one."""
        path = self.directory / LAST
        return path if os.path.lexists(path) else None

    def remove_if_damaged(self) -> None:
        """Check every byte from which the run would resume; remove its checkpoints if one is wrong.

        The run trains from the start then, which gives the same result.
        """
        try:
            self._check()
        except CheckpointError as error:
            log.warning(f"{error.fault}; the run starts again, without its checkpoints")
            self.remove()
        self.sweep()

    def _check(self) -> None:
        best = self.read(BEST)
        last = self.read(LAST)
        for content in (best, last):
            saved = saved_tables(content) if content else None
            if saved is not None and (fault := find_fault(saved)):
                raise CheckpointError(fault, self.directory)
        if last is not None and last["best_step"] is not None:
            self._check_best(best, last["best_step"])

    def of_others(self) -> list[Path]:
        """Return the directories of other runs, the latest one last."""
        own = self.run_directory
        others = [path for path in own.parent.glob("*") if path != own]
        return sorted(others, key=lambda path: path.lstat().st_mtime)

    def check_best(self, step: int) -> None:
        """Check that best.pt has the weights of a step, or later ones of a run that was killed.

        Raises:
            CheckpointError: They are not.
        """
        self._check_best(self.read(BEST), step)

    def _check_best(self, best: dict[str, Any] | None, step: int) -> None:
        if best is None or best["step"] < step:
            raise self._best_expected(step, best)

    def best_weights(self, model: DLRM, step: int, scratch: Path) -> Weights:
        """Return the weights of the validation at this step, to be written; no table is in memory.

        Args:
            model: The model that was trained; its tables may be anywhere.
            step: The step.
            scratch: A folder for a file without a name, of the size of the largest sharded table.

        Raises:
            CheckpointError: They are not there.
            DataError: A file of sharded tables is missing or has changed.
        """
        best = self.read(BEST)
        if best is None or best["step"] != step:
            raise self._best_expected(step, best)
        weights: dict[str, Tensor | Rows] = best["weights"]
        expected = {name for name in model.state_dict() if not is_of_tables(name)}
        if saved := saved_tables(best):
            weights |= read_tables(saved, model, scratch)
        expected |= {f"embeddings.tables.{g}.weight" for g in range(len(model.embeddings.tables))}
        assert weights.keys() == expected, weights.keys() ^ expected
        return weights

    def write_tables(self, write: Callable[[Path], dict[str, int]]) -> dict[str, Any]:
        """Write sharded tables to a new directory. Collective.

        Args:
            write: Writes them into a directory that it makes, and returns the CRC-32 of each file.

        Returns:
            What a checkpoint has as its "tables" to name them.
        """
        numbers = [
            int(path.name.removeprefix(TABLES)) for path in self.directory.glob(f"{TABLES}*")
        ]
        number = broadcast_value(max(numbers, default=0) + 1)
        directory = self.directory / f"{TABLES}{number}"
        try:
            checksums = write(directory)
        except Exception:
            shutil.rmtree(directory, ignore_errors=True)  # the other ranks do the same
            raise
        return {"directory": directory.name, "checksums": checksums}

    def sweep(self) -> None:
        """Remove the sharded tables that no file names."""
        directories = list(self.directory.glob(f"{TABLES}*"))
        if not directories:
            return
        named = set()
        for name in (LAST, BEST):
            content = self.read(name)
            saved = saved_tables(content) if content else None
            if saved is not None:
                named.add(saved.directory)
        for path in directories:
            if path.absolute() not in named:
                remove(path)

    def remove(self) -> None:
        """Remove all checkpoints of the run."""
        remove(self.directory)

    def remove_files(self) -> None:
        """Remove the checkpoints, but not what is kept of a member that has been trained."""
        for path in self.directory.glob("*"):
            if path != self.trained:
                remove(path)

    def _best_expected(self, step: int, best: dict[str, Any] | None) -> CheckpointError:
        found = best and best["step"]
        return self._refused(
            self.directory / BEST, f"the weights of step {step} expected, {found} found"
        )

    def _refused(self, path: Path, reason: str) -> CheckpointError:
        return CheckpointError(f"{path}: {reason}", self.directory)


class CheckpointCallback(Checkpoint):
    """Writes best.pt after a validation with the lowest loss so far, and last.pt from time to time.

    last.pt is written after a validation, unless writing takes more than VALIDATION_SHARE of the
    time since the last one, and whenever `every_s` seconds have passed. It is written only when the
    training curve has just got a point, so that no metric is half measured. When it is written has
    no effect on what is learned. Lightning calls a subclass of `Checkpoint` after all other
    callbacks.

    Args:
        checkpoints: The files of the run.
        every_s: Seconds after which last.pt is written again.
    """

    def __init__(self, checkpoints: Checkpoints, every_s: float) -> None:
        self.checkpoints, self.every_s = checkpoints, every_s
        self.written_s, self.took_s = time.monotonic(), 0.0
        self.tables: dict[str, Any] | None = None  # that the file being written names

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check, before a resumed run trains, that its best weights are there.

        Raises:
            CheckpointError: They are not.
        """
        if not trainer.global_step or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, TrainDLRM)
        if pl_module.curves.validations:
            self.checkpoints.check_best(pl_module.curves.best.step)
        log.info(
            f"resumes at step {trainer.global_step:,} of {pl_module.schedule.num_steps:,},"
            f" saved in {self.checkpoints.directory}"
        )

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Write last.pt when it is due; after a step with a validation, only after that."""
        assert isinstance(pl_module, TrainDLRM)
        step, schedule = trainer.global_step, pl_module.schedule
        is_point = schedule.records_at(step) and not schedule.validates_at(step)
        if is_point and pl_module.is_consistent:
            self._write(trainer, pl_module, best=False, last=self._is_due(self.every_s))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write best.pt if this validation is the best one, and last.pt when it is due."""
        if trainer.sanity_checking:
            return
        assert isinstance(pl_module, TrainDLRM)
        is_best = pl_module.curves.best.step == trainer.global_step
        is_due = self._is_due(min(self.every_s, self.took_s / VALIDATION_SHARE))
        self._write(trainer, pl_module, best=is_best, last=is_due)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the sharded tables, which are no part of the module's weights. Collective."""
        assert isinstance(pl_module, TrainDLRM)
        curves = pl_module.curves
        checkpoint["best_step"] = curves.best.step if curves.validations else None
        if pl_module.sharded:
            checkpoint["tables"] = self.tables or self._write_tables(pl_module)

    def _is_due(self, after_s: float) -> bool:
        """Return whether last.pt is that old, by the first rank's clock."""
        return bool(broadcast_value(time.monotonic() - self.written_s >= after_s))

    def _write(self, trainer: pl.Trainer, module: TrainDLRM, *, best: bool, last: bool) -> None:
        if not (best or last):
            return
        started_s = time.monotonic()
        content = {"step": trainer.global_step, "weights": module.exported_model.state_dict()}
        if module.sharded:
            self.tables = content["tables"] = self._write_tables(module)
        try:
            if best and trainer.is_global_zero:
                self.checkpoints.write(BEST, content)
            if last:
                trainer.save_checkpoint(self.checkpoints.directory / LAST)
        finally:
            self.tables = None
            if module.sharded and trainer.is_global_zero:
                self.checkpoints.sweep()
        if last:
            self.written_s = time.monotonic()
            self.took_s = self.written_s - started_s

    def _write_tables(self, module: TrainDLRM) -> dict[str, Any]:
        return self.checkpoints.write_tables(module.write_tables)


def append_checksum(path: Path) -> None:
    """Append the CRC-32 of a file to it. The file is on the disk afterwards."""
    checksum = crc32_file(path)
    with path.open("ab") as file:
        file.write(checksum.to_bytes(CHECKSUM_BYTES, "little"))
        file.flush()
        os.fsync(file.fileno())


def has_right_checksum(path: Path) -> bool:
    """Return whether a file ends with the CRC-32 of what comes before."""
    num_bytes = path.stat().st_size - CHECKSUM_BYTES
    if num_bytes < 0:
        return False
    with path.open("rb") as file:
        file.seek(num_bytes)
        recorded = int.from_bytes(file.read(), "little")
    return crc32_file(path, num_bytes) == recorded


def checkpoints_of(params: Params, accelerator: str, root: Path) -> Checkpoints:
    """Return the checkpoints of the run that these parameters and root/artifacts/features decide.

    Of the interrupted runs with other parameters, only the latest keeps its checkpoints.
    """
    own = Checkpoints(root / CHECKPOINTS / run_key(params, accelerator, root))
    for path in own.of_others()[:-1]:
        remove(path)
    return own


def run_key(params: Params, accelerator: str, root: Path) -> str:
    """Return the hash of all that decides the result of a run, 16 hexadecimal digits.

    Raises:
        DataError: A feature file that the run reads is missing or damaged.
    """
    features = Artifact.open(root / FEATURES)
    files = [name for part in ("train", "valid", "state") for name in features.names(part)]
    features.paths(files)  # checks them
    warm_start = None
    if warm_start_dir := params.train.warm_start_dir(root):
        warm_start = sha256_file(manifest_in(warm_start_dir))
    decides = {
        "params": params.model_dump(
            mode="json", include={"model": True, "train": DECIDING - ROUNDING}
        ),
        "accelerator": accelerator,
        "warm_start": warm_start,
        "teachers": [sha256_file(manifest_in(path)) for path in params.train.teacher_dirs(root)],
        "features": {name: features.files[name].sha256 for name in files},
        "code": code_hashes("training.stage"),
        "kernels": kernels_name(),
        "versions": {name: version(name) for name in PACKAGES},
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
