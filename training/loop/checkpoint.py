"""What an interrupted run goes on from: root/runs/checkpoints/KEY/last.pt, and best.pt with the weights of the lowest validation loss.

Where tables are sharded, each rank writes its part of them to a directory beside the files, tables_N, which a file names that was written
after it. So a file that is there has all it needs; a directory that none names is removed. Any number of ranks goes on from what any
other number wrote.

KEY is a hash of all that decides a run: its parameters, the features, the code. So a run with other parameters never goes on from a
stranger's weights. A file is torch.save's archive of tensors and plain values; it is opened with weights_only=True. best.pt may be
ahead of last.pt: what follows last.pt is done again, and comes out the same.
"""

import hashlib
import json
import os
import time
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from common.code_hash import code_hashes
from common.config.params import Params
from common.files import DataError, remove, replaced, sha256_file
from features.dataset.stage import FEATURES
from training.distributed.collectives import broadcast_value
from training.distributed.sharding.table_checkpoint import (
    Parts,
    Saved,
    load_weights,
    parts_of,
    read_parts,
    write_parts,
)
from training.inference.bundle import DECIDING, manifest_in
from training.kernels.compiler import kernels_name
from training.loop.lightning_module import TrainDLRM
from training.models.dlrm import DLRM

CHECKPOINTS = Path("runs/checkpoints")
LAST, BEST, TABLES = "last.pt", "best.pt", "tables_"
FORMAT = "clickmill checkpoint 1"
RANKS = {"devices", "nodes", "parallel"}  # decide how sums are rounded, and no more
VALIDATION_SHARE = 0.02
PACKAGES = ("torch", "pytorch-lightning", "numpy", "pyarrow")


