"""A discrete-event simulation of asynchronous training on parameter servers.

W workers train, S servers hold the rows of the embedding tables, and server 0 also holds the dense
layers: the centre. Machine k has worker k and server k. A coordinator gives each step a ticket, in
the order in which steps begin: 0, 1, 2, ... The step with ticket t may begin when all tickets up to
t - 1 - staleness have been applied.

A step pulls the rows of its batch from the servers, computes, and pushes the summed gradients of
these rows; it has been applied when all servers have updated their rows. A worker asks for its next
ticket, and pulls, while it computes. The dense layers are exchanged in one of two ways:

    dense_every 1   the centre is pulled with the rows, and the gradient is pushed with theirs
    dense_every k   a worker trains its own dense layers; after every k-th of its steps it sends
                    their progress to the centre, waits for the centre, and goes on with it

What a step reads and changes is up to `Work`, which is called in the order of the simulated time.
So a real model can be trained exactly as the schedule says (learning.py).

The time of a message is that of its bytes on the sender's and the receiver's port, which pass one
message after the other, and a latency. Calls and bytes also take CPU time at both ends. A server
does one thing after the other.
"""

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count
from typing import NamedTuple, Protocol

FLOAT_BYTES = ID_BYTES = 4
CENTRE = 0  # the server with the dense layers


class Costs(NamedTuple):
    """The costs of messages and servers.

    Attributes:
        bandwidth: Bytes per second of the port of a machine, in each direction.
        latency_s: Seconds between the sending and the arrival of a message without bytes.
        call_s: CPU seconds of a call for its caller, and for the server that answers.
        byte_s: CPU seconds of a byte for its sender, and for its receiver.
        read_row_s: CPU seconds of a server to read a row.
        update_row_s: CPU seconds of a server to update a row.
        update_dense_s: CPU seconds of a server to update the dense layers.
    """

    bandwidth: float
    latency_s: float
    call_s: float
    byte_s: float
    read_row_s: float
    update_row_s: float
    update_dense_s: float


class Setting(NamedTuple):
    """A training on parameter servers.

    Attributes:
        num_workers: W.
        num_servers: S.
        staleness: How many steps may have begun and not been applied when another one begins; None
            sets no bound.
        dense_every: After how many of its steps a worker exchanges the dense layers.
        row_floats: D.
        dense_bytes: Bytes of the dense layers.
        costs: The costs of messages and servers.
        compute_s: The seconds that a worker computes for a ticket, without calls.
    """

    num_workers: int
    num_servers: int
    staleness: int | None
    dense_every: int
    row_floats: int
    dense_bytes: int
    costs: Costs
    compute_s: Callable[[int, int], float]


class Work(Protocol):
    """The reads and updates of the steps. Each method is called at its simulated time."""

    def rows(self, ticket: int) -> Sequence[int]:
        """Return how many rows of each server a step needs, (S,). A step begins."""

    def read(self, ticket: int, server: int) -> None:
        """A server reads the rows of a step."""

    def read_dense(self, ticket: int) -> None:
        """The dense layers of the centre are read for a step."""

    def compute(self, ticket: int, worker: int) -> None:
        """A worker has computed a step with all that was read for it."""

    def update(self, ticket: int, server: int) -> None:
        """A server updates its rows by the gradients of a step."""

    def update_dense(self, ticket: int) -> None:
        """The dense layers of the centre are updated by the gradient of a step."""

    def exchange(self, worker: int) -> None:
        """The centre takes the progress of a worker's dense layers, which then equal the centre."""


class SameRows:
    """Steps that read and change nothing, for the times alone.

    Args:
        rows_of_servers: How many rows of each server a step needs, (S,).
    """

    def __init__(self, rows_of_servers: Sequence[int]) -> None:
        self.rows_of_servers = rows_of_servers

    def rows(self, ticket: int) -> Sequence[int]:
        return self.rows_of_servers

    def read(self, ticket: int, server: int) -> None:
        pass

    def read_dense(self, ticket: int) -> None:
        pass

    def compute(self, ticket: int, worker: int) -> None:
        pass

    def update(self, ticket: int, server: int) -> None:
        pass

    def update_dense(self, ticket: int) -> None:
        pass

    def exchange(self, worker: int) -> None:
        pass


class Step(NamedTuple):
    """The record of a step.

    Attributes:
        ticket: Its ticket.
        worker: The worker that computed it.
        begun_s: When it got its ticket.
        applied_s: When the coordinator knew that it had been applied.
        lowest_open: The lowest ticket that had not been applied when it began.
        applied_between: How many other steps were applied after it began and before it was.
    """

    ticket: int
    worker: int
    begun_s: float
    applied_s: float
    lowest_open: int
    applied_between: int


