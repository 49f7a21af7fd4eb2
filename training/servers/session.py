"""The actors of a run, as the driver starts, calls and replaces them."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from numpy.typing import NDArray

from common.config.params import Params
from common.logs import get_logger
from training.distributed.sharding.placement_report import TablePlacement
from training.models.dlrm import DLRM
from training.models.embedding_tables import Tables
from training.models.factory import Group
from training.servers.coordinator import Coordinator, StepRecord
from training.servers.dense_server import DenseServer, Floats
from training.servers.engine import Actor, ActorLost, Engine, Pending
from training.servers.served_tables import ServedTables
from training.servers.table_server import TableServer
from training.servers.traffic import Traffic
from training.servers.worker import Peers, Scores, Worker
from training.tensor_files import FLOAT32_BYTES

log = get_logger("train")

MAX_LOST = 20  # actors that are replaced in a run
STRETCHES_OF_WORKER = 4  # in a segment, about, so that no worker waits long for the last one
VALIDATION_BATCHES = 4  # that a worker scores in one call
POLL_S = 1.0
STALLED_S = 300.0  # the first step of a worker may have to wait for a compiler and a slow disk
SLOWEST_BYTES_PER_S = 20e6  # of a disk or a network that all table servers share
SERVED = "served"  # the kind of all tables in the placement
END_S = 60.0  # how long workers may take to end a segment that was given up


class ServersFailed(ConnectionError):  # noqa: N818
    """A training with parameter servers cannot go on.

    Args:
        reason: What was lost.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"training with parameter servers failed: {reason}; run it again, and it goes on from"
            " its last checkpoint"
        )


class ServerLost(Exception):  # noqa: N818
    """A server has ended, and with it a share of the weights."""


class DenseState(NamedTuple):
    """The dense layers' weights, their averages (None without), and the optimizer's state."""

    weights: Floats
    averages: Floats | None
    optimizer: list[Floats]