class Checkpoints:
    """The files of one run. Several ranks read them, the first one writes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, name: str, content: dict[str, Any]) -> None:
        """content: plain values and tensors, which are not copied on the way. The file is on the disk before it takes its name."""
        with replaced(self.directory / name) as scratch:
            torch.save({"format": FORMAT, "key": self.directory.name, **content}, scratch)
            with scratch.open("rb+") as file:
                os.fsync(file.fileno())

    def read(self, name: str) -> dict[str, Any] | None:
        """What was written, its tensors mapped from the file; None if there is none. Raises DataError for any other file."""
        path = self.directory / name
        try:
            with zipfile.ZipFile(path) as archive:
                if archive.testzip():  # torch.load does not look at the checksums
                    raise zipfile.BadZipFile("damaged")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except FileNotFoundError:
            return None
        except (
            Exception
        ) as error:  # whatever the archive's and torch's readers say about foreign bytes
            reason, *_ = str(error).splitlines() or [type(error).__name__]
            if (
                type(error).__name__ == "UnpicklingError"
            ):  # torch's own words say how to open it nevertheless
                reason = "it has more in it than tensors and plain values"
            raise self._refused(path, f"not a whole checkpoint ({reason})") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise self._refused(path, f"not a checkpoint of this clickmill ({FORMAT!r} expected)")
        if content.get("key") != self.directory.name:
            raise self._refused(path, f"the checkpoint of another run, {content.get('key')}")
        return content

    def of_others(self) -> list[Path]:
        """The directories of other runs, the latest one last."""
        others = [path for path in self.directory.parent.glob("*") if path != self.directory]
        return sorted(others, key=lambda path: path.stat().st_mtime)

    def check_best(self, step: int) -> None:
        """Raises DataError unless the weights of the validation at this step, or of one that a killed run came to later, are there."""
        best = self.read(BEST)
        if best is None or best["step"] < step:
            raise self._refused(
                self.directory / BEST,
                f"the weights of step {step} expected, {best and best['step']} found",
            )

    def load_best(self, model: DLRM, step: int) -> None:
        """The weights of the validation at this step into a model that has all tables. Raises DataError when they are not there."""
        best = self.read(BEST)
        if best is None or best["step"] != step:
            raise self._refused(
                self.directory / BEST,
                f"the weights of step {step} expected, {best and best['step']} found",
            )
        saved = self.tables_of(best)
        load_weights(model, best["weights"], without_tables=saved is not None)
        if saved is not None:
            read_parts(saved, parts_of(model), alone=True, whole=True)

    def write_tables(self, parts: Parts) -> dict[str, Any]:
        """Collective. What a file has to say of them, as "tables"."""
        number = (
            max(
                (int(path.name.removeprefix(TABLES)) for path in self.directory.glob(f"{TABLES}*")),
                default=0,
            )
            + 1
        )
        directory = self.directory / f"{TABLES}{broadcast_value(number)}"
        return {"directory": directory.name, "checksums": write_parts(directory, parts)}

    def tables_of(self, content: dict[str, Any]) -> Saved | None:
        """The tables that a file names."""
        tables = content.get("tables")
        return Saved(self.directory / tables["directory"], tables["checksums"]) if tables else None

    def sweep(self) -> None:
        """Remove the tables that no file names."""
        named = {
            saved.directory
            for name in (LAST, BEST)
            if (content := self.read(name)) and (saved := self.tables_of(content))
        }
        for path in self.directory.glob(f"{TABLES}*"):
            if path not in named:
                remove(path)

    def _refused(self, path: Path, reason: str) -> DataError:
        return DataError(f"{path}: {reason}; remove {self.directory} to train from the start")

    def remove(self) -> None:
        remove(self.directory)


class Keeper(pl.Callback):
    """Writes the checkpoints of a run: best after a validation, last too unless that took more than VALIDATION_SHARE of the time, and
    last when every_s seconds have passed.

    Only where the curve of the training has just got a point, so that nothing is half measured. When it writes has no effect on what
    is learned.
    """

    def __init__(self, checkpoints: Checkpoints, every_s: float) -> None:
        self.checkpoints, self.every_s = checkpoints, every_s
        self.written_s, self.took_s = time.monotonic(), 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, module: TrainDLRM, *_: Any) -> None:  # type: ignore[override]
        """A step that a validation follows is not done before that."""
        if module.plan.records_at(module.step) and not module.plan.validates_at(module.step):
            self._write(module, best=False, last=self._is_due(self.every_s))

    def on_validation_end(self, trainer: pl.Trainer, module: TrainDLRM) -> None:  # type: ignore[override]
        self._write(
            module,
            best=module.best.step == module.step,
            last=self._is_due(min(self.every_s, self.took_s / VALIDATION_SHARE)),
        )

    def _is_due(self, after_s: float) -> bool:
        """Whether the last one is that old, by the first rank's clock."""
        return bool(broadcast_value(time.monotonic() - self.written_s >= after_s))

    def _write(self, module: TrainDLRM, *, best: bool, last: bool) -> None:
        if not (best or last):
            return
        started_s = time.monotonic()
        parts = parts_of(module.model, module.embedding_optimizers, module.mean)
        tables = {"tables": self.checkpoints.write_tables(parts)} if module.sharded else {}
        if module.trainer.is_global_zero:
            if best:
                self.checkpoints.write(
                    BEST, {"step": module.step, "weights": module.judged.state_dict(), **tables}
                )
            if last:
                self.checkpoints.write(LAST, {**module.state(), **tables})
            if tables:
                self.checkpoints.sweep()
        if last:
            self.written_s = time.monotonic()
            self.took_s = self.written_s - started_s


def checkpoints_of(params: Params, accelerator: str, root: Path) -> Checkpoints:
    """Those of the run that these parameters and root/artifacts/features decide.

    Of the runs that were interrupted with others, the latest keeps its checkpoints; the others' are removed.
    """
    own = Checkpoints(root / CHECKPOINTS / run_key(params, accelerator, root))
    for path in own.of_others()[:-1]:
        remove(path)
    return own


def run_key(params: Params, accelerator: str, root: Path) -> str:
    """16 hex digits."""
    files = sorted(
        path
        for part in ("train", "valid", "state")
        for path in (root / FEATURES / part).rglob("*")
        if path.is_file()
    )
    decides = {
        "params": params.model_dump(
            mode="json", include={"model": True, "train": DECIDING - RANKS}
        ),
        "accelerator": accelerator,
        "start": sha256_file(manifest_in(root / params.train.warm_start_from))
        if params.train.warm_start_from
        else None,
        "features": {
            path.relative_to(root / FEATURES).as_posix(): sha256_file(path) for path in files
        },
        "code": code_hashes("training.stage", without=("features.dataset.stage", "features.collect")),
        "kernels": kernels_name(),
        "versions": {name: version(name) for name in PACKAGES},
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