class Simulation:
    """A run of a setting; `run` may be called once.

    Attributes:
        now_s: The simulated time.
        steps: The steps in the order in which they were applied.
    """

    def __init__(self, setting: Setting, work: Work) -> None:
        self.setting, self.work = setting, work
        self.now_s = 0.0
        self.steps: list[Step] = []
        num_machines = max(setting.num_workers, setting.num_servers)
        self._network = _Network(self, num_machines, setting.costs)
        self._server_free_s = [0.0] * setting.num_servers
        self._coordinator = _Coordinator(self, setting.staleness)
        self._workers = [_Worker(self, number) for number in range(setting.num_workers)]
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()  # events of the same time happen in the order of their numbers

    def run(self, num_steps: int) -> list[Step]:
        """Simulate until so many steps have been applied, and return them."""
        self._coordinator.num_steps = num_steps
        for worker in self._workers:
            worker.ask()
        while self._events:
            self.now_s, _, happens = heapq.heappop(self._events)
            happens()
        return self.steps

    def after(self, seconds: float, happens: Callable[[], None]) -> None:
        """Let something happen after so many seconds."""
        self.at(self.now_s + seconds, happens)

    def at(self, time_s: float, happens: Callable[[], None]) -> None:
        """Let something happen at a time. It may be called before `run`."""
        heapq.heappush(self._events, (time_s, next(self._numbers), happens))

    def call(
        self,
        worker: int,
        server: int,
        num_bytes: tuple[int, int],
        busy_s: float,
        effect: Callable[[], None],
        answered: Callable[[], None],
    ) -> None:
        """Call a server.

        Args:
            worker: The caller.
            server: The server.
            num_bytes: Bytes of the request and of the answer.
            busy_s: CPU seconds of the server, besides those of the call and its bytes.
            effect: What happens when the server has done its work.
            answered: What happens when the worker has the answer.
        """
        costs = self.setting.costs
        asked, answer = num_bytes

        def arrived() -> None:
            seconds = busy_s + costs.call_s + costs.byte_s * (asked + answer)
            free_s = max(self.now_s, self._server_free_s[server]) + seconds
            self._server_free_s[server] = free_s
            self.at(free_s, done)

        def done() -> None:
            effect()
            self._network.send(server, worker, answer, answered)

        self._network.send(worker, server, asked, arrived)


class _Network:
    def __init__(self, simulation: Simulation, num_machines: int, costs: Costs) -> None:
        self.simulation, self.costs = simulation, costs
        self.out_free_s, self.in_free_s = [0.0] * num_machines, [0.0] * num_machines

    def send(self, source: int, target: int, num_bytes: int, arrived: Callable[[], None]) -> None:
        """Send a message; one within a machine does not use its port."""
        simulation, latency_s = self.simulation, self.costs.latency_s
        if source == target or not num_bytes:
            simulation.after(latency_s, arrived)
            return
        seconds = num_bytes / self.costs.bandwidth
        begins_s = max(simulation.now_s, self.out_free_s[source])
        self.out_free_s[source] = begins_s + seconds

        def reaches() -> None:
            free_s = max(simulation.now_s, self.in_free_s[target]) + seconds
            self.in_free_s[target] = free_s
            simulation.at(free_s, arrived)

        simulation.at(begins_s + latency_s, reaches)


class _Coordinator:
    """Gives out the tickets."""

    def __init__(self, simulation: Simulation, staleness: int | None) -> None:
        self.simulation, self.staleness = simulation, staleness
        self.num_steps = self.next_ticket = self.lowest_open = self.num_applied = 0
        self.waiting: deque[_Worker] = deque()
        self.begun: dict[int, tuple[float, int, int]] = {}  # of the steps that are not applied

    def ask(self, worker: "_Worker") -> None:
        self.waiting.append(worker)
        self._give()

    def applied(self, ticket: int, worker: int) -> None:
        begun_s, lowest_open, num_applied = self.begun.pop(ticket)
        between = self.num_applied - num_applied
        self.num_applied += 1
        self.lowest_open = min(self.begun, default=self.next_ticket)
        step = Step(ticket, worker, begun_s, self.simulation.now_s, lowest_open, between)
        self.simulation.steps.append(step)
        self._give()

    def _give(self) -> None:
        while self.waiting and self.next_ticket < self.num_steps and self._may_begin():
            ticket, worker = self.next_ticket, self.waiting.popleft()
            self.begun[ticket] = (self.simulation.now_s, self.lowest_open, self.num_applied)
            self.next_ticket += 1
            self.lowest_open = min(self.begun)
            worker.get(ticket)

    def _may_begin(self) -> bool:
        return self.staleness is None or self.next_ticket - self.lowest_open <= self.staleness