class Session:
    """The actors of a run.

    Args:
        engine: Starts the actors.
        params: The parameters of params.yaml; of an ensemble, with the seed of the member.
        root: The directory with artifacts/, which all actors share.
    """

    def __init__(self, engine: Engine, params: Params, root: Path) -> None:
        self.engine, self.params, self.root = engine, params, root.resolve()
        self.options = params.train.servers
        self.traffic = Traffic()
        self.table_bytes = 0  # of the rows on all servers together
        self.tables = [self._start_table_server(k) for k in range(self.options.servers)]
        self.coordinator = engine.start(
            "the coordinator", Coordinator, concurrency=self.options.workers + 2
        )
        self.dense: Actor | None = None
        self.start_dense: Callable[[], Actor] | None = None
        self.start_worker: Callable[[int], Actor] | None = None
        self.workers: dict[int, Actor] = {}
        self.running: dict[int, Pending] = {}
        self.next_worker = 0
        self.num_taken = 0
        self.records: deque[StepRecord] = deque()
        self.is_new = True

    def make_tables(
        self,
        cardinalities: Sequence[int],
        embedding_dim: int,
        generator: torch.Generator,
        bounds: Sequence[float] | None = None,
    ) -> Tables:
        """Make a group of tables whose rows are on the servers: a MakeTables."""
        return ServedTables(
            cardinalities,
            embedding_dim,
            generator,
            bounds,
            call=self.call_tables,
            num_servers=len(self.tables),
            has_sums=self.params.train.embedding_optimizer.name == "rowwise_adagrad",
        )

    def call_tables(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call a method of all table servers; returns their results.

        Raises:
            ServerLost: One of them has ended, or does not answer.
        """
        calls = [
            server.call(method, *args) for server, args in zip(self.tables, arguments, strict=True)
        ]
        return [self._get(server, call) for server, call in zip(self.tables, calls, strict=True)]

    def _call_all(self, method: str, *args: Any) -> list[Any]:
        return self.call_tables(method, [args] * len(self.tables))

    def take_tables(self, model: DLRM) -> None:
        """Number the groups of tables of a model as the servers do; set their first values again.

        The first values are set only if the servers have trained before.
        """
        for number, tables in enumerate(model.embeddings.tables):
            assert isinstance(tables, ServedTables)
            tables.group = number
            if not self.is_new:
                tables.reset_parameters()
                tables.reset_optimizer()

    def placement(self, groups: Sequence[Group]) -> list[TablePlacement]:
        """Return the placement of each table for the report, with the name GROUP.TABLE.

        Args:
            groups: The groups of tables of the model, in their order in it.
        """
        self.table_bytes = sum(
            FLOAT32_BYTES * group.embedding_dim * sum(group.cardinalities) for group in groups
        )
        of_servers = self._call_all("num_bytes")
        return [
            TablePlacement(
                f"{g}.{k}",
                num_rows,
                group.embedding_dim,
                SERVED,
                [num_bytes[g][k] for num_bytes in of_servers],
            )
            for g, group in enumerate(groups)
            for k, num_rows in enumerate(group.cardinalities)
        ]

    def begin(
        self,
        steps_per_epoch: int,
        num_steps: int,
        standardise: dict[str, NDArray[Any]],
        dense: DenseState,
    ) -> None:
        """Start the dense server and the workers, and give them the dense weights.

        Args:
            steps_per_epoch: The number of steps of an epoch.
            num_steps: The number of steps of the run.
            standardise: The state of `model.standardise`.
            dense: The weights, averages and the optimizer's state that the run begins with.
        """
        if self.dense is None:
            self.start_dense = lambda: self.engine.start(
                "the dense server", DenseServer, self.params, self.root, steps_per_epoch, num_steps
            )
            self.start_worker = lambda number: self.engine.start(
                f"worker {number}",
                Worker,
                self.params,
                self.root,
                number,
                self.peers,
                num_steps,
                standardise,
            )
            self.dense = self.start_dense()
            for _ in range(self.options.workers):
                self._add_worker()
        self._ask(self.dense, "load", *dense)
        self.is_new = False

    @property
    def peers(self) -> Peers:
        """The actors that a worker calls."""
        assert self.dense is not None
        return Peers(self.coordinator, self.dense, self.tables)

    def begin_segment(self, start: int, stop: int) -> None:
        """Let the workers train on the steps start .. stop - 1."""
        stretch = max(1, (stop - start) // (STRETCHES_OF_WORKER * self.options.workers))
        self._ask(self.peers.dense, "begin_segment", start)
        self._ask(self.coordinator, "begin_segment", start, stop, stretch, self.options.staleness)
        self.num_taken = 0
        self.records.clear()
        for number in self.workers:
            self._train(number)

    def next_record(self) -> StepRecord:
        """Wait for the next step of the segment that has been applied.

        Raises:
            ServerLost: A table server or the dense server has ended.
            ServersFailed: The coordinator has ended, or too many actors have.
        """
        deadline_s = time.monotonic() + STALLED_S
        while not self.records:
            asked = self.coordinator.call("records_after", self.num_taken)
            while True:
                done = self.engine.wait_any([asked, *self.running.values()], POLL_S)
                self._look_at_workers(done)
                if time.monotonic() > deadline_s:
                    self._end_what_hangs(self.running)
                    deadline_s = time.monotonic() + STALLED_S
                if asked in done:
                    break
            found = self._get(self.coordinator, asked)
            self.num_taken += len(found)
            self.records.extend(found)
        record = self.records.popleft()
        self.traffic.add_step(record)
        return record

    def end_segment(self) -> DenseState:
        """Wait until all workers have ended the segment; returns the dense state at the barrier."""
        while self.running:
            self._look_at_workers(self._wait_for_workers(self.running))
        dense = self.peers.dense
        barrier = dense.call("barrier")
        self._call_all("barrier")
        self._get(dense, barrier)
        calls = [dense.call("pull", None), dense.call("averages"), dense.call("optimizer_state")]
        return DenseState(*(self._get(dense, call) for call in calls))

    def scores(self, weights: Floats, num_batches: int) -> Iterator[Scores]:
        """Yield the scores of all validation batches, in their order.

        Args:
            weights: The weights of the dense layers to score with.
            num_batches: The number of batches.
        """
        starts = deque(range(0, num_batches, VALIDATION_BATCHES))
        busy: dict[int, tuple[int, Pending]] = {}  # by worker: the first batch, and the call
        found: dict[int, list[Scores]] = {}  # by first batch
        for first in range(0, num_batches, VALIDATION_BATCHES):
            while first not in found:
                for number, worker in self.workers.items():
                    if number not in busy and starts:
                        start = starts.popleft()
                        stop = min(start + VALIDATION_BATCHES, num_batches)
                        busy[number] = (start, worker.call("score", weights, start, stop))
                calls = {number: call for number, (_, call) in busy.items()}
                done = self._wait_for_workers(calls)
                for number, (start, call) in list(busy.items()):
                    if call in done:
                        del busy[number]
                        try:
                            found[start] = call.result()
                        except ActorLost as lost:
                            starts.appendleft(start)
                            self._replace_worker(number, lost)
            yield from found.pop(first)

    def write_tables(self, directory: Path) -> dict[str, int]:
        """Let the table servers write their rows; returns the CRC-32 of each file."""
        directory.mkdir(parents=True)
        checksums: dict[str, int] = {}
        for of_server in self._call_all("write", directory.resolve()):
            checksums |= of_server
        return checksums

    def read_tables(self, directory: Path) -> None:
        """Let the table servers read their rows."""
        self._call_all("read", directory.resolve())

    def recover(self, lost: ServerLost) -> None:
        """Replace the servers that have ended; all workers have ended the segment afterwards.

        The rows and the dense weights are to be loaded again then.
        """
        log.warning(f"{lost}: it is replaced, and the run goes back to its last checkpoint")
        self._ask(self.coordinator, "end_segment")
        deadline_s = time.monotonic() + END_S
        while self.running and time.monotonic() < deadline_s:
            for call in self.engine.wait_any(list(self.running.values()), POLL_S):
                self.running = {k: other for k, other in self.running.items() if other != call}
        for number in self.running:  # a worker that hangs is found to be lost below
            self.engine.kill(self.workers[number])
        self.running.clear()
        self.tables[:] = [
            server if self._is_alive(server, "barrier") else self._replace_server(k)
            for k, server in enumerate(self.tables)
        ]
        if self.dense is None or self.start_dense is None:  # the run had not begun
            return
        if not self._is_alive(self.dense, "barrier"):
            self._count("dense server")
            self.engine.kill(self.dense)
            self.dense = self.start_dense()
        for number, worker in list(self.workers.items()):
            if not self._is_alive(worker, "set_peers", self.peers):
                self._count("worker")
                self.engine.kill(self.workers.pop(number))
                self._add_worker()

    def _wait_for_workers(self, calls: Mapping[int, Pending]) -> list[Pending]:
        """Wait until one of the calls of some workers has ended; returns those that have."""
        deadline_s = time.monotonic() + STALLED_S
        while not (done := self.engine.wait_any(list(calls.values()), POLL_S)):
            if time.monotonic() > deadline_s:
                self._end_what_hangs(calls)
                deadline_s = time.monotonic() + STALLED_S
        return done

    def _end_what_hangs(self, calls: Mapping[int, Pending]) -> None:
        """End a server that does not answer, or else the worker whose step is the oldest.

        If no step has begun, the first of the workers is ended that are waited for.

        Args:
            calls: The calls of the workers that are waited for.

        Raises:
            ServerLost: A server was ended.
            ServersFailed: The coordinator does not answer.
        """
        asked = self.coordinator.call("oldest")
        pings = [(server, server.call("ping")) for server in (*self.tables, self.peers.dense)]
        for server, ping in pings:
            self._get(server, ping)
        number = self._get(self.coordinator, asked)
        hanging = next((one for one in (number, *calls) if one in calls), None)
        if hanging is None:
            raise ServersFailed("steps are left, and no worker trains")
        worker = self.workers[hanging]
        log.warning(f"nothing has been done for {STALLED_S:.0f} s: {worker.name} is ended")
        self.engine.kill(worker)

    def _train(self, number: int) -> None:
        self.running[number] = self.workers[number].call("train")

    def _look_at_workers(self, done: Sequence[Pending]) -> None:
        """Replace workers that have ended, and let idle ones take steps that others have lost."""
        for number, call in list(self.running.items()):
            if call not in done:
                continue
            del self.running[number]
            try:
                call.result()
            except ActorLost as lost:
                self._replace_worker(number, lost)
                self._ask(self.coordinator, "lose", number)
                for idle in self.workers.keys() - self.running.keys():
                    self._train(idle)

    def _replace_worker(self, number: int, lost: ActorLost) -> None:
        """Replace a worker that has ended; raises if it is another actor that has."""
        if lost.actor != self.workers[number].name:
            self._raise_for(lost)
        log.warning(f"{lost}; another one takes over its steps")
        self._count("worker")
        self.engine.kill(self.workers.pop(number))  # makes its place free
        self._add_worker()

    def _raise_for(self, lost: ActorLost) -> NoReturn:
        names = [server.name for server in (*self.tables, self.dense) if server is not None]
        if lost.actor in names:
            raise ServerLost(str(lost)) from None
        raise ServersFailed(str(lost)) from None

    def _ask(self, actor: Actor, method: str, *args: Any) -> Any:
        """Call a method of a server or the coordinator, and return its result as `_get` does."""
        return self._get(actor, actor.call(method, *args))

    def _get(self, actor: Actor, call: Pending) -> Any:
        """Return the result of a call; its actor is ended if it does not answer.

        Raises:
            ServerLost: The server has ended, or was ended.
            ServersFailed: The coordinator has ended, or was ended.
        """
        deadline_s = time.monotonic() + self._patience_s
        while not self.engine.wait_any([call], POLL_S):
            if time.monotonic() > deadline_s:
                self.engine.kill(actor)
                reason = f"it did not answer for {self._patience_s:.0f} s, and was ended"
                self._raise_for(ActorLost(actor.name, reason))
        try:
            return call.result()
        except ActorLost as lost:
            self._raise_for(lost)

    @property
    def _patience_s(self) -> float:
        """The time after which a server without an answer is taken to hang.

        A server runs one method at a time, so while it draws, writes or reads its rows it does not
        answer a ping either, and its progress cannot be seen. The bytes of its rows bound how long
        this takes. Those of all servers count, because they may share a disk, and because each
        draws the initial values of all rows.
        """
        return STALLED_S + self.table_bytes / SLOWEST_BYTES_PER_S

    def _is_alive(self, actor: Actor, method: str, *args: Any) -> bool:
        """Return whether an actor answers a call in time."""
        call = actor.call(method, *args)
        if not self.engine.wait_any([call], self._patience_s):
            return False
        try:
            call.result()
        except ActorLost:
            return False
        return True

    def _count(self, kind: str) -> None:
        self.traffic.lost[kind] += 1
        if self.traffic.lost.total() > MAX_LOST:
            counts = ", ".join(f"{kind}: {count}" for kind, count in self.traffic.lost.items())
            raise ServersFailed(
                f"more than {MAX_LOST} actors have ended ({counts}), perhaps for want of memory"
            )

    def _start_table_server(self, number: int) -> Actor:
        name = f"table server {number}"
        num_servers = self.options.servers
        return self.engine.start(name, TableServer, self.params, self.root, number, num_servers)

    def _replace_server(self, number: int) -> Actor:
        self._count("table server")
        self.engine.kill(self.tables[number])
        return self._start_table_server(number)

    def _add_worker(self) -> None:
        assert self.start_worker is not None
        self.workers[self.next_worker] = self.start_worker(self.next_worker)
        self.next_worker += 1
