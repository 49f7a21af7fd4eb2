"""Ten nightly runs on generated days: good days, bad days, a worse model and a rollback.

    python examples/nightly_demo.py DIRECTORY      (make nightly-demo)

It takes a few minutes. DIRECTORY must not exist yet. DIRECTORY/logs gets one log file a day.
DIRECTORY/repository is a clone of this repository, as committed, with a small model.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from common.config.params import load_params
from common.progress import Progress
from features.sample.generate import write_sample
from features.schema.schema import load_schema
from flows.git_commands import Git
from flows.locks import registry_lock
from flows.nightly.clone import set_param
from flows.nightly.flow import nightly
from flows.nightly.history import HISTORY
from flows.nightly.model_table import show
from flows.nightly.repository import NightlyRepository
from flows.prefect_server import ensure_server

PROJECT = Path(__file__).parents[1]
NUM_DAYS = 9
NUM_ROWS = 8_000  # of a day
SMALL_MODEL: dict[str, dict[str, object]] = {
    "data": {"source": "../logs"},
    "features": {"fit_days": 2},
    "model": {"bottom_mlp": [64], "top_mlp": [64]},
    "train": {
        "epochs": 2,
        "reset_embeddings_each_epoch": False,
        "last_days": 4,
        "validations": 4,
        "logger": "none",
    },
}


class Demo:
    """A repository, its log, and the events of ten days.

    Attributes:
        logs: The folder of the log files.
        root: The repository.
        days: The lines of each day.
    """

    def __init__(
        self, directory: Path, num_rows: int = NUM_ROWS, repository: Path = PROJECT
    ) -> None:
        """Generate the days, and clone a repository.

        Args:
            directory: Where logs and the clone are made; it must not exist.
            num_rows: The number of rows of a day.
            repository: The repository to clone.
        """
        self.logs, self.root = directory / "logs", directory / "repository"
        directory.mkdir(parents=True)
        self.logs.mkdir()
        self.days = generate_days(directory / "log.tsv", num_rows)
        Git(repository).run("clone", "-q", str(repository), str(self.root))
        for section, values in SMALL_MODEL.items():
            for name, value in values.items():
                set_param(self.root, section, name, value)
        self.commit("A small model, and the log in ../logs")

    def commit(self, message: str) -> None:
        """Commit all changes in the repository."""
        Git(self.root).commit(message, "--all")

    def deliver(self, day: int, lines: list[bytes] | None = None) -> None:
        """Write the log file of a day, with its own lines or with others."""
        content = b"".join(self.days[day] if lines is None else lines)
        (self.logs / f"day_{day}.tsv").write_bytes(content)

    def with_swapped_labels(self, day: int) -> list[bytes]:
        """Return the lines of a day with 0 and 1 swapped in the labels."""
        return [(b"1" if line[:1] == b"0" else b"0") + line[1:] for line in self.days[day]]

    def events(self) -> Iterator[str]:
        """Let the events of the days happen. A nightly run follows each description."""
        for day in range(3):
            self.deliver(day)
        yield "days 0 to 2 are there; the first model is trained"
        self.deliver(3)
        yield "day 3 has arrived"
        yield "no new day has arrived"
        self.deliver(4, self.with_swapped_labels(4))
        yield "day 4 has arrived with swapped labels"
        self.deliver(4)
        yield "day 4 is delivered again, now correct"
        self.deliver(5, [])
        yield "day 5 has arrived, and is empty"
        self.deliver(5)
        self.commit_tiny_learning_rate()
        yield "day 5 is complete, but somebody has committed a learning rate of 1e-9"
        Git(self.root).run("reset", "-q", "--hard", "HEAD^")
        self.deliver(7)
        yield "the commit is undone; day 7 has arrived before day 6"
        self.deliver(6)
        with registry_lock(self.root):
            _, run = NightlyRepository(self.root).rollback(None, "complaints from the app")
        yield f"somebody has rolled back to {run.model}; day 6 has arrived late"
        self.deliver(8)
        yield "day 8 has arrived"

    def commit_tiny_learning_rate(self) -> None:
        """Commit parameters with which the dense layers learn nothing."""
        set_param(self.root, "train", "dense_optimizer", {"name": "sgd", "lr": 1e-9})
        self.commit("Slower learning")


def generate_days(log: Path, num_rows: int) -> list[list[bytes]]:
    """Generate a log, and return the lines of each day."""
    params = load_params(PROJECT / "params.yaml")
    schema = load_schema(params.data.schema_name)
    total = NUM_DAYS * num_rows
    with Progress("sample", total, None) as progress:
        write_sample(log, total, NUM_DAYS, params.sample.seed, schema, progress)
    lines = log.read_bytes().splitlines(keepends=True)
    return [lines[day * num_rows : (day + 1) * num_rows] for day in range(NUM_DAYS)]


def main(directory: Path) -> None:
    """Execute a nightly run after each event, then list the models."""
    demo = Demo(directory.resolve())
    ensure_server()
    os.chdir(demo.root)
    for number, event in enumerate(demo.events(), 1):
        print(f"\nNightly run {number}: {event}", flush=True)
        nightly()
    print(flush=True)
    show(Path())
    print(f"\nAll nightly runs: {HISTORY.resolve()}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
