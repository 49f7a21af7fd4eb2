"""The model registry: versions of the model, and which of them were put into production.

It consists of git tags by the conventions of GTO, so `dvc artifacts get` and GTO's own tools read
it. dlrm@v7.0.0 is the model of nightly run 7, and dlrm#production#3 is the third event that put a
model into production.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from flows.git_commands import Git
from flows.nightly.record import NightlyRun

MODEL_NAME, STAGE = "dlrm", "production"
MODEL_PREFIX = f"{MODEL_NAME}@"
ASSIGNMENT_PREFIX = f"{MODEL_NAME}#{STAGE}#"


@dataclass(frozen=True)
class Assignment:
    """An event that put a model into production.

    Attributes:
        number: The number of the event, from 1.
        run: The number of the nightly run that made the model.
        at: When it happened.
        reason: Why it happened: the headline of a nightly run, or the reason for a rollback.
    """

    number: int
    run: int
    at: datetime
    reason: str


class ModelRegistry:
    """The model registry of one repository."""

    def __init__(self, git: Git) -> None:
        self._git = git

    def assignments(self) -> list[Assignment]:
        """Return all assignments in their order; the model of the last one is in production."""
        run_of_commit = {}
        for line in self._read_tags(f"{MODEL_PREFIX}*", "%(*objectname)%00%(refname:lstrip=2)"):
            commit, tag = line.split("\0")
            run_of_commit[commit] = run_number(tag.removeprefix(MODEL_PREFIX))
        assignments = []
        for line in self._read_tags(
            f"{ASSIGNMENT_PREFIX}*",
            "%(*objectname)%00%(refname:lstrip=2)%00%(taggerdate:iso-strict)%00%(subject)",
        ):
            commit, tag, at, reason = line.split("\0")
            assignments.append(
                Assignment(
                    int(tag.removeprefix(ASSIGNMENT_PREFIX)),
                    run_of_commit[commit],
                    datetime.fromisoformat(at),
                    reason,
                )
            )
        return sorted(assignments, key=lambda assignment: assignment.number)

    def register(self, runs: Iterable[NightlyRun]) -> None:
        """Register the models of nightly runs that are not registered yet."""
        registered = self._git.tags(f"{MODEL_PREFIX}*")
        for run in runs:
            if run.model and f"{MODEL_PREFIX}{run.model}" not in registered:
                self._tag(f"{MODEL_PREFIX}{run.model}", run, run.headline)

    def assign(self, run: NightlyRun, reason: str) -> None:
        """Record that the model of a nightly run is put into production."""
        assignments = self.assignments()
        number = assignments[-1].number + 1 if assignments else 1
        self._tag(f"{ASSIGNMENT_PREFIX}{number}", run, reason)

    def _tag(self, name: str, run: NightlyRun, message: str) -> None:
        # GTO itself would sign where the user signs tags, and nobody is there at night.
        self._git.tag(name, message, f"{run.tag}^{{commit}}")

    def _read_tags(self, pattern: str, fields: str) -> list[str]:
        """Return one line for each tag that matches, in the format of `git for-each-ref`."""
        lines = self._git.run("for-each-ref", f"refs/tags/{pattern}", f"--format={fields}")
        return lines.splitlines()


def run_number(model: str) -> int:
    """Return the number of the nightly run that made a model: 7 for v7.0.0."""
    return int(model.removeprefix("v").partition(".")[0])
