"""Ten nights in a few minutes, on days that the generator draws: good ones, one bad of each kind, a worse model, a rollback.

    python examples/nightly_demo.py DIRECTORY      (make nightly-demo)

DIRECTORY must not be there yet. DIRECTORY/logs gets a file a day, DIRECTORY/repository is a clone of this one, as committed, with a small
model.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from common.config.params import load_params
from common.progress import Progress
from features.sample.generate import write_sample
from features.schema.schema import load_schema
from flows.nightly.clone import set_param
from flows.nightly.flow import nightly
from flows.nightly.git import git, identity
from flows.nightly.history import write_history
from flows.nightly.model_table import show
from flows.nightly.registry import rollback
from flows.prefect_server import ensure_server

HERE = Path(__file__).parents[1]
NUM_DAYS = 9
SMALL: dict[str, dict[str, object]] = {
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
    """A repository and its log. rows: of a day; repository: of which it is a clone."""

    def __init__(self, directory: Path, rows: int = 8_000, repository: Path = HERE) -> None:
        self.logs, self.root = directory / "logs", directory / "repository"
        directory.mkdir(parents=True)
        self.logs.mkdir()
        self.days = draw_days(directory / "log.tsv", rows)
        git(repository, "clone", "-q", str(repository), str(self.root))
        for section, values in SMALL.items():
            for name, value in values.items():
                set_param(self.root, section, name, value)
        self.commit("A small model, and the log in ../logs")

    def commit(self, message: str) -> None:
        git(self.root, *identity(self.root), "commit", "-qam", message)

    def deliver(self, day: int, lines: list[bytes] | None = None) -> None:
        (self.logs / f"day_{day}.tsv").write_bytes(
            b"".join(self.days[day] if lines is None else lines)
        )

    def flipped(self, day: int) -> list[bytes]:
        """A day whose labels were written the wrong way round."""
        return [(b"1" if line[:1] == b"0" else b"0") + line[1:] for line in self.days[day]]

    def happens(self) -> Iterator[str]:
        """What happens by day, told as it has; a night follows each."""
        for day in range(3):
            self.deliver(day)
        yield "days 0 to 2 are there: the first model"
        self.deliver(3)
        yield "day 3 has come"
        yield "no day has come"
        self.deliver(4, self.flipped(4))
        yield "day 4 has come, with its labels the wrong way round"
        self.deliver(4)
        yield "day 4 is delivered again, as it should be"
        self.deliver(5, [])
        yield "day 5 has come, empty"
        self.deliver(5)
        self.worse()
        yield "day 5 is whole, but somebody has committed a learning rate of 1e-9"
        git(self.root, "reset", "-q", "--hard", "HEAD^")
        self.deliver(7)
        yield "the commit is taken back; day 7 has come, day 6 is late"
        self.deliver(6)
        night = rollback(self.root, None, "complaints from the app")
        yield f"rolled back to {night.model} by day; day 6 has come after day 7"
        self.deliver(8)
        yield "day 8 has come"

    def worse(self) -> None:
        set_param(self.root, "train", "dense_optimizer", {"name": "sgd", "lr": 1e-9})
        self.commit("Slower learning")


def draw_days(log: Path, rows: int) -> list[list[bytes]]:
    """The lines of each day, as they should be delivered."""
    params = load_params(HERE / "params.yaml")
    with Progress("sample", NUM_DAYS * rows, None) as progress:
        write_sample(
            log,
            NUM_DAYS * rows,
            NUM_DAYS,
            params.sample.seed,
            load_schema(params.data.schema_name),
            progress,
        )
    lines = log.read_bytes().splitlines(keepends=True)
    return [lines[day * rows : (day + 1) * rows] for day in range(NUM_DAYS)]


def main(directory: Path) -> None:
    demo = Demo(directory.resolve())
    ensure_server()
    os.chdir(demo.root)
    for number, told in enumerate(demo.happens(), 1):
        print(f"\nNight {number}: {told}", flush=True)
        nightly()
    print(flush=True)
    show(Path())
    print(f"\nAll nights: {write_history(Path()).resolve()}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
