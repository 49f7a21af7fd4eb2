"""The coordinator: which steps begin, in any order of the workers' calls."""

from hypothesis import given, settings
from hypothesis import strategies as st

from training.loop.metric_parts import MetricParts
from training.servers.coordinator import Coordinator, StepRecord, Stretch

METRICS = MetricParts([0.0], [0], [], 1)


class Rehearsal:
    """A segment whose workers act in an order that is drawn, without threads.

    A worker has a stretch, asks for one step after the other, may have two steps at a time, and
    may end.
    """

    def __init__(self, num_steps: int, stretch: int, staleness: int) -> None:
        self.coordinator, self.staleness = Coordinator(wait_s=0), staleness
        self.coordinator.begin_segment(0, num_steps, stretch, staleness)
        self.stretches: dict[int, Stretch] = {}
        self.flying: dict[int, list[tuple[int, int]]] = {}  # by worker: tickets and steps
        self.begun: list[int] = []  # tickets that have begun and are not applied
        self.applied_steps: list[int] = []
        self.applied_tickets: list[int] = []

    def act(self, worker: int, action: str) -> None:
        """Let a worker do something, if it can."""
        if action == "end":
            self.coordinator.lose(worker)
            self.stretches.pop(worker, None)
            for ticket, _ in self.flying.pop(worker, []):
                self.begun.remove(ticket)
        elif worker not in self.stretches:
            taken = self.coordinator.take_stretch(worker)
            if isinstance(taken, Stretch):
                self.stretches[worker] = taken
                self.flying[worker] = []
        elif action == "begin":
            self.begin(worker)
        else:
            self.apply(worker)

    def begin(self, worker: int) -> None:
        stretch, flying = self.stretches[worker], self.flying[worker]
        step = stretch.start + len(flying)
        if len(flying) == 2 or step == stretch.stop:
            return
        ticket = self.coordinator.try_begin_step(worker)
        if ticket is None:
            return
        # all but `staleness` of the tickets before it have been applied
        missed = set(range(ticket)) - set(self.applied_tickets)
        assert len(missed) <= self.staleness
        assert not missed or ticket - min(missed) <= self.staleness
        self.begun.append(ticket)
        flying.append((ticket, step))

    def apply(self, worker: int) -> None:
        if not self.flying[worker]:
            return
        ticket, step = self.flying[worker].pop(0)
        self.coordinator.end_step(worker, ticket, StepRecord(step, METRICS, 0, 0, 0, 0))
        self.begun.remove(ticket)
        self.applied_tickets.append(ticket)
        self.applied_steps.append(step)
        _, stop = self.stretches[worker]
        self.stretches[worker] = Stretch(step + 1, stop)
        if step + 1 == stop:
            del self.stretches[worker], self.flying[worker]


ACTIONS = st.tuples(st.integers(0, 3), st.sampled_from(["begin", "begin", "apply", "apply", "end"]))


@settings(deadline=None)
@given(
    num_steps=st.integers(1, 25),
    stretch=st.integers(1, 7),
    staleness=st.integers(0, 5),
    actions=st.lists(ACTIONS, max_size=150),
)
def test_no_step_misses_more_updates_than_allowed_and_each_is_applied_once(
    num_steps: int, stretch: int, staleness: int, actions: list[tuple[int, str]]
) -> None:
    rehearsal = Rehearsal(num_steps, stretch, staleness)
    for worker, action in actions:
        rehearsal.act(worker, action)
    for _ in range(6 * num_steps + 20):  # and whatever happened, the segment can be ended
        for worker in range(4):
            rehearsal.act(worker, "begin")
            rehearsal.act(worker, "apply")
    assert sorted(rehearsal.applied_steps) == list(range(num_steps))
    assert sorted(rehearsal.applied_tickets) == list(range(num_steps))
    if staleness == 0:
        assert rehearsal.applied_steps == list(range(num_steps))
    records = rehearsal.coordinator.records_after(0)
    assert all(record.staleness <= 2 * staleness for record in records)
    assert [record.step for record in records] == rehearsal.applied_steps


def test_an_ended_segment_gives_no_more_steps() -> None:
    rehearsal = Rehearsal(9, 3, 1)
    rehearsal.act(0, "begin")
    rehearsal.act(0, "begin")
    rehearsal.coordinator.end_segment()
    assert rehearsal.coordinator.try_begin_step(0) is None
    assert rehearsal.coordinator.begin_step(0) is None
    assert rehearsal.coordinator.take_stretch(1) is None
    rehearsal.coordinator.end_step(0, 0, StepRecord(0, METRICS, 0, 0, 0, 0))  # comes too late
    assert not rehearsal.coordinator.records_after(0)
