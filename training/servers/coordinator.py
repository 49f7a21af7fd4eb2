"""The coordinator: an actor that decides which steps of a segment may begin.

A segment is the steps from one barrier to the next. Workers take stretches of consecutive steps, so
that each reads its own part of the log. A step that begins gets a ticket, the number of steps that
have begun before it, and may begin only when all steps with tickets up to t - 1 - staleness have
been applied (stale synchronous parallel, Ho et al. 2013). So a step misses at most `staleness`
updates that began before it, and a slow worker makes the others wait instead of falling behind.

With staleness 0 a step begins when the step before it has been applied: the order is that of a
single device.
"""

import threading
from collections.abc import Callable
from typing import Literal, NamedTuple

from training.loop.metric_parts import MetricParts


class Stretch(NamedTuple):
    """Consecutive steps for one worker, counted over epochs.

    Attributes:
        start: The first step.
        stop: The end, exclusive.
    """

    start: int
    stop: int


class StepRecord(NamedTuple):
    """The report of a worker about a step that has been applied.

    Attributes:
        step: The step, counted over epochs.
        metrics: The losses and correct rows of the step.
        staleness: The number of updates since its rows were asked for; the coordinator counts them.
        pulled_bytes: Bytes of rows that were pulled.
        pushed_bytes: Bytes of gradients of rows.
        dense_bytes: Bytes of dense weights and gradients, both ways.
    """

    step: int
    metrics: MetricParts
    staleness: int
    pulled_bytes: int
    pushed_bytes: int
    dense_bytes: int


class Coordinator:
    """Hands out stretches of steps and tickets, and collects the records of steps.

    Its methods run in threads, one for each worker and one for the driver.

    Args:
        wait_s: The longest time that a call waits; its caller calls again then.
    """

    def __init__(self, wait_s: float = 1.0) -> None:
        self.wait_s = wait_s
        self.changed = threading.Condition()
        self.ended = True
        self.staleness = 0
        self.stretches: list[Stretch] = []  # those that no worker has, the next one last
        self.taken: dict[int, Stretch] = {}  # by worker
        self.free_tickets: list[int] = []  # of steps that were lost, descending
        self.next_ticket = 0
        self.begun: dict[int, tuple[int, int]] = {}  # ticket: worker, updates applied before
        self.num_applied = 0
        self.records: list[StepRecord] = []

    def begin_segment(self, start: int, stop: int, stretch_steps: int, staleness: int) -> None:
        """Begin the steps start .. stop - 1; the tickets begin with `start`.

        Args:
            start: The first step.
            stop: The end, exclusive.
            stretch_steps: The number of steps of a stretch.
            staleness: The number of updates that a step may miss.
        """
        with self.changed:
            self.staleness = staleness
            self.stretches = [
                Stretch(first, min(first + stretch_steps, stop))
                for first in range(start, stop, stretch_steps)
            ][::-1]
            self.taken.clear()
            self.begun.clear()
            self.free_tickets.clear()
            self.next_ticket, self.num_applied = start, 0
            self.records.clear()
            self.ended = False
            self.changed.notify_all()

    def take_stretch(self, worker: int) -> Stretch | Literal["wait"] | None:
        """Return a stretch for a worker; None if the segment has ended or none is left.

        At most staleness + 1 workers have a stretch at a time: more could only wait. "wait" asks
        the worker to call again.
        """
        with self.changed:
            self.taken.pop(worker, None)
            self.changed.notify_all()
            if not self._wait(lambda: self.ended or len(self.taken) <= self.staleness):
                return "wait"
            if self.ended or not self.stretches:
                return None
            self.taken[worker] = self.stretches.pop()
            return self.taken[worker]

    def begin_step(self, worker: int) -> int | Literal["wait"] | None:
        """Return a ticket as soon as a step may begin; None if the segment has ended."""
        with self.changed:
            if not self._wait(lambda: self.ended or self._may_begin()):
                return "wait"
            return None if self.ended else self._ticket(worker)

    def try_begin_step(self, worker: int) -> int | None:
        """Return a ticket if a step may begin at once."""
        with self.changed:
            if self.ended or not self._may_begin():
                return None
            return self._ticket(worker)

    def end_step(self, worker: int, ticket: int, record: StepRecord) -> None:
        """Note that a step has been applied on all servers."""
        with self.changed:
            if ticket not in self.begun:  # of a segment that was ended
                return
            _, applied_before = self.begun.pop(ticket)
            record = record._replace(staleness=self.num_applied - applied_before)
            self.num_applied += 1
            stretch = self.taken[worker]
            assert record.step == stretch.start, (record, stretch)
            self.taken[worker] = Stretch(stretch.start + 1, stretch.stop)
            self.records.append(record)
            self.changed.notify_all()

    def lose(self, worker: int) -> int:
        """Hand the steps of a worker that has ended to others; returns the number of steps."""
        with self.changed:
            tickets = [ticket for ticket, (owner, _) in self.begun.items() if owner == worker]
            for ticket in tickets:
                del self.begun[ticket]
            self.free_tickets = sorted([*self.free_tickets, *tickets], reverse=True)
            left = self.taken.pop(worker, Stretch(0, 0))
            if left.start < left.stop:
                self.stretches.append(left)
            self.changed.notify_all()
            return left.stop - left.start

    def oldest(self) -> int | None:
        """Return the worker with the step that began first of those that have not been applied."""
        with self.changed:
            return self.begun[min(self.begun)][0] if self.begun else None

    def end_segment(self) -> None:
        """Let all workers return."""
        with self.changed:
            self.ended = True
            self.begun.clear()
            self.changed.notify_all()

    def records_after(self, count: int) -> list[StepRecord]:
        """Return the records of the segment but the first `count`, in the order of applying.

        It waits until there is one, for `wait_s` at most.
        """
        with self.changed:
            self._wait(lambda: len(self.records) > count)
            return self.records[count:]

    def _may_begin(self) -> bool:
        ticket = self.free_tickets[-1] if self.free_tickets else self.next_ticket
        oldest = min(self.begun, default=ticket)
        return ticket - oldest <= self.staleness

    def _ticket(self, worker: int) -> int:
        if self.free_tickets:
            ticket = self.free_tickets.pop()
        else:
            ticket = self.next_ticket
            self.next_ticket += 1
        self.begun[ticket] = (worker, self.num_applied)
        return ticket

    def _wait(self, condition: Callable[[], bool]) -> bool:
        return self.changed.wait_for(condition, self.wait_s)
