"""The machines of a projection: measured costs of steps and servers, and a stated network.

Measured on this CPU, on one core, with real batches: the steps of one device and of a worker, and
the work of a server. Assumed: the network, and what a call of Ray costs (measured once, on this
machine; see benchmarks/results/servers.md).
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.parameter_servers.learning import Learning
from benchmarks.parameter_servers.schedule import Costs, SameRows, Setting, Simulation
from benchmarks.traffic.traffic_model import collectives
from common.config.params import Params
from training.bench.step import Step
from training.distributed.sharding.placement_report import TablePlacement
from training.distributed.sharding.planner import World, choose_kinds, place, table_placements
from training.loop.batches import Rows
from training.loop.losses import logloss
from training.models.dlrm import DLRM
from training.models.factory import Group

JITTER = 0.1  # an assumption: the standard deviation of the logarithm of a step's time
STEPS_PER_WORKER = 16  # that are simulated
HOST_BYTES = 1 << 40  # of the machines that the planner places tables on: more than it needs
ALL_REDUCES = ("dense gradients", "whole tables")


class StepTimes(NamedTuple):
    """Median seconds of a step by the number of its rows, on one core.

    Attributes:
        num_rows: Numbers of rows, ascending.
        seconds: The seconds of each.
    """

    num_rows: Sequence[int]
    seconds: Sequence[float]

    def at(self, num_rows: float) -> float:
        """Return the seconds for a number of rows, by linear interpolation."""
        return float(np.interp(num_rows, self.num_rows, self.seconds))


class Measured(NamedTuple):
    """Measurements on one core.

    Attributes:
        device: A step of one device, with both optimizers.
        worker: A step of a worker: the distinct rows, forward and backward pass, summed gradients.
        read_row_s: Seconds of a server to read a row.
        update_row_s: Seconds of a server to update a row.
        update_dense_s: Seconds of a server to update the dense layers.
        distinct_rows: The mean number of distinct rows of a batch, by its size.
    """

    device: StepTimes
    worker: StepTimes
    read_row_s: float
    update_row_s: float
    update_dense_s: float
    distinct_rows: dict[int, float]


class Machines(NamedTuple):
    """Equal machines and their network; assumptions.

    Attributes:
        speed: How many times as fast as the measured core each of them computes.
        bandwidth: Bytes per second of a machine's port that are reached, in each direction.
        latency_s: Seconds from machine to machine, of an empty message.
        call_s: CPU seconds of a call at each of its ends.
        byte_s: CPU seconds of a byte at each end.
        call_latency_s: Seconds that a message of a call waits, besides CPU time and network.
    """

    speed: float
    bandwidth: float
    latency_s: float
    call_s: float
    byte_s: float
    call_latency_s: float

    def costs(self, measured: Measured) -> Costs:
        """Return what messages and servers cost."""
        return Costs(
            bandwidth=self.bandwidth,
            latency_s=self.latency_s + self.call_latency_s,
            call_s=self.call_s,
            byte_s=self.byte_s,
            read_row_s=measured.read_row_s,
            update_row_s=measured.update_row_s,
            update_dense_s=measured.update_dense_s,
        )


class _Timed:
    """The CPU time of calls, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def call(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        started_s = time.process_time()
        result = function(*arguments)
        self.seconds.setdefault(name, []).append(time.process_time() - started_s)
        return result

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])


def measure(
    params: Params, make: Callable[[], DLRM], batches_of_sizes: dict[int, list[Rows]]
) -> Measured:
    """Measure steps of all sizes, one device and a worker in turns. Uses one thread.

    Args:
        params: The parameters.
        make: Makes the model.
        batches_of_sizes: Some batches of each size, ascending; the first one warms up.
    """
    torch.set_num_threads(1)
    device_s, worker_s, distinct = [], [], {}
    for size, batches in batches_of_sizes.items():
        train_on, timed = Step(make(), logloss, params.train), _Timed()
        work, num_rows = Learning(params, make(), batches, 1, 1, dense_every=1), []
        for ticket, batch in enumerate(batches):
            if ticket == 1:
                timed = _Timed()
            timed.call("device", train_on, batch)
            (rows,) = timed.call("rows", work.rows, ticket)
            num_rows.append(rows)
            timed.call("read", work.read, ticket, 0)
            work.read_dense(ticket)
            timed.call("compute", work.compute, ticket, 0)
            timed.call("update", work.update, ticket, 0)
            timed.call("update_dense", work.update_dense, ticket)
        device_s.append(timed.median("device"))
        worker_s.append(timed.median("rows") + timed.median("compute"))
        distinct[size] = statistics.mean(num_rows)
    largest = distinct[max(distinct)]
    sizes = list(batches_of_sizes)
    return Measured(
        StepTimes(sizes, device_s),
        StepTimes(sizes, worker_s),
        timed.median("read") / largest,
        timed.median("update") / largest,
        timed.median("update_dense"),
        distinct,
    )


