"""Counts the bytes that a gloo rank sends in a training step, in two ways.

One way adds up the collectives of torch.distributed, the other asks the operating system (Linux).
"""

import os
import socket
import struct
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from common.artifact import Artifact
from common.config.params import Params
from features.schema.schema import Schema
from training.distributed.sharding.placement_report import TablePlacement
from training.loop.batches import Batch
from training.loop.datamodule import FeatureData
from training.loop.lightning_module import TrainDLRM
from training.loop.losses import make_loss
from training.loop.schedule import Schedule
from training.models.factory import build_model, groups_of
from training.stage import make_parallelism, make_trainer, quiet_lightning

# struct tcp_info of linux/tcp.h (since 4.19): its size, and the offset of tcpi_bytes_sent, which
# tcpi_bytes_retrans follows
TCP_INFO_BYTES, BYTES_SENT_OFFSET = 216, 200
EPOCHS = 1000  # large, so that no point of the curve is between the counted steps
WARM_STEPS = 2  # in which TorchRec and DDP make their buffers and agree on their sizes


class Counted(NamedTuple):
    """The bytes that this rank sends in a step, as a mean over several steps.

    Attributes:
        by_system: Bytes, counted by the operating system.
        by_collective: Bytes, by collective and dtype.
        plan: The placement of the tables; empty with train.parallel: data.
        dense_bytes: Bytes of the gradients of the dense layers.
    """

    by_system: float
    by_collective: dict[tuple[str, str], float]
    plan: list[TablePlacement]
    dense_bytes: int


class Done(Exception):  # noqa: N818
    """All steps have been counted."""


class Collectives(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up what this rank sends, by the algorithms of gloo (traffic_model.py).

    All operators of c10d are dispatched here, also those of DDP's C++ code and of backward passes.
    An unknown one raises NotImplementedError.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sent: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func.overloadpacket.__name__.strip("_")
            for tensor, num_bytes in _sent_by(name, args):
                self.sent[name, str(tensor.dtype).removeprefix("torch.")] += num_bytes  # type: ignore[assignment]
        return func(*args, **(kwargs or {}))


def _sent_by(name: str, args: Sequence[Any]) -> list[tuple[Tensor, float]]:
    """Return the input of a collective and the bytes of it that leave this rank."""
    if name == "barrier":
        return []
    if name == "allreduce":
        tensor, n = args[0][0], dist.ProcessGroup.unbox(args[1]).size()
        return [(tensor, 2 * (n - 1) / n * tensor.nbytes)]
    if name in ("allgather", "allgather_base"):
        tensor = args[1][0] if name == "allgather" else args[1]
        return [(tensor, (dist.ProcessGroup.unbox(args[2]).size() - 1) * tensor.nbytes)]
    if name == "alltoall_base":
        _, tensor, boxed, _, splits = args[:5]
        group = dist.ProcessGroup.unbox(boxed)
        own = splits[group.rank()] if splits else len(tensor) // group.size()
        return [(tensor, tensor[own:].nbytes)]
    raise NotImplementedError(f"c10d's {name} is not counted here")


def sent_by_system() -> int:
    """Return the payload bytes that this process has sent by TCP, without retransmissions."""
    total = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if not str(entry.readlink()).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as connection:
                is_ip = connection.family in (socket.AF_INET, socket.AF_INET6)
                if is_ip and connection.type == socket.SOCK_STREAM:
                    info = connection.getsockopt(
                        socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES
                    )
                    sent, retransmitted = struct.unpack_from("QQ", info, BYTES_SENT_OFFSET)
                    total += sent - retransmitted
        except FileNotFoundError:  # the descriptor of the folder itself
            continue
    return total


class Counting(TrainDLRM):
    """A module that counts what is sent in a number of steps, and then ends the run."""

    def count(self, num_steps: int) -> None:
        """Set the number of steps that are counted, after WARM_STEPS others."""
        self.last_step, self.collectives = WARM_STEPS + num_steps, Collectives()

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Take a step, and count its collectives."""
        if self.global_step == WARM_STEPS:
            self.sent_before = sent_when_idle()
        if self.global_step == self.last_step:
            self.sent = sent_when_idle() - self.sent_before
            raise Done
        if self.global_step < WARM_STEPS:
            super().training_step(batch, batch_idx)
        else:
            with self.collectives:
                super().training_step(batch, batch_idx)


def sent_when_idle() -> int:
    """Return sent_by_system() after every rank has come here."""
    if dist.is_initialized():
        dist.barrier()
    return sent_by_system()


def count_steps(
    params: Params, features: Path, schema: Schema, cardinalities: Sequence[int], num_steps: int
) -> Counted:
    """Count what this rank, a worker of torchrun, sends in some steps. Collective.

    It trains with the strategy, module and loader of the train stage.

    Args:
        params: The parameters.
        features: Features, an epoch of which has more than WARM_STEPS + num_steps steps.
        schema: The schema of the features.
        cardinalities: Rows of each table.
        num_steps: Steps to count.
    """
    quiet_lightning()
    params = params.model_copy(
        update={
            "train": params.train.model_copy(
                update={"epochs": EPOCHS, "validations": 1, "logger": "none"}
            )
        }
    )
    parallelism = make_parallelism(params.train, groups_of(params.model, cardinalities), "cpu")
    model = build_model(
        params.model,
        cardinalities,
        len(schema.dense_features),
        torch.Generator().manual_seed(params.train.seed),
        parallelism.make_tables,
    )
    data = FeatureData(Artifact.open(features), schema, params.train)
    schedule = Schedule.make(EPOCHS, data.train_batches().steps_per_epoch, 1)
    module = Counting(model, make_loss(params.model.loss), params.train, schedule)
    module.count(num_steps)
    trainer = make_trainer(params.train, features, "cpu", schedule, parallelism.strategy)
    with suppress(Done):
        trainer.fit(module, data)
    dense_bytes = sum(weight.nbytes for weight in model.parameters() if weight.requires_grad)
    sharded_placement = parallelism.placement if params.train.parallel != "data" else []
    sent = {kind: num_bytes / num_steps for kind, num_bytes in module.collectives.sent.items()}
    return Counted(module.sent / num_steps, sent, sharded_placement, dense_bytes)
