"""The model registry: versions of the model, and which of them were put into production.

It consists of git tags by the conventions of GTO, so `dvc artifacts get` and GTO's own tools read
it. dlrm@v7.0.0 is the model of nightly run 7, and dlrm#production#3 is the third event that put a
model into production.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from common.files import DataError
from flows.git_commands import Git
from flows.nightly.record import REMEDY, RUN_TAG_PREFIX, NightlyRun

MODEL_NAME, STAGE = "dlrm", "production"
MODEL_PREFIX = f"{MODEL_NAME}@"
ASSIGNMENT_PREFIX = f"{MODEL_NAME}#{STAGE}#"
VERSION = re.compile(r"v([1-9]\d{0,8})\.0\.0")  # of the model of a nightly run


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
        """Return all assignments in their order; the model of the last one is in production.

        Raises:
            DataError: A tag is not as `register` and `assign` set it.
        """
        run_of_commit = {commit: run for run, commit in self._models().items()}
        assignments = []
        for commit, tag, at, reason in self._read_tags(
            f"{ASSIGNMENT_PREFIX}*",
            "%(*objectname)%00%(refname:lstrip=2)%00%(taggerdate:iso-strict)%00%(subject)",
        ):
            try:
                number = int(tag.removeprefix(ASSIGNMENT_PREFIX))
                run, time = run_of_commit[commit], datetime.fromisoformat(at)
            except (KeyError, ValueError):
                raise DataError(
                    f"tag {tag}: it is not an annotated tag {ASSIGNMENT_PREFIX}N on the commit of "
                    f"a registered model; {REMEDY.format(tag=tag)}"
                ) from None
            assignments.append(Assignment(number, run, time, reason))
        return sorted(assignments, key=lambda assignment: assignment.number)

    def last_model(self) -> int:
        """Return the number of the last nightly run whose model is registered, 0 if there is none.

        A number is not used again when somebody has deleted the record of its run.
        """
        return max(self._models(), default=0)

    def register(self, runs: Iterable[NightlyRun]) -> None:
        """Register the models of nightly runs that are not registered yet.

        Raises:
            DataError: The version of a model is already that of another commit.
        """
        registered = self._models()
        fields = "%(refname:lstrip=2)%00%(*objectname)"
        commit_of_tag = dict(self._read_tags(f"{RUN_TAG_PREFIX}*", fields))
        for run in runs:
            if not run.model:
                continue
            if run.number not in registered:
                self._tag(f"{MODEL_PREFIX}{run.model}", run, run.headline)
            elif registered[run.number] != commit_of_tag[run.tag]:
                tag = f"{MODEL_PREFIX}{run.model}"
                raise DataError(
                    f"tag {tag}: it names commit {registered[run.number][:12]}, but {run.tag} is "
                    f"commit {commit_of_tag[run.tag][:12]}; {REMEDY.format(tag=tag)}"
                )

    def _models(self) -> dict[int, str]:
        """Return the commit of each registered model by the number of its nightly run.

        Raises:
            DataError: A tag is not as `register` sets it.
        """
        commit_of_run = {}
        for commit, tag in self._read_tags(
            f"{MODEL_PREFIX}*", "%(*objectname)%00%(refname:lstrip=2)"
        ):
            match = VERSION.fullmatch(tag.removeprefix(MODEL_PREFIX))
            if not match or not commit:
                raise DataError(
                    f"tag {tag}: it is not an annotated tag {MODEL_PREFIX}vN.0.0, as a nightly run "
                    f"sets it; {REMEDY.format(tag=tag)}"
                )
            commit_of_run[int(match[1])] = commit
        return commit_of_run

    def assign(self, run: NightlyRun, reason: str) -> None:
        """Record that the model of a nightly run is put into production."""
        assignments = self.assignments()
        number = assignments[-1].number + 1 if assignments else 1
        self._tag(f"{ASSIGNMENT_PREFIX}{number}", run, reason)

    def _tag(self, name: str, run: NightlyRun, message: str) -> None:
        # GTO itself would sign where the user signs tags, and nobody is there at night.
        self._git.tag(name, message, f"{run.tag}^{{commit}}")

    def _read_tags(self, pattern: str, fields: str) -> list[list[str]]:
        """Return the fields of each tag that matches, in the format of `git for-each-ref`."""
        text = self._git.run("for-each-ref", f"refs/tags/{pattern}", f"--format={fields}")
        # Other line breaks than \n may be part of a message.
        return [line.split("\0") for line in text.split("\n") if line]