def hybrid_placement(
    cardinalities: Sequence[int], dim: int, optimizer: str, batch_size: int, num_machines: int
) -> list[TablePlacement]:
    """Return where `train.parallel: hybrid` places the tables on CPU machines of one rank each."""
    groups = [Group(cardinalities, dim)]
    world = World(num_machines, 1, torch.device("cpu"), 0, HOST_BYTES)
    kinds = choose_kinds(groups, "hybrid", batch_size, world)
    placements = place(groups, kinds, optimizer, batch_size, world)
    return table_placements(groups, placements, optimizer, num_machines)


def hybrid_sending_s(
    placement: Sequence[TablePlacement], batch_size: int, dense_bytes: int, machines: Machines
) -> float:
    """Return the seconds that a synchronous step sends: its collectives follow each other.

    A ring of n machines that adds up takes 2 (n - 1) messages after each other, an all-to-all one.
    """
    num_machines = len(placement[0].rank_bytes)
    if num_machines == 1:
        return 0.0
    seconds = 0.0
    for one in collectives(placement, batch_size, dense_bytes, ranks_per_node=1):
        most = max(float(way.total_n.max()) for way in (one.sent, one.received))
        num_messages = 2 * (num_machines - 1) if one.message in ALL_REDUCES else 1
        seconds += num_messages * machines.latency_s + most / machines.bandwidth
    return seconds


def jitter(seed: int, *shape: int) -> np.ndarray:
    """Return random factors of step times, whose mean is 1."""
    random = np.random.default_rng(seed)
    return random.lognormal(-(JITTER**2) / 2, JITTER, size=shape)


def project_hybrid(
    placement: Sequence[TablePlacement],
    rows_per_machine: float,
    dense_bytes: int,
    measured: Measured,
    machines: Machines,
) -> float:
    """Return the rows per second of a synchronous training; a step takes as long as its slowest."""
    n = len(placement[0].rank_bytes)
    compute_s = measured.device.at(rows_per_machine) / machines.speed
    slowest = float(jitter(0, 1000, n).max(axis=1).mean())
    batch_size = round(n * rows_per_machine)
    sending_s = hybrid_sending_s(placement, batch_size, dense_bytes, machines)
    return batch_size / (compute_s * slowest + sending_s)


class Projected(NamedTuple):
    """A projection of asynchronous training.

    Attributes:
        rows_s: Rows per second.
        applied_between: The mean number of steps that were applied between the beginning of a step
            and its own application.
    """

    rows_s: float
    applied_between: float


def project_servers(
    num_machines: int,
    batch_size: int,
    staleness: int | None,
    dense_every: int,
    row_floats: int,
    dense_bytes: int,
    measured: Measured,
    machines: Machines,
) -> Projected:
    """Simulate machines that each have a worker and a server."""
    num_steps = STEPS_PER_WORKER * (num_machines if staleness != 0 else 2)
    factors = jitter(0, num_steps)
    compute_s = measured.worker.at(batch_size) / machines.speed
    setting = Setting(
        num_machines,
        num_machines,
        staleness,
        dense_every,
        row_floats,
        dense_bytes,
        machines.costs(measured),
        lambda _, ticket: compute_s * float(factors[ticket]),
    )
    share = round(measured.distinct_rows[batch_size] / num_machines)
    steps = Simulation(setting, SameRows([share] * num_machines)).run(num_steps)
    first, last = num_steps // 4, 3 * num_steps // 4  # without the beginning and the end
    seconds = steps[last].applied_s - steps[first].applied_s
    between = statistics.mean(step.applied_between for step in steps[first:last])
    return Projected(batch_size * (last - first) / seconds, between)