class _Worker:
    def __init__(self, simulation: Simulation, number: int) -> None:
        self.simulation, self.number = simulation, number
        self.setting, self.work = simulation.setting, simulation.work
        self.pulled: tuple[int, Sequence[int]] | None = None  # a ticket with its rows
        self.is_busy = False  # it computes, or waits for the centre
        self.num_steps = 0

    def ask(self) -> None:
        """Ask the coordinator for the next ticket."""
        latency_s = self.setting.costs.latency_s
        self.simulation.after(latency_s, lambda: self.simulation._coordinator.ask(self))

    def get(self, ticket: int) -> None:
        """Get a ticket from the coordinator, and pull what the step needs."""
        self.simulation.after(self.setting.costs.latency_s, lambda: self._pull(ticket))

    def _pull(self, ticket: int) -> None:
        setting, work, costs = self.setting, self.work, self.setting.costs
        rows = work.rows(ticket)
        calls = []
        for server, num_rows in enumerate(rows):
            if num_rows:
                num_bytes = ID_BYTES * num_rows, FLOAT_BYTES * setting.row_floats * num_rows
                busy_s = costs.read_row_s * num_rows
                calls.append((server, num_bytes, busy_s, _bind(work.read, ticket, server)))
        if setting.dense_every == 1:
            calls.append((CENTRE, (0, setting.dense_bytes), 0.0, _bind(work.read_dense, ticket)))
        self._call_all(calls, lambda: self._have(ticket, rows))

    def _have(self, ticket: int, rows: Sequence[int]) -> None:
        self.pulled = ticket, rows
        self._go_on()

    def _go_on(self) -> None:
        """Compute the step that has been pulled, unless the worker is busy, and pull the next."""
        if self.is_busy or self.pulled is None:
            return
        (ticket, rows), self.pulled, self.is_busy = self.pulled, None, True
        seconds = self.setting.compute_s(self.number, ticket) + self._calls_s(rows)
        self.simulation.after(seconds, lambda: self._computed(ticket, rows))
        self.ask()

    def _calls_s(self, rows: Sequence[int]) -> float:
        """Return the CPU seconds of the worker for the calls and the bytes of a step."""
        setting, costs = self.setting, self.setting.costs
        num_calls = 2 * sum(num_rows > 0 for num_rows in rows)
        num_bytes = 2 * sum(rows) * (ID_BYTES + FLOAT_BYTES * setting.row_floats)
        if setting.dense_every == 1:
            num_calls += 2
            num_bytes += 2 * setting.dense_bytes
        elif self._exchanges_next:
            num_calls += 1
            num_bytes += 2 * setting.dense_bytes
        return costs.call_s * num_calls + costs.byte_s * num_bytes

    @property
    def _exchanges_next(self) -> bool:
        """Whether the step that has not been counted yet ends with an exchange."""
        every = self.setting.dense_every
        return every > 1 and (self.num_steps + 1) % every == 0

    def _computed(self, ticket: int, rows: Sequence[int]) -> None:
        setting, work, costs = self.setting, self.work, self.setting.costs
        work.compute(ticket, self.number)
        exchanges = self._exchanges_next
        self.num_steps += 1
        calls = []
        for server, num_rows in enumerate(rows):
            if num_rows:
                num_bytes = (ID_BYTES + FLOAT_BYTES * setting.row_floats) * num_rows, 0
                busy_s = costs.update_row_s * num_rows
                calls.append((server, num_bytes, busy_s, _bind(work.update, ticket, server)))
        if setting.dense_every == 1:
            effect = _bind(work.update_dense, ticket)
            calls.append((CENTRE, (setting.dense_bytes, 0), costs.update_dense_s, effect))
        self._call_all(calls, lambda: self._pushed(ticket))
        if exchanges:
            both_ways = setting.dense_bytes, setting.dense_bytes
            effect = _bind(work.exchange, self.number)
            self._call_all([(CENTRE, both_ways, costs.update_dense_s, effect)], self._is_free)
        else:
            self._is_free()

    def _is_free(self) -> None:
        self.is_busy = False
        self._go_on()

    def _pushed(self, ticket: int) -> None:
        coordinator, latency_s = self.simulation._coordinator, self.setting.costs.latency_s
        self.simulation.after(latency_s, lambda: coordinator.applied(ticket, self.number))

    def _call_all(
        self,
        calls: Sequence[tuple[int, tuple[int, int], float, Callable[[], None]]],
        all_answered: Callable[[], None],
    ) -> None:
        """Call servers, of which there is at least one; `all_answered` follows the last answer."""
        num_open = len(calls)

        def answered() -> None:
            nonlocal num_open
            num_open -= 1
            if not num_open:
                all_answered()

        for server, num_bytes, busy_s, effect in calls:
            self.simulation.call(self.number, server, num_bytes, busy_s, effect, answered)


def _bind(method: Callable[..., None], *arguments: int) -> Callable[[], None]:
    return lambda: method(*arguments)
