"""The counts of a run with parameter servers: steps, bytes, staleness and lost actors."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from common.bundle_layout import MODEL, version_of
from common.config.base import NotNegative, Strict
from common.config.loading import read_json_as
from common.files import write_json
from training.servers.coordinator import StepRecord

TRAFFIC = Path("runs/servers.json")  # of the last run
REMEDY = "remove it: the report is written without it"
MB = 1e6


class Traffic:
    """The counts of a run; those of the members of an ensemble can be added.

    Attributes:
        num_steps: The number of steps that were applied, those that were repeated included.
        num_bytes: Bytes by kind: of rows that were `pulled` and of gradients that were `pushed`,
            with their places, and of the `dense` layers, both ways.
        staleness: For each number of updates, how many steps were applied so many updates after
            their rows had been asked for.
        lost: The number of actors that ended and were replaced, by kind.
    """

    def __init__(self) -> None:
        self.num_steps = 0
        self.num_bytes: Counter[str] = Counter()
        self.staleness: Counter[int] = Counter()
        self.lost: Counter[str] = Counter()

    def add_step(self, record: StepRecord) -> None:
        """Add a step that was applied."""
        self.num_steps += 1
        self.num_bytes["pulled"] += record.pulled_bytes
        self.num_bytes["pushed"] += record.pushed_bytes
        self.num_bytes["dense"] += record.dense_bytes
        self.staleness[record.staleness] += 1

    def add(self, other: "Traffic") -> None:
        """Add the counts of another run."""
        self.num_steps += other.num_steps
        self.num_bytes += other.num_bytes
        self.staleness += other.staleness
        self.lost += other.lost

    def lines(self) -> Iterator[str]:
        """Yield what the log says at the end."""
        if self.num_steps:
            of_step = ", ".join(
                f"{total / self.num_steps / MB:,.3f} MB {kind}"
                for kind, total in self.num_bytes.items()
            )
            yield f"parameter servers: {self.num_steps:,} steps; in a step {of_step}"
            shares = ", ".join(
                f"{updates}: {count / self.num_steps:.1%}"
                for updates, count in sorted(self.staleness.items())
            )
            yield f"staleness in updates, and its share of the steps: {shares}"
        if self.lost:
            counts = ", ".join(f"{kind}: {count}" for kind, count in sorted(self.lost.items()))
            yield f"ended and replaced: {counts}"


class TrafficFile(Strict):
    """The content of runs/servers.json: the counts of a run, and the version of its model."""

    model: str
    num_steps: NotNegative
    num_bytes: dict[str, NotNegative]
    staleness: dict[str, NotNegative]
    lost: dict[str, NotNegative]

    def bytes_of_step(self) -> dict[str, float]:
        """Return the mean bytes of a step by kind."""
        return {kind: total / max(1, self.num_steps) for kind, total in self.num_bytes.items()}


def write_traffic(root: Path, traffic: Traffic) -> None:
    """Write root/runs/servers.json for the bundle root/artifacts/model."""
    content = TrafficFile(
        model=version_of(root / MODEL),
        num_steps=traffic.num_steps,
        num_bytes=dict(traffic.num_bytes),
        staleness={str(updates): n for updates, n in sorted(traffic.staleness.items())},
        lost=dict(sorted(traffic.lost.items())),
    )
    write_json(root / TRAFFIC, content.model_dump())


def read_traffic(root: Path, version: str) -> TrafficFile | None:
    """Read root/runs/servers.json; None if there is none, or if it is that of another model.

    Raises:
        DataError: The file is damaged.
    """
    if not (root / TRAFFIC).exists():
        return None
    content = read_json_as(TrafficFile, root / TRAFFIC, REMEDY)
    return content if content.model == version else None
